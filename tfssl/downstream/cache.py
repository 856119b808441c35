"""Extracted features on disk: a folder per (module, data, settings), and in it one .npy file per endpoint, read by
memory mapping."""

import hashlib
import json
import os
import urllib.parse

import numpy as np

from tfssl.errors import UserError


class FeatureCache:
    """The cached features of one (module, data, settings).

    Args:
      folder: local folder of all cached features; created.
      key: a dict, JSON-able, of everything that the features depend on; kept beside them as key.json.
    """

    def __init__(self, folder, key):
        if "://" in folder:
            raise UserError(f"cache_dir={folder!r}: cached features are memory-mapped, which takes a local folder")
        text = json.dumps(key, indent=1, sort_keys=True)
        self.folder = os.path.join(folder, hashlib.sha256(text.encode()).hexdigest()[:16])
        os.makedirs(self.folder, exist_ok=True)
        with open(os.path.join(self.folder, "key.json"), "w", encoding="utf-8") as f:
            f.write(text)

    def has(self, name):
        """Whether this endpoint is complete."""
        return os.path.exists(self._path(name)) and os.path.exists(self._rows)

    def load(self, name):
        """[N, D], memory-mapped and read-only."""
        return np.load(self._path(name), mmap_mode="r")[: len(self.rows()["index"])]

    def create(self, name, shape, dtype):
        """A writable memory-mapped array; it counts once `commit` was called."""
        return np.lib.format.open_memmap(self._partial(name), "w+", dtype, shape)

    def commit(self, arrays, rows):
        """Declare arrays made by `create` complete: {name: array}; `rows` are the arrays labels, index and dropped
        (names).

        Endpoints of an earlier pass that read other rows (a file was repaired since) are removed: `has` tells.
        """
        if os.path.exists(self._rows):
            old = self.rows()
            if not all(np.array_equal(old[k], rows[k]) for k in ("labels", "index")):
                for file in os.listdir(self.folder):
                    if file.endswith(".npy"):
                        os.remove(os.path.join(self.folder, file))
        for name, array in arrays.items():
            array.flush()
            os.replace(self._partial(name), self._path(name))
        temporary = f"{self._rows}.{os.getpid()}"
        with open(temporary, "wb") as f:
            np.savez(f, **rows)
        os.replace(temporary, self._rows)

    def discard(self, names):
        """Remove what `create` made for an unfinished pass."""
        for name in names:
            if os.path.exists(self._partial(name)):
                os.remove(self._partial(name))

    def rows(self):
        """{"labels": int64 [N], "index": int64 [N], "dropped": str [M]}."""
        with np.load(self._rows) as rows:
            return dict(rows)

    @property
    def _rows(self):
        return os.path.join(self.folder, "rows.npz")

    def _path(self, name):
        return os.path.join(self.folder, urllib.parse.quote(name, safe="") + ".npy")

    def _partial(self, name):
        return f"{self._path(name)}.{os.getpid()}.partial"

"""Extracted features on disk: a folder per (module, data, settings), and in it one .npy file per
endpoint, read by memory mapping, and a record of those that are complete, with their checksums.

An array is valid if the record names it and its bytes have the recorded checksum. A damaged array
is reported in one line, and its features are computed again. A pass over the images writes partial
arrays, and now and then a record of how far they are: where its process was stopped or killed, the
next one with the same endpoints goes on from there. Partial arrays without such a record, or of
last week, are removed when the next process opens a cache in the same folder; features that are no
longer usable are removed by `prune`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import urllib.parse
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Optional

import numpy as np
from absl import logging

from tfssl.errors import UserError, one_line
from tfssl.storage import files, mapped, npz

_BLOCK = 1 << 24  # bytes read at once for a checksum
# between two records of how far a pass is: seconds, or bytes of features, whichever comes first
_SECONDS, _BYTES = 30.0, 1 << 28
_WEEK = 7 * 24 * 3600  # seconds that a pass waits for a process that goes on with it
_YOUNG = 24 * 3600  # seconds for which a folder without a record may be in use by another machine
_RECORD, _KEY, _PARTIAL = "rows.npz", "key.json", ".partial"


Rows = dict[str, np.ndarray]  # "labels", "index": int64 [N]; "dropped": str [M]
Checksum = list[int]  # [bytes, CRC32]


class FeatureCache:
    """The cached features of one (module, data, settings).

    Args:
      folder: local folder of all cached features; created.
      key: everything that the features depend on, JSON-able; kept beside them in key.json.
      of: a description for people and for `prune`, JSON-able; not a part of the key.

    Raises:
      UserError: the folder is remote, or cannot be written.
    """

    def __init__(
        self, folder: str, key: Mapping[str, Any], of: Optional[Mapping[str, Any]] = None
    ) -> None:
        if "://" in folder:
            raise UserError(
                f"cache_dir={folder!r}: cached features are memory-mapped, which takes a local "
                "folder"
            )
        digest = hashlib.sha256(json.dumps(key, indent=1, sort_keys=True).encode()).hexdigest()
        self.folder = os.path.join(folder, digest[:16])
        # name -> the locked file behind what `create` made, or `resume` took over
        self._open: dict[str, tuple[str, BinaryIO]] = {}
        # The pass over the images that writes them: a part of its files' names, and the rows, the
        # checksums of these rows and the time at its last record.
        self._pass, self._kept, self._sums = files.unique(), 0, dict[str, int]()
        self._kept_at = time.monotonic()
        text = json.dumps({"key": key, "of": of or {}}, indent=1, sort_keys=True)
        with self._room():
            os.makedirs(self.folder, exist_ok=True)
            sweep(folder)
            files.write_file(os.path.join(self.folder, _KEY), text)

    def read(self, names: Iterable[str]) -> tuple[Rows, dict[str, np.ndarray]]:
        """The valid features of some endpoints.

        Returns:
          (rows, arrays): {"labels": int64 [N], "index": int64 [N], "dropped": str [M]}, {} where
          there is no record; and {name: [N, D]}, memory-mapped and read-only.
        """
        rows, table = self._read_record()
        arrays: dict[str, np.ndarray] = {}
        for name in (name for name in names if name in table):
            path = self._path(name)
            try:
                if checksum(path) != table[name]:
                    raise ValueError("its checksum is wrong")
                array = np.load(path, mmap_mode="r")
                arrays[name] = array[: len(rows["index"])]
            except Exception as error:  # truncated, or another header: NumPy raises many kinds
                logging.warning(
                    "cached features %s are damaged (%s): computed again", path, one_line(error)
                )
        return rows, arrays

    def is_complete(self, names: Iterable[str]) -> bool:
        """Whether another process, say, has written these endpoints and let go of them; checksums
        are left to `read`."""
        table = self._read_record()[1]
        return all(name in table and _is_dead(self._path(name)) for name in names)

    def state(self) -> tuple[tuple[str, float], ...]:
        """What changes whenever another process, say, writes here: files and their times, in
        seconds."""
        found = []
        with contextlib.suppress(OSError):  # not there yet
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    found.append((entry.name, entry.stat().st_mtime))
        return tuple(sorted(found))

    def create(self, name: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
        """A writable memory-mapped array, with its disk space allocated; it is valid after
        `commit`.

        Raises:
          UserError: the disk is full.
        """
        path = self._partial(self._path(name))
        with self._room():
            self._open[name] = path, _locked(path)
            array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            files.claim(self._open[name][1])
        return array

    def resume(self, names: Collection[str]) -> tuple[Rows, dict[str, np.memmap]]:
        """Take over a pass of exactly these endpoints whose process ended before it did.

        Returns:
          (rows, arrays): {"labels", "index"} of the images that are done, and {name: the writable
          array, whose first rows are theirs}; ({}, {}) where there is none.
        """
        for name_of_pass, paths in _passes(self.folder).items():
            self._pass = name_of_pass
            record = self._partial(self._path_of_record)
            if record not in paths:
                continue
            try:
                rows, table = _read_record(record)
                if set(table) != set(names):
                    continue
                for name in names:
                    path = self._partial(self._path(name))
                    self._open[name] = path, _locked_again(path)
                arrays = {
                    name: np.lib.format.open_memmap(path, "r+")
                    for name, (path, _) in self._open.items()
                }
                self._kept = len(rows["index"])
                self._sums = {n: _crc(array, 0, self._kept) for n, array in arrays.items()}
                if self._sums != {name: crc for name, (_, crc) in table.items()}:
                    raise ValueError("a checksum is wrong")
                return rows, arrays
            except Exception as error:  # another process's; or damaged, of which NumPy raises many
                self._close()
                if not isinstance(error, BlockingIOError):
                    for path in paths:
                        files.remove(path)
                    logging.warning(
                        "features of a pass that was stopped, %s, are damaged (%s): computed again",
                        record,
                        one_line(error),
                    )
        self._pass = files.unique()
        return {}, {}

    def keep(self, arrays: Mapping[str, np.memmap], done: int, rows: Callable[[], Rows]) -> None:
        """Record, now and then, that the first `done` rows of arrays of `create` or `resume` are
        complete, and take them out of this process's memory; `rows` returns their labels and
        index."""
        size = (done - self._kept) * sum(a.strides[0] for a in arrays.values())
        if time.monotonic() - self._kept_at < _SECONDS and size < _BYTES:
            return
        with self._room():
            for name, array in arrays.items():
                self._sums[name] = _crc(array, self._kept, done, self._sums.get(name, 0))
                array.flush()
                mapped.release(array)
            sizes = {name: done * array.strides[0] for name, array in arrays.items()}
            table = {name: [size, self._sums[name]] for name, size in sizes.items()}
            record = self._partial(self._path_of_record)
            npz.write(record, **rows(), dropped=np.array([], str), arrays=json.dumps(table))
        self._kept, self._kept_at = done, time.monotonic()

    def commit(self, arrays: Mapping[str, np.memmap], rows: Rows) -> None:
        """Declare arrays of `create` complete: {name: array}; `rows` as `read` returns them.

        Endpoints of an earlier pass with other rows (a file was repaired since) become invalid.
        """
        old, table = self._read_record()
        if not old or not all(np.array_equal(old[k], rows[k]) for k in ("labels", "index")):
            table = {}
        with self._room():
            try:
                for name, array in arrays.items():
                    array.flush()
                    table[name] = checksum(self._open[name][0])
                # Without the record nothing is valid: a kill from here on leaves no new arrays
                # beside old rows.
                files.remove(self._path_of_record)
                for name in arrays:
                    os.replace(self._open[name][0], self._path(name))
                self._write_record(rows, table)
                if self._kept:
                    files.remove(self._partial(self._path_of_record))
                    self._kept = 0
            except OSError:
                for name in arrays:
                    files.remove(self._path(name))
                raise
        for name in os.listdir(self.folder):
            if name.endswith(".npy") and os.path.join(self.folder, name) not in map(
                self._path, table
            ):
                files.remove(os.path.join(self.folder, name))

    def drop(self, names: Collection[str]) -> None:
        """Make some endpoints invalid."""
        rows, table = self._read_record()
        if rows:
            self._write_record(
                rows, {name: sums for name, sums in table.items() if name not in names}
            )

    def discard(self) -> None:
        """Let go of arrays without a `commit`: they stay for `resume` where `keep` has recorded
        some of their rows, and are removed elsewhere."""
        if not self._kept:
            for path, _ in self._open.values():
                with contextlib.suppress(OSError):  # a full disk may fail here too
                    files.remove(path)
        self._close()

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder)

    def _close(self) -> None:
        for _, file in self._open.values():
            file.close()
        self._open, self._kept, self._sums = {}, 0, {}
        self._pass, self._kept_at = files.unique(), time.monotonic()

    def _write_record(self, rows: Rows, table: Mapping[str, Checksum]) -> None:
        npz.write(self._path_of_record, **rows, arrays=json.dumps(table))

    def _read_record(self) -> tuple[Rows, dict[str, Checksum]]:
        """(rows, {name: checksum}); ({}, {}) without a valid record: zip files have checksums of
        their own."""
        try:
            return _read_record(self._path_of_record)
        except FileNotFoundError:
            pass
        except Exception as error:  # NumPy and zipfile raise many kinds
            path = self._path_of_record
            logging.warning(
                "the record of cached features %s is damaged (%s): computed again",
                path,
                one_line(error),
            )
        return {}, {}

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Errors of the disk as one line."""
        try:
            yield
        except OSError as error:
            if self._kept:
                files.remove(self._partial(self._path_of_record))
                self._kept = 0
            self.discard()
            raise UserError(
                f"features cannot be cached in {self.folder!r} ({one_line(error)}): make room, "
                "choose another folder, or compute them "
                "without a cache (tfssl-eval --nocache)"
            ) from error

    @property
    def _path_of_record(self) -> str:
        return os.path.join(self.folder, _RECORD)

    def _partial(self, path: str) -> str:
        return f"{path}.{self._pass}{_PARTIAL}"

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, urllib.parse.quote(name, safe="") + ".npy")


def checksum(path: str) -> Checksum:
    """[bytes, CRC32] of a file: about a gigabyte a second."""
    size = crc = 0
    with open(path, "rb", buffering=0) as f:
        while block := f.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _crc(array: np.ndarray, low: int, high: int, crc: int = 0) -> int:
    """CRC32 of the bytes of some rows, behind those of `crc`."""
    size = max(1, _BLOCK // array.strides[0])
    for begin in range(low, high, size):
        crc = zlib.crc32(array[begin : min(begin + size, high)].tobytes(), crc)
        mapped.release(array)
    return crc


def _read_record(path: str) -> tuple[Rows, dict[str, Checksum]]:
    with np.load(path) as record:
        rows = dict(record)
    table = json.loads(str(rows.pop("arrays")))
    return {name: rows[name] for name in ("labels", "index", "dropped")}, table


def _locked(path: str) -> BinaryIO:
    """A new file, open and locked until its process ends."""
    while True:
        file = open(path, "x+b")
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):
            return file
        file.close()  # removed by `sweep` between the two


def _locked_again(path: str) -> BinaryIO:
    """A file that a process has left, likewise.

    Raises:
      BlockingIOError: it is in use, or has gone.
    """
    try:
        import fcntl

        file = open(path, "r+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            return file
    except (OSError, ImportError):
        pass
    raise BlockingIOError(path)


def _is_dead(path: str) -> bool:
    """Whether the process that wrote a partial array, and locked it, has ended."""
    try:
        _locked_again(path).close()
        return True
    except BlockingIOError:
        return False


def _passes(folder: str) -> dict[str, list[str]]:
    """{name of a pass over the images: its partial files}."""
    passes: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(_PARTIAL):
            passes.setdefault(name.split(".")[-2], []).append(os.path.join(folder, name))
    return passes


def _in_use(paths: Sequence[str]) -> bool:
    """Whether a pass is of a living process; its record is not locked, which is written anew."""
    return any(not _is_dead(path) for path in paths if not _is_record(path))


def _is_record(path: str) -> bool:
    return os.path.basename(path).startswith(_RECORD)


def sweep(folder: str) -> None:
    """Remove what passes over the images left whose processes have ended, from all caches of a
    folder, but for those that another process can go on with."""
    for inner in _folders(folder):
        for paths in _passes(inner).values():
            records = [path for path in paths if _is_record(path)]
            young = [path for path in records if time.time() - os.path.getmtime(path) < _WEEK]
            if not (young and len(paths) > 1) and not _in_use(paths):
                for path in paths:
                    files.remove(path)


def prune(
    folder: str, versions: Mapping[str, str], identities: Sequence[tuple[str, str, Any]] = ()
) -> list[tuple[str, str, int]]:
    """Remove cached features that are no longer usable.

    These are: without a valid record, for a day or more; of other versions of tfssl or TensorFlow;
    of data that have changed.

    Args:
      folder: local folder of all cached features.
      versions: {"tfssl", "tensorflow"} in use.
      identities: list of (dataset, split, `identity.of` the source) of the data as they are now.

    Returns:
      list of (folder removed, reason, bytes).
    """
    removed = []
    sweep(folder)
    for inner in _folders(folder):
        names = os.listdir(inner)
        young = time.time() - os.path.getmtime(inner) < _YOUNG
        if any(_in_use(paths) for paths in _passes(inner).values()):
            continue  # a process is writing there
        reason = _outdated(inner, versions, identities)
        if reason is None and _RECORD not in names and not young:
            reason = "not finished"
        if reason:
            size = sum(os.path.getsize(os.path.join(inner, name)) for name in names)
            shutil.rmtree(inner)
            removed.append((inner, reason, size))
    return removed


def _outdated(
    folder: str, versions: Mapping[str, str], identities: Sequence[tuple[str, str, Any]]
) -> Optional[str]:
    """Why features are no longer usable; None if they are."""
    try:
        with open(os.path.join(folder, _KEY), encoding="utf-8") as f:
            content = json.load(f)
        key, source = content["key"], content["of"]
        other = [
            f"{name} {key[name]}" for name, version in versions.items() if key[name] != version
        ]
        if other:
            return f"of {', '.join(other)}"
        for dataset, split, identity in identities:
            if (source["dataset"], source["split"]) == (dataset, split) and key["data"] != identity:
                return f"{dataset} {split} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "of another form, or damaged"
    return None


def _folders(folder: str) -> list[str]:
    """The caches in a folder: subfolders whose name is a key."""
    try:
        with os.scandir(folder) as entries:
            inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(
        path
        for path in inner
        if len(os.path.basename(path)) == 16 and set(os.path.basename(path)) <= _HEX
    )


_HEX = set("0123456789abcdef")

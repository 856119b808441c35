"""`webdataset:GLOB`: tar shards of samples, as the webdataset project writes them.

    photos-train-000000.tar:  a/0001.jpg  a/0001.cls  a/0002.png  a/0002.json  ...

The files of a sample follow one another; their name up to the first dot of the last part is its
key, the rest their ending. The image is the first file with an image's ending (.jpg, .png, .webp,
.tif ...), the label what stands in .cls (a number, or a class's name), or in .json under "label".
The split is in the shard's name, as of record files; without one it is `train`.

A shard's headers are read once, and what they say is kept in the cache folder; then images are
read where they lie, in any order: a full shuffle, and a resume that costs nothing.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.listing import roles
from tfssl.data.ops import formats
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.folder import FORMATS
from tfssl.data.sources.identity import Parts, relative
from tfssl.data.sources.splits import cut, resolve
from tfssl.errors import UserError, one_line
from tfssl.storage.caches import cache_dir, stamp, try_write
from tfssl.storage.files import errors, matching

_THREADS = 16  # shards that are read at once
_FORMAT = 1  # of what is kept
_ZEROS = bytes(512)  # with which an archive ends


class Sample(NamedTuple):
    """An image in a shard: its name, where it lies in bytes, and its label, None without."""

    name: str
    offset: int
    size: int
    label: int | str | None


class WebDatasetSource(IndexedSource):
    """Tar shards, in the order of their names. There are as many classes as the largest label of
    any split asks for, or as many as there are names.

    Args:
      label_key: of .json files, in place of "label".
      label_offset: the smallest label, subtracted from all.
      skip_damaged_shards: see `open_source`; of a shard that was read whole before.
    """

    form = "webdataset:GLOB"
    in_python = True

    def __init__(
        self,
        spec: str,
        pattern: str,
        split: str = "train",
        label_key: str = "label",
        label_offset: int = 0,
        skip_damaged_shards: bool = False,
    ) -> None:
        files = _find(os.path.expanduser(pattern) if "://" not in pattern else pattern, spec)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            shards = list(
                pool.map(lambda file: _samples(file, label_key, skip_damaged_shards), files)
            )
        numbers, names = _classes([s.label for shard in shards for s in shard], label_offset, spec)
        splits: dict[str, list[int]] = {}
        for i, file in enumerate(files):
            splits.setdefault(split_of(file), []).append(i)
        sizes = {name: [len(shards[i]) for i in of] for name, of in splits.items()}
        ranges = resolve(split, sizes, spec, shards=True)
        parts = [
            (splits[name][i], skip, take)
            for name, *bounds in ranges
            for i, skip, take in cut(sizes[name], *bounds)
        ]
        chosen = [
            (i, sample) for i, skip, take in parts for sample in shards[i][skip : skip + take]
        ]
        if not chosen:
            raise UserError(f"{spec}, split {split}: no images in its shards")
        classes = len(names) if names else max(numbers.values(), default=-1) + 1
        super().__init__(spec, split, len(chosen), classes or None, names)
        self.ranges = ranges
        self.foreign = any(s.name.lower().endswith(formats.ENDINGS) for _, s in chosen)
        self._files = [files[i] for i in dict.fromkeys(i for i, _ in chosen)]
        self._names = [f"{s.name} of {files[i]}" for i, s in chosen]
        self._labels = np.array([numbers.get(s.label, -1) for _, s in chosen], np.int64)
        if not classes:
            self.unlabelled_because = f"no sample has a .cls, nor {label_key!r} in a .json"
        counts = collections.Counter(i for i, _ in chosen)  # in the order of their first images
        self._reading = {
            "shards": [list(pair) for pair in zip(relative(self._files)[1], counts.values())],
            "samples": hashlib.sha256("\0".join(s.name for _, s in chosen).encode()).hexdigest(),
            "label_key": label_key,
            "label_offset": label_offset,
        }
        with tf.device("CPU"):
            self._shards = tf.constant(files)
            self._shard = tf.constant([i for i, _ in chosen])
            self._place = tf.constant([[s.offset, s.size] for _, s in chosen], tf.int64)
            self._label, self._name = tf.constant(self._labels), tf.constant(self._names)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = record["index"]
        found, reason = tf.numpy_function(
            _read,
            [
                tf.gather(self._shards, tf.gather(self._shard, index)),
                tf.gather(self._place, index),
            ],
            [tf.string, tf.string],
            stateful=False,
        )
        with tf.control_dependencies([tf.raw_ops.Assert(condition=reason == b"", data=[reason])]):
            image = tf.ensure_shape(tf.identity(found), [])
        return {"image": self.read(image), "label": tf.gather(self._label, index), "index": index}

    def parts(self) -> Parts:
        return Parts(self._files, [self._labels], reading=self._reading)

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.gather(self._name, record["index"])

    def name(self, index: int) -> str:
        return self._names[index]


def split_of(file: str) -> str:
    """The split that a shard's name tells: imagenet-train-000012.tar -> train; otherwise train."""
    stem = os.path.basename(file).rsplit(".", 1)[0]
    words = re.findall(r"[^\W\d_]+", stem)
    told = [word for word in words if roles.is_primary(roles.read(word)[0])]
    return told[-1] if told else "train"


def _read(path: Any, place: np.ndarray) -> tuple[bytes, bytes]:
    """(the bytes of an image, b""), or (b"", why they are not there)."""
    name = (path if isinstance(path, bytes) else path.item()).decode()
    offset, size = map(int, place)
    try:
        if "://" in name:
            with tf.io.gfile.GFile(name, "rb") as file:
                file.seek(offset)
                found = file.read(size)
        else:
            with open(name, "rb", buffering=0) as file:
                found = os.pread(file.fileno(), size, offset)
    except OSError as error:  # as one of the way to it, see `gaps.is_of_content`
        raise tf.errors.UnavailableError(None, None, one_line(error)) from error
    if len(found) < size:
        return b"", f"the shard ends at byte {offset + len(found)}, before the image does".encode()
    return found, b""


def _classes(
    labels: Sequence[int | str | None], offset: int, spec: str
) -> tuple[dict[int | str | None, int], list[str] | None]:
    """({label: its number}, names of the classes or None)."""
    known = {label for label in labels if label is not None}
    texts = sorted(label for label in known if isinstance(label, str))
    if texts and len(texts) < len(known):
        raise UserError(
            f"{spec}: some labels are numbers, and some are names, such as {texts[0]!r}"
        )
    if texts:
        return {name: number for number, name in enumerate(texts)}, texts
    low = min((label for label in known if isinstance(label, int)), default=offset)
    if low < offset:
        raise UserError(f"{spec}: labels begin at {low}, so label_offset cannot be {offset}")
    return {label: label - offset for label in known if isinstance(label, int)}, None


def _find(pattern: str, spec: str) -> list[str]:
    try:
        if tf.io.gfile.isdir(pattern):
            found = matching(pattern.rstrip("/") or "/", r".*\.tar")
        else:
            found = [pattern] if tf.io.gfile.exists(pattern) else sorted(tf.io.gfile.glob(pattern))
    except errors() as error:
        raise UserError(f"{spec}: {one_line(error)}") from error
    packed = [file for file in found if file.endswith((".gz", ".tgz"))]
    if packed:
        raise UserError(
            f"{spec}: {packed[0]!r} is compressed: unpack it (gunzip), to read anywhere"
        )
    if not found:
        raise UserError(
            f"{spec}: no shards; expected a pattern such as 'webdataset:/data/train-*.tar', or a "
            "folder of them"
        )
    return found


def _samples(file: str, label_key: str, skip_damaged: bool) -> list[Sample]:
    """What is in a shard: as it was read before, or as its headers say.

    Raises:
      UserError: it is cut short, or no tar file.
    """
    name = hashlib.blake2b(f"{os.path.abspath(file)} {label_key}".encode(), digest_size=8)
    kept_at = os.path.join(cache_dir(), "webdataset", f"{name.hexdigest()}.json")
    stamped = stamp(file)
    kept = _kept(kept_at)
    if kept and kept[0] == stamped:
        return kept[1]
    logging.warning("reading the headers of %s, this once ...", file)
    try:
        samples = _scan(file, label_key)
    except (tarfile.TarError, ValueError, EOFError) as error:
        if kept and skip_damaged:
            logging.warning("%r is damaged: it had %d images", file, len(kept[1]))
            return kept[1]
        hint = (
            "; where it was read whole before, --skip_damaged_shards goes on without what is lost"
        )
        raise UserError(
            f"{file!r} is not a whole, uncompressed tar file ({one_line(error)}): write it again, "
            f"or leave it out{hint}"
        ) from error
    except errors() as error:
        raise UserError(f"{file!r} cannot be read: {one_line(error)}") from error
    rows = [list(sample) for sample in samples]
    content = {"format": _FORMAT, "stamp": stamped, "samples": rows, "crc": _crc(rows)}
    try_write(kept_at, json.dumps(content).encode())
    return samples


def _kept(path: str) -> tuple[list[int], list[Sample]] | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] != _FORMAT or content["crc"] != _crc(content["samples"]):
            return None
        return content["stamp"], [Sample(*row) for row in content["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or damaged: read again


def _crc(rows: list[list[Any]]) -> int:
    return zlib.crc32(json.dumps(rows).encode())


def _scan(file: str, label_key: str) -> list[Sample]:
    """The samples with an image, by a shard's headers."""
    samples: list[Sample] = []
    key: tuple[str, str] | None = None
    image: tarfile.TarInfo | None = None
    label: int | str | None = None

    def close() -> None:
        if image is not None:
            samples.append(Sample(image.name, image.offset_data, image.size, label))

    with tf.io.gfile.GFile(file, "rb") if "://" in file else open(file, "rb") as f:
        with tarfile.open(fileobj=f, mode="r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not dot or not stem:  # no sample, or a hidden file
                    continue
                if (folder, stem) != key:
                    close()
                    key, image, label = (folder, stem), None, None
                ending = ending.lower()
                if image is None and f".{ending}" in FORMATS:
                    image = member
                elif ending == "cls" or (ending == "json" and label is None):
                    content = tar.extractfile(member)
                    text = content.read() if content else b""
                    told = _label(text, ending, label_key)
                    label = label if told is None else told
            close()
        f.seek(end)
        if f.read(512) != _ZEROS:  # what every archive ends with
            raise ValueError(f"it ends after {len(samples)} images, without an end mark")
    return samples


def _label(text: bytes, ending: str, label_key: str) -> int | str | None:
    value: Any = text.decode().strip()
    if ending == "json":
        content = json.loads(value)
        value = content.get(label_key) if isinstance(content, dict) else None
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value in ("", -1):
        return None
    return value

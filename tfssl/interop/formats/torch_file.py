"""Files of torch.save, read without PyTorch: the zip of 1.6 and later, and the format before it.

In both, a pickle describes the tensors, and their numbers lie beside it as raw storages, in one of
which a tensor is a view by offset, sizes and strides.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from typing import Any

import numpy as np

from tfssl.interop.formats import pickles
from tfssl.interop.formats.pickles import Ordered, Refused, Stand
from tfssl.interop.formats.safetensors import bfloat16

# The first object of the older format: a pickle of the number 0x1950a86a20f9469cfc6c.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _View(Stand):
    """A tensor whose storage may not have been read yet."""

    def __init__(
        self, storage: _Storage, offset: Any, shape: Any, strides: Any, *_: Any
    ) -> None:  # and what autograd needs
        self.storage, self.offset = storage, offset
        self.shape, self.strides = shape, strides

    def array(self, name: str) -> np.ndarray:
        try:
            return self._array(name)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise Refused(f"{name!r:.80} is damaged") from error

    def _array(self, name: str) -> np.ndarray:
        numbers = self.storage.numbers
        offset, shape, strides = self.offset, self.shape, self.strides
        integers = isinstance(shape, tuple) and isinstance(strides, tuple)
        if not integers or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise Refused(f"the sizes of {name!r:.80} are no numbers")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if 0 not in shape else 0
        if (
            len(shape) != len(strides)
            or len(shape) > 32
            or last >= max(len(numbers), 1)
            or math.prod(shape) > len(numbers)
        ):
            raise Refused(f"{name!r:.80} lies outside of its storage")
        if not len(numbers) or 0 in shape:
            return np.zeros(shape, numbers.dtype)
        steps = tuple(s * numbers.itemsize for s in strides)
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)


class _Storage:
    """Raw numbers, by key; a part of the file, which is filled in once it is known."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        self._numbers: np.ndarray | None = None

    @property
    def itemsize(self) -> int:
        return 2 if self.kind == "bfloat16" else np.dtype(self.kind).itemsize

    @property
    def numbers(self) -> np.ndarray:
        if self._numbers is None:
            raise Refused("it lacks a storage that its tensors refer to")
        return self._numbers

    def fill(self, raw: bytes | memoryview) -> None:
        if len(raw) != self.count * self.itemsize:
            raise Refused(f"a storage of {self.count} numbers has {len(raw)} bytes")
        halves = self.kind == "bfloat16"
        numbers = np.frombuffer(raw, "<u2" if halves else self.kind)
        self._numbers = bfloat16(numbers) if halves else numbers


class _Storages(dict[str, _Storage]):
    """{key: storage}, as a pickle's persistent identifiers name them."""

    def __call__(self, identifier: Any) -> _Storage:
        # ("storage", type, key, location, count), and in the older format a view of another one
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise Refused("its pickle refers to something that is no storage")
        _, kind, key, _, count, *view = identifier
        texts = type(kind) is str and type(key) is str
        if not texts or kind not in _STORAGES.values() or not _is_number(count):
            raise Refused("its pickle refers to a storage in a way that is not known")
        if view and view[0] is not None:
            raise Refused("it holds views of storages: save it with a newer PyTorch")
        return self.setdefault(key, _Storage(kind, count))


def _is_number(value: Any) -> bool:
    """Whether it is an integer that a file's size or a key could be."""
    return type(value) is int and 0 <= value < 1 << 63


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    **{("torch", name): kind for name, kind in _STORAGES.items()},
}


def read(path: str) -> dict[str, np.ndarray]:
    """{name: tensor}; of a nested dict the names are joined by "/": state_dict/conv1.weight.

    Tensors are views of what was read.

    Raises:
      Refused: it is damaged, or holds more than tensors, numbers and texts.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(len(MAGIC))
    top = _older(path) if start == MAGIC else _zip(path, size)
    found: dict[str, np.ndarray] = {}
    for name, view in pickles.leaves(top, _View):
        found[name] = view.array(name)
    if not found:
        raise Refused("it holds no tensors")
    return found


_BROKEN_ZIP = (  # what zipfile raises of damaged ones
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
)


def _zip(path: str, size: int) -> Any:
    storages = _Storages()
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            stored = sum(info.file_size for info in members.values())
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise Refused("its parts are compressed, which torch.save does not do")
            if len(members) != len(archive.infolist()) or stored > size:
                raise Refused("its parts overlap")
            roots = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
            if len(roots) != 1:
                raise Refused("it is a zip file, but not one of torch.save's: it has no data.pkl")
            root = roots[0][: -len("data.pkl")]
            order = members.get(f"{root}byteorder")
            if order and archive.read(order) != b"little":
                raise Refused("it was written by a big-endian machine")
            top = pickles.load(io.BytesIO(archive.read(roots[0])), _NAMES, storages)
            for key, storage in storages.items():
                member = members.get(f"{root}data/{key}")
                if member is None:
                    raise Refused(f"it lacks the storage {key!r:.40}")
                storage.fill(archive.read(member))
            return top
    except Refused:
        raise
    except _BROKEN_ZIP as error:
        raise Refused(f"it is a damaged zip file ({error})") from error


def _older(path: str) -> Any:
    with open(path, "rb") as f:
        content = f.read()
    file, storages = io.BytesIO(content), _Storages()
    for _ in ("magic number", "protocol", "system"):
        pickles.load(file, {})
    top = pickles.load(file, _NAMES, storages)
    keys = pickles.load(file, {})
    known = isinstance(keys, list) and all(type(key) is str or _is_number(key) for key in keys)
    if not known or sorted(map(str, keys)) != sorted(storages):
        raise Refused("its list of storages is not that of its tensors")
    view, at = memoryview(content), file.tell()
    for key in keys:
        count = int.from_bytes(view[at : at + 8], "little")
        storage = storages[str(key)]
        if count != storage.count:
            raise Refused(f"a storage of {storage.count} numbers says that it has {count}")
        at += 8
        storage.fill(view[at : at + count * storage.itemsize])
        at += count * storage.itemsize
    return top

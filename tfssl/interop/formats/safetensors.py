"""safetensors, read and written: 8 bytes with the header's length, the header in JSON, raw tensors.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from tfssl.interop.formats.pickles import Refused
from tfssl.storage import files

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_LONGEST_HEADER = 100_000_000  # bytes, as the format has it


def read(path: str) -> dict[str, np.ndarray]:
    """{name: tensor}, of bfloat16 as float32; the others are views of the file, read when used.

    Raises:
      Refused: it is damaged.
    """
    header, body = _parts(path)
    return {
        name: _tensor(name, entry, body) for name, entry in header.items() if name != "__metadata__"
    }


def metadata(path: str) -> dict[str, str]:
    """The texts that go with the tensors.

    Raises:
      Refused: the file is damaged.
    """
    texts = _parts(path)[0].get("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise Refused("its metadata are no texts")
    return texts


def _parts(path: str) -> tuple[dict[str, object], np.ndarray]:
    """The header, and the bytes after it."""
    size = os.path.getsize(path)
    if size < 8:
        raise Refused("it ends within its first eight bytes")
    content = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise Refused(f"its header claims {length} bytes, of a file of {size}")
    try:
        header = json.loads(content[8 : 8 + length].tobytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise Refused("its header is no JSON object")
    return header, content[8 + length :]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _tensor(name: str, entry: object, body: np.ndarray) -> np.ndarray:
    try:
        assert isinstance(entry, dict) and isinstance(entry["shape"], list)
        dtype = np.dtype(DTYPES[entry["dtype"]])
        shape, (begin, end) = [int(n) for n in entry["shape"]], map(int, entry["data_offsets"])
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(body):
            raise Refused(f"{name!r:.80} lies outside of the file")
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise Refused(f"{name!r:.80}: {end - begin} bytes are no {entry['dtype']} {shape}")
        raw = body[begin:end]
        values = (np.frombuffer(raw, dtype) if len(raw) else np.zeros(0, dtype)).reshape(shape)
    except Refused:
        raise
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"its entry of {name!r:.80} is damaged") from error
    return bfloat16(values) if entry["dtype"] == "BF16" else values


def bfloat16(halves: np.ndarray) -> np.ndarray:
    """float32 of the upper halves, in uint16."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def write(
    path: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write {name: float32 tensor}, whole or not at all; `metadata`: texts."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, offset = [np.ascontiguousarray(x, "<f4") for x in tensors.values()], 0
    for name, x in zip(tensors, arrays):
        header[name] = {
            "dtype": "F32",
            "shape": list(np.shape(tensors[name])),
            "data_offsets": [offset, offset + x.nbytes],
        }
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors then are aligned

    def fill(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in arrays:
            file.write(x.tobytes())

    files.write_file(path, fill)

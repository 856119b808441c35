"""Files that hold the weights of other projects, each kind read without the library that wrote it.

`read` tells the kind by the content. What a file says of itself is not believed: nothing in it is
run, offsets and sizes are checked against the file's own, and no more is allocated than it has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import numpy as np

from tfssl.errors import UserError, one_line
from tfssl.interop.formats import haiku_pickle, safetensors, tf_checkpoint, torch_file
from tfssl.interop.formats.pickles import Refused

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
      path: as given.
      kind: safetensors, torch, haiku or tensorflow.
      tensors: {name: array}, as they are stored; names of nested dicts are joined by "/".
      size: of the file or files, in bytes.
      sha256: of their content, in hexadecimal.
      texts: what a safetensors file says beside its tensors.
    """

    path: str
    kind: str
    tensors: Tensors
    size: int
    sha256: str
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(path: str) -> Weights:
    """The tensors of a local file: safetensors, PyTorch's (.pth, .pt, .pth.tar: the zip and the
    older format), a pickle of haiku's, or a TensorFlow checkpoint (its prefix, its folder, or a
    SavedModel's).

    Raises:
      UserError: there is no such file, it is none of these, damaged, or would run code.
    """
    path = os.path.expanduser(path)
    try:
        checkpoint = tf_checkpoint.prefix(path)
        if checkpoint:
            kind, (tensors, parts) = "tensorflow", tf_checkpoint.read(checkpoint)
        else:
            kind, parts = _kind(path), [path]
            tensors = _READERS[kind](path)
        size = sum(os.path.getsize(part) for part in parts)
        texts = safetensors.metadata(path) if kind == "safetensors" else {}
        return Weights(path, kind, tensors, size, _digest(parts), texts)
    except Refused as error:
        raise UserError(f"--weights={path}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"--weights={path} cannot be read: {one_line(error)}") from error


_READERS = {
    "safetensors": safetensors.read,
    "torch": torch_file.read,
    "haiku": haiku_pickle.read,
}


def _kind(path: str) -> str:
    with open(path, "rb") as f:
        start = f.read(32)
    if start.startswith(b"PK\x03\x04") or start.startswith(torch_file.MAGIC):
        return "torch"
    if start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":
        return "haiku"
    raise Refused(
        "none of the formats that are read: safetensors, PyTorch's .pth, a haiku pickle, or a "
        "TensorFlow checkpoint"
    )


def _digest(paths: list[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

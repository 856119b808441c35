"""safetensors against the file that its own library wrote."""

import json
import pathlib

import numpy as np
import pytest
from interop_tensors import TENSORS

from tfssl.errors import UserError
from tfssl.interop.formats import safetensors, weights

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "file.safetensors"


def test_reads_what_its_library_wrote():
    found = weights.read(str(FIXTURE))
    assert found.kind == "safetensors" and found.texts == {"who": "safetensors"}
    assert set(found.tensors) == set(TENSORS)
    for key, expected in TENSORS.items():
        assert found.tensors[key].dtype == expected.dtype
        np.testing.assert_array_equal(found.tensors[key], expected)


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "new" / "x.safetensors")
    tensors = {"a": np.float32([[1, 2, 3], [4, 5, 6]]).T, "scalar": np.float32(7)}
    safetensors.write(path, tensors, {"license": "MIT"})
    found = weights.read(path)
    assert found.texts == {"license": "MIT"} and set(found.tensors) == set(tensors)
    for key in tensors:
        np.testing.assert_array_equal(found.tensors[key], tensors[key])


def file(path, header, body=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return str(path)


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        entry(offsets=(0, 25)),
        entry(offsets=(0, 20)),
        entry(offsets=(24, 0)),
        entry(offsets=(-24, 0)),
        entry(offsets=(0, 1 << 70)),
        entry(shape=(1 << 62, 1 << 62)),
        entry(shape=(-2, -3)),
        entry(shape=(0, 1 << 40, 1 << 40, 1 << 40), offsets=(0, 0)),
        entry(shape="23"),
        entry(dtype="O"),
        {"x": [1]},
        [1],
        b"{",
        b"[" * 100_000,
        b'{"x": 1, "x": 1}',
        {"__metadata__": {"a": 1}},
    ],
)
def test_damaged_headers(tmp_path, header):
    with pytest.raises(UserError, match="--weights"):
        weights.read(file(tmp_path / "x", header if isinstance(header, bytes) else header))


def test_lengths_beyond_the_file(tmp_path):
    for length in (1000, 1 << 63):
        with pytest.raises(UserError, match=f"claims {length} bytes"):
            weights.read(file(tmp_path / "x", entry(), length=length))

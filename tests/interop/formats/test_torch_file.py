"""Files that torch.save wrote, and such as nobody should load."""

import io
import os
import pathlib
import pickle
import pickletools
import time
import zipfile

import numpy as np
import pytest
from interop_tensors import BASE, TENSORS

from tfssl.errors import UserError
from tfssl.interop.formats import weights

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("name", ["zip.pth", "older.pth"])
def test_reads_what_pytorch_wrote(name):
    found = weights.read(str(FIXTURES / name))
    assert found.kind == "torch" and found.size == os.path.getsize(FIXTURES / name)
    assert list(found.tensors) == [f"state_dict/{key}" for key in TENSORS]
    for key, expected in TENSORS.items():
        tensor = found.tensors[f"state_dict/{key}"]
        assert tensor.dtype == expected.dtype and tensor.shape == expected.shape
        np.testing.assert_array_equal(tensor, expected)


def archive(path, pickled, storages=(), **how):
    """A zip as torch.save makes it, around any pickle."""
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, raw in dict(storages).items():
            file.writestr(f"archive/data/{key}", raw)
    return str(path)


def refused(path):
    with pytest.raises(UserError) as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Reduced:
    """Is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path):
    pathlib.Path(path).touch()


MARKER = "marker"
HARMFUL = {
    "a shell": lambda path: pickle.dumps({"a": Reduced(os.system, f"touch {path}")}, 2),
    "evaluation": lambda path: pickle.dumps(Reduced(eval, f"open({path!r}, 'w')"), 4),
    "an instance": lambda path: f"(S'touch {path}'\nios\nsystem\n.".encode(),  # INST
    "an object": lambda path: b"(cos\nsystem\nX" + _text(f"touch {path}") + b"o.",  # OBJ
    "a nested getattr": lambda path: pickle.dumps(
        Reduced(getattr, Reduced(__import__, "os"), "system"), 2
    ),
    "an extension": lambda path: b"\x80\x02\x82\x01.",  # EXT1
    "torch's own": lambda path: b"\x80\x02ctorch.hub\nload\nX" + _text("a") + b"\x85R.",
    "a function's attributes": lambda path: (
        b"\x80\x02ccollections\nOrderedDict\n}X" + _text("__init__") + b"K\x01sb."
    ),
}


def _text(text):
    return len(text).to_bytes(4, "little") + text.encode()


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize("form", ["zip", "haiku"])
def test_refuses_what_would_run(tmp_path, kind, form):
    marker = tmp_path / MARKER
    pickled = HARMFUL[kind](marker)
    path = tmp_path / "weights"
    if form == "zip":
        archive(path, pickled)
    else:
        path.write_bytes(pickled if pickled[:1] == b"\x80" else b"\x80\x02" + pickled)
    message = refused(str(path))
    assert "pickle" in message and not marker.exists()
    if kind == "a shell":  # that they would, elsewhere
        pickle.loads(pickled)
        assert marker.exists() and "posix.system" in message


def tensor(storage="0", count=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage"):
    """The pickle of {"x": tensor}, as PyTorch writes it."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            self.write(b"c" + obj.encode() + b"\n")

        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return ("storage", Name(f"torch\n{kind}"), storage, "cpu", count)
            return None

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                return self.write(b"c" + obj.text.encode() + b"\n")
            if isinstance(obj, View):
                self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
                super().save((Storage(), offset, shape, strides, False, {}))
                return self.write(pickle.REDUCE)
            return super().save(obj, save_persistent_id)

    out = io.BytesIO()
    Pickler(out, 2).dump({"x": View()})
    pickletools.dis(out.getvalue(), io.StringIO())  # it is one
    return out.getvalue()


class Storage: ...


class View: ...


class Name:
    def __init__(self, text):
        self.text = text


def test_sizes_are_checked_against_the_file(tmp_path):
    raw = {"0": BASE[:6].tobytes()}
    fine = weights.read(archive(tmp_path / "fine", tensor(), raw))
    np.testing.assert_array_equal(fine.tensors["x"], TENSORS["plain"])
    huge = 1 << 40
    for name, settings in {
        "more numbers than the storage": dict(shape=(3, 3)),
        "an offset beyond it": dict(offset=1),
        "a negative offset": dict(offset=-1),
        "strides beyond it": dict(strides=(4, 1)),
        "negative strides": dict(strides=(-3, 1)),
        "one number as many": dict(shape=(huge, huge), strides=(0, 0)),
        "nothing, of a size that overflows": dict(shape=(0, huge, huge, huge), strides=(0,) * 4),
        "texts for sizes": dict(shape=("a", "b")),
        "a storage that claims more": dict(count=huge),
        "a storage that is not there": dict(storage="1"),
        "objects": dict(kind="Storage"),
    }.items():
        assert refused(archive(tmp_path / name, tensor(**settings), raw)), name
    again = dict(compression=zipfile.ZIP_DEFLATED)
    bomb = {"0": bytes(1 << 24)}
    assert "compressed" in refused(archive(tmp_path / "bomb", tensor(count=1 << 22), bomb, **again))


@pytest.mark.parametrize("name", ["zip.pth", "older.pth", "file.safetensors"])
def test_changed_bytes_are_refused_or_are_other_numbers(tmp_path, name):
    """Nothing else happens than a refusal, and nothing larger than the file comes of it."""
    content, rng, path = (FIXTURES / name).read_bytes(), np.random.default_rng(0), tmp_path / "x"
    refusals = 0
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            found = weights.read(str(path))
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
        else:
            assert max(x.nbytes for x in found.tensors.values()) <= 2 * len(content)
    assert refusals > 30


def test_damaged_files(tmp_path):
    for name in ("zip.pth", "older.pth"):
        content = (FIXTURES / name).read_bytes()
        for length in (20, len(content) // 2, len(content) - 5):
            (tmp_path / name).write_bytes(content[:length])
            assert refused(str(tmp_path / name))
    (tmp_path / "text").write_text("hello")
    assert "none of the formats" in refused(str(tmp_path / "text"))
    assert "No such file" in refused(str(tmp_path / "absent"))
    # Numbers of the memo cost no memory, and a billion laughs are one.
    laughs = b"\x80\x02}" + b"r\xff\xff\xff\xff"
    for _ in range(100):
        laughs += b"}(X" + _text("a") + b"j\xff\xff\xff\xffX" + _text("b") + b"j\xff\xff\xff\xffu"
        laughs += b"r\xff\xff\xff\xff"
    assert "no tensors" in refused(archive(tmp_path / "laughs", laughs + b"."))


# Each instruction pair is a tuple of what was there, twice: 60 of them are 2^60 numbers to whoever
# walks through them, to hash them or to write them down.
BOMB = b"K\x01" + b"2\x86" * 60
DTYPE = b"cnumpy\ndtype\n"
FLOAT = DTYPE + b"X" + _text("f4") + b"\x85R"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
STORAGE = b"(X" + _text("storage")
BOMBS = {
    "an array's type": DTYPE + BOMB + b"\x85R",
    "an array's shape": ARRAY + b"(K\x01" + BOMB + FLOAT + b"\x89" + b"C\x00tb",
    "an array's sizes": ARRAY + b"(K\x01" + BOMB + b"\x85" + FLOAT + b"\x89" + b"C\x00tb",
    "an array's bytes": ARRAY + b"(K\x01)" + FLOAT + b"\x89" + BOMB + b"tb",
    "a byte order": FLOAT + b"K\x01" + BOMB + b"\x86b",
    "an encoding": b"c_codecs\nencode\nX" + _text("a") + BOMB + b"\x86R",
    "SETITEM": b"}" + BOMB + b"K\x01s",
    "SETITEMS": b"}(K\x01K\x01" + BOMB + b"K\x01u",
    "DICT": b"(" + BOMB + b"K\x01d",
    "ADDITEMS": b"\x8f(" + BOMB + b"\x90",
    "FROZENSET": b"(" + BOMB + b"\x91",
    "an OrderedDict": b"ccollections\nOrderedDict\n](" + BOMB + b"K\x01\x86e\x85R",
    "a storage's kind": STORAGE + BOMB + b"X" + _text("0") + b"NK\x01tQ",
    "a storage's key": STORAGE + b"ctorch\nFloatStorage\n" + BOMB + b"NK\x01tQ",
    "a name": BOMB + b"X" + _text("a") + b"\x93",
    "arguments": b"ccollections\nOrderedDict\n" + BOMB + b"R",
    "a long name": b"}X" + _text("a" * 3000) + b"q\x00" + b"}h\x00" * 2000 + b"}" + b"s" * 2001,
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("form", ["zip", "haiku"])
def test_bombs_cost_nothing(tmp_path, kind, form):
    pickled = b"\x80\x04" + BOMBS[kind] + b"."
    path = tmp_path / "weights"
    if form == "zip":
        archive(path, pickled)
    else:
        path.write_bytes(pickled)
    began = time.process_time()
    assert len(refused(str(path))) < 400
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("keys", [b"](" + BOMB + b"e", b"](\x8a\xff" + b"\x7f" * 255 + b"e"])
def test_a_bomb_in_the_list_of_storages(tmp_path, keys):
    """Of the older format; and a number that has no text."""
    content = (FIXTURES / "older.pth").read_bytes()
    begin = content.index(b"\x80\x02]q")  # the last pickle, of keys; what follows are numbers
    (tmp_path / "x.pth").write_bytes(content[:begin] + b"\x80\x02" + keys + b".")
    began = time.process_time()
    assert "list of storages" in refused(str(tmp_path / "x.pth"))
    assert time.process_time() - began < 0.5


def test_keys_of_numbers_and_bytes_are_fine(tmp_path):
    """As optimizers have them beside the weights."""
    raw = {"0": BASE[:6].tobytes()}
    pickled = tensor()
    for key in (b"K\x03", b"C\x01a", b"G" + bytes(8), b"\x88", b"N"):
        pickled = pickled[:-1] + key + b"K\x01s."
    found = weights.read(archive(tmp_path / "x", pickled, raw))
    assert list(found.tensors) == ["x"]

"""webdataset:GLOB against the archives that tarfile writes."""

import io
import json
import tarfile

import pytest
import tensorflow as tf

from tfssl.data import open_source, pipeline
from tfssl.data.gaps import is_of_content
from tfssl.data.sources import identity, webdataset
from tfssl.errors import UserError
from tfssl.testing import check_source


@pytest.fixture
def write(tmp_path, cache):
    """Function (name of a shard, [(file, its bytes)]) -> its path."""

    def write(name, members):
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for file, content in members:
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def shards(write, encode, tmp_path):
    """Twelve images in two shards to train on, and two to test on; the pattern of all."""
    number = iter(range(20))

    def sample(i):
        image = encode(i, ".png" if i % 2 else ".jpg")
        told = (
            ("cls", str(i % 3).encode())
            if i % 4
            else ("json", json.dumps({"label": i % 3}).encode())
        )
        ending = "png" if i % 2 else "JPG"
        return [(f"a.b/{i:04}.{told[0]}", told[1]), (f"a.b/{i:04}.{ending}", image),
                (f"a.b/{i:04}.txt", b"a caption")]  # fmt: skip

    for name, count in (
        ("x-train-000000.tar", 7),
        ("x-train-000001.tar", 5),
        ("x-test-000.tar", 2),
    ):
        write(name, [m for _ in range(count) for m in sample(next(number))] + [("README", b"hi")])
    return f"webdataset:{tmp_path}/x-*.tar"


def test_it_keeps_the_promises_of_a_source(shards):
    source = open_source(shards)
    check_source(source)
    assert (source.num_examples, source.num_classes, source.class_names) == (12, 3, None)


def test_images_labels_and_splits(shards, encode, tmp_path):
    found = {}
    for split, count in (("train", 12), ("test", 2), ("train[:25%]+test", 5)):
        source = open_source(shards, split)
        assert source.num_examples == count
        for example in source.records().map(source.fetch).as_numpy_iterator():
            name = source.name(int(example["index"]))
            found[name] = int(name.split("/")[1][:4]), example["image"], int(example["label"])
    assert len(found) == 14
    for name, (i, image, label) in found.items():
        assert image == encode(i, ".png" if i % 2 else ".jpg") and label == i % 3, name
    assert f"a.b/0007.png of {tmp_path}/x-train-000001.tar" in found


def test_headers_are_read_once(shards, monkeypatch, write, encode):
    one = identity.of(open_source(shards), sample=True)
    monkeypatch.setattr(webdataset, "_scan", None)
    assert identity.of(open_source(shards), sample=True) == one
    monkeypatch.undo()
    write("x-train-000001.tar", [("0.png", encode(99)), ("0.cls", b"7")])
    other = open_source(shards)
    assert (other.num_examples, other.num_classes) == (8, 8)
    assert identity.differences(one, identity.of(other, sample=True))


def test_names_of_classes(write, encode):
    path = write("c.tar", [("0.jpg", encode(0)), ("0.cls", b"dog\n"), ("1.jpg", encode(1)),
                           ("1.json", b'{"kind": "cat"}'), ("2.jpg", encode(2))])  # fmt: skip
    source = open_source(f"webdataset:{path}")
    labels = [int(source.fetch(r)["label"]) for r in source.records()]
    assert (source.class_names, labels) == (["dog"], [0, -1, -1])
    source = open_source(f"webdataset:{path}", label_key="kind")
    labels = [int(source.fetch(r)["label"]) for r in source.records()]
    assert (source.class_names, labels) == (["cat", "dog"], [1, 0, -1])


@pytest.mark.parametrize("part", [0.5, 0.97])
def test_a_shard_that_is_cut_short(shards, tmp_path, part):
    """Told as of record files: refused; where it was read whole before, its lost images may be
    replaced, or left out of an evaluation."""
    path = tmp_path / "x-train-000000.tar"
    whole = path.read_bytes()
    open_source(shards)
    cut = whole[: int(part * len(whole)) // 512 * 512 - 100] if part < 0.9 else whole.rstrip(b"\0")
    path.write_bytes(cut)
    with pytest.raises(UserError, match=r"x-train-000000.tar' is not a whole.*skip_damaged") as e:
        open_source(shards)
    assert "\n" not in str(e.value)
    source = open_source(shards, skip_damaged_shards=True)
    assert source.num_examples == 12
    batches = list(pipeline.evaluation_crops(source, 4, 4, 4).as_numpy_iterator())
    left = sum(int(batch["weight"].sum()) for batch in batches)
    assert left < 12 if part < 0.9 else left == 12


def test_what_is_no_shard(write, tmp_path, encode):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"not a tar" * 100)
    write("none.tar", [("readme.txt", b"no image")])
    write(
        "mixed.tar", [("0.jpg", encode(0)), ("0.cls", b"1"), ("1.jpg", encode(1)), ("1.cls", b"x")]
    )
    for name, reason in (
        ("x.tar.gz", "is compressed"),
        ("text.tar", "not a whole, uncompressed tar file"),
        ("nowhere*.tar", "no shards"),
        ("none.tar", "none|no images"),
        ("mixed.tar", "some labels are numbers, and some are names, such as 'x'"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            open_source(f"webdataset:{tmp_path}/{name}")
        assert "\n" not in str(error.value)


def test_splits_by_name():
    names = {"imagenet-train-000012.tar": "train", "val_3.tar": "val", "shard-0.tar": "train",
             "cc3m-validation-{00}.tar": "validation", "00000.tar": "train"}  # fmt: skip
    assert {name: webdataset.split_of(f"/data/{name}") for name in names} == names


def test_a_missing_shard_is_no_property_of_its_images(shards, tmp_path):
    source = open_source(shards)
    record = next(iter(source.records()))
    (tmp_path / "x-train-000000.tar").unlink()
    with pytest.raises(tf.errors.OpError) as error:
        source.fetch(record)
    assert not is_of_content(error.value)

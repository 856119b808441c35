"""Images with boxes in Pascal VOC's layout."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfssl
from tfssl.errors import UserError
from tfssl.testing import check_source

OBJECTS = {  # image: (class, xmin, ymin, xmax, ymax, difficult); numbers of pixels count from 1
    "a": [("dog", 1, 1, 20, 10, 0), ("cat", 11, 6, 12, 8, 1)],
    "b": [],
    "c": [("dog", 5, 5, 5, 9, 0), ("bird", 3, 2, 10, 9, 0)],  # the first has no area
    "d": [("cat", 1, 1, 4, 4, 0)],
}


def write(root, lists):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, objects in OBJECTS.items():
        Image.new("RGB", (20, 10), (40 * ord(name) % 255, 9, 9)).save(
            root / f"JPEGImages/{name}.jpg"
        )
        text = "".join(
            f"<object><name>{c}</name><difficult>{hard}</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{r}</xmax>"
            f"<ymax>{b}</ymax></bndbox></object>"
            for c, x, y, r, b, hard in objects
        )
        size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    for split, names in lists.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def root(tmp_path):
    return write(
        tmp_path, {"train": ["a", "b", "c"], "val": ["d"], "dog_train": ["a  1", "b -1", "c 0"]}
    )


def test_boxes_are_parts_of_the_sides(root, caplog):
    with caplog.at_level(logging.WARNING):
        source = tfssl.open_source(f"boxes:{root}", "train")
    assert source.degenerate == 1 and "left out 1 boxes without area" in caplog.text
    assert (
        source.class_names == ["bird", "cat", "dog"]
        and source.num_classes is None
        and source.provides == ("boxes",)
    )
    a, b, c = list(source.records().map(source.fetch))
    np.testing.assert_allclose(a["boxes"], [[0, 0, 1, 1], [0.5, 0.5, 0.8, 0.6]], atol=1e-6)
    assert a["classes"].numpy().tolist() == [2, 1] and a["difficult"].numpy().tolist() == [
        False,
        True,
    ]
    assert b["boxes"].shape == (0, 4) and b["classes"].shape == (0,)
    np.testing.assert_allclose(c["boxes"], [[0.1, 0.1, 0.9, 0.5]], atol=1e-6)
    assert c["classes"].numpy().tolist() == [0] and int(c["label"]) == -1
    assert tf.io.decode_image(c["image"]).shape == (10, 20, 3) and source.name(2).endswith("c.jpg")


def test_splits_and_order(root):
    source = tfssl.open_source(f"boxes:{root}", "val+train[1:]")
    check_source(source)
    assert [source.name(i)[-5] for i in range(source.num_examples)] == ["d", "b", "c"]
    shuffled = source.records(seed=0).take(6).map(source.fetch)
    counts = [len(example["boxes"]) for example in shuffled]
    assert sorted(counts) == [0, 0, 1, 1, 1, 1]
    with pytest.raises(UserError, match="test"):
        tfssl.open_source(f"boxes:{root}", "test")


def test_what_is_not_there(root, tmp_path):
    with pytest.raises(UserError, match="no folder ImageSets/Main"):
        tfssl.open_source(f"boxes:{tmp_path / 'JPEGImages'}")
    (root / "Annotations/b.xml").write_text("<annotation><size>")
    with pytest.raises(UserError, match="b.xml' is no annotation of Pascal VOC"):
        tfssl.open_source(f"boxes:{root}")
    (root / "Annotations/b.xml").write_text(
        "<annotation><size><width>3</width></size></annotation>"
    )
    with pytest.raises(
        UserError, match="b.xml' is no annotation of Pascal VOC: no size/height in annotation"
    ):
        tfssl.open_source(f"boxes:{root}")
    (root / "Annotations/b.xml").unlink()
    with pytest.raises(UserError, match="b.xml' is missing: each image of a list needs its boxes"):
        tfssl.open_source(f"boxes:{root}")
    for file in (root / "ImageSets/Main").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no lists of images"):
        tfssl.open_source(f"boxes:{root}")


def test_glyphs_have_a_box_each():
    source = tfssl.open_source("glyphs:20", "train")
    assert "boxes" in source.provides
    for example in source.records().map(source.fetch):
        top, left, bottom, right = np.round(example["boxes"].numpy()[0] * 32).astype(int)
        rows, columns = np.nonzero(example["mask"].numpy())
        assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (
            top,
            left,
            bottom,
            right,
        )
        assert example["classes"].numpy().tolist() == [int(example["label"])]

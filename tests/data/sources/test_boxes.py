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


def annotate(root, name, *boxes, size=(20, 10), kind="dog"):
    sides = "".join(f"<{s}>{n}</{s}>" for s, n in zip(("width", "height"), size))
    objects = "".join(
        f"<object><name>{kind}</name><bndbox>"
        + "".join(f"<{end}>{n}</{end}>" for end, n in zip(("xmin", "ymin", "xmax", "ymax"), box))
        + "</bndbox></object>"
        for box in boxes
    )
    text = f"<annotation><size>{sides}</size>{objects}</annotation>"
    (root / f"Annotations/{name}.xml").write_text(text)


def test_boxes_outside_of_the_image_are_left_out(root, caplog):
    """Nothing could find them: a class of such alone had an AP of 0."""
    outside = [(21, 1, 30, 5), (-9, 1, 0, 5), (1, 11, 5, 20), (1, -5, 5, 0)]
    annotate(root, "d", *outside, (20, 10, 99, 99), (-5, 3, 1, 4))
    with caplog.at_level(logging.WARNING):
        source = tfssl.open_source(f"boxes:{root}", "val")
    assert source.degenerate == 4 and "left out 4 boxes without area in the image" in caplog.text
    (example,) = source.records().map(source.fetch)
    expected = [[0.9, 0.95, 1, 1], [0.2, 0, 0.4, 0.05]]  # the last pixel, and a half of the first
    np.testing.assert_allclose(example["boxes"], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(0, 0), (20, -10), ("nan", 10), (20, "inf")])
def test_sizes_that_no_image_has(root, size):
    annotate(root, "d", (1, 1, 4, 4), size=size)
    line = f"d.xml' is no annotation of Pascal VOC: its size is {size[0]} x {size[1]}$"
    with pytest.raises(UserError, match=line):
        tfssl.open_source(f"boxes:{root}", "val")


@pytest.mark.parametrize("left", ["-inf", "inf", "nan"])
def test_boxes_without_an_end(root, left):
    annotate(root, "d", (left, 1, 4, 4))
    with pytest.raises(UserError, match=rf"d.xml' .* a box is from \({left}, 1\) to \(4, 4\)$"):
        tfssl.open_source(f"boxes:{root}", "val")


def test_white_space_in_the_name_of_a_class(root):
    annotate(root, "d", (1, 1, 4, 4), kind="\n  polar\n  bear\n")
    assert tfssl.open_source(f"boxes:{root}").class_names == ["bird", "cat", "dog", "polar bear"]


def test_an_image_that_a_list_names_twice_counts_once(root):
    (root / "ImageSets/Main/train.txt").write_text("c\na\nc\nb\nc\n")
    source = tfssl.open_source(f"boxes:{root}", "train+val")
    assert [source.name(i)[-5] for i in range(source.num_examples)] == ["c", "a", "b", "d"]
    assert source.notes() == [
        f"boxes:{root}: named more than once in train.txt, and counted once: c"
    ]


def test_lists_in_other_encodings(root):
    for coding in ("utf-8-sig", "utf-16"):
        (root / "ImageSets/Main/val.txt").write_text("d\r\n", encoding=coding)
        if coding == "utf-8-sig":  # as Notepad writes it
            assert tfssl.open_source(f"boxes:{root}", "val").name(0).endswith("/d.jpg")
    with pytest.raises(UserError, match="val.txt' is not text in UTF-8: save it as such$"):
        tfssl.open_source(f"boxes:{root}", "val")


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

"""Images with masks: both layouts, palettes, classes, what is not there."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfssl
from tfssl.errors import UserError
from tfssl.testing import check_source


def camvid(root, counts=(("train", 5), ("test", 3))):
    for split, count in counts:
        for i in range(count):
            _write(root / split / f"{i}.png", root / f"{split}annot" / f"{i}.png", i)
    return root


def voc(root):
    for i in range(4):
        _write(
            root / "JPEGImages" / f"im{i}.jpg",
            root / "SegmentationClass" / f"im{i}.png",
            i,
            palette=True,
        )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("im0\nim2\n")
    (lists / "val.txt").write_text("im3\n")
    return root


def mask(i):
    its = np.full([12, 16], i % 3, np.uint8)
    its[:2] = 255
    return its


def _write(image, its_mask, i, palette=False):
    for path in (image, its_mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full([12, 16, 3], 60 * (i % 3) + 20, np.uint8)
    Image.fromarray(pixels).save(image)
    picture = Image.fromarray(mask(i), "L")
    if palette:
        picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    picture.save(its_mask)


@pytest.mark.parametrize(
    "layout,split,numbers",
    [(camvid, "train", range(5)), (camvid, "test", range(3)), (voc, "train", (0, 2))],
)
def test_layouts(layout, split, numbers, tmp_path):
    source = tfssl.open_source(f"masks:{layout(tmp_path)}", split)
    if split == "train":
        check_source(source)
    assert source.num_examples == len(numbers) and source.num_classes is None
    for example, i in zip(source.records().map(source.fetch), numbers):
        np.testing.assert_array_equal(example["mask"], mask(i))
        assert (
            tf.io.decode_image(example["image"]).shape == (12, 16, 3)
            and int(example["label"]) == -1
        )
    assert source.name(0).endswith(("0.png", "im0.jpg"))


def test_slices_and_names(tmp_path):
    (camvid(tmp_path) / "classes.txt").write_text("sky\nroad\ntree\n")
    source = tfssl.open_source(f"masks:{tmp_path}", "train[1:3]+test[:1]")
    assert source.num_examples == 3 and source.class_names == ["sky", "road", "tree"]
    assert [source.name(i).split("/")[-2:] for i in range(3)] == [
        ["train", "1.png"],
        ["train", "2.png"],
        ["test", "0.png"],
    ]


def test_lists_in_other_encodings(tmp_path):
    (voc(tmp_path) / "classes.txt").write_bytes("\ufeffcafé\r\nroad\r\n".encode())
    names = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("im2\r\n", encoding="utf-8-sig")
    source = tfssl.open_source(f"masks:{tmp_path}")
    assert source.name(0).endswith("/im2.jpg") and source.class_names == ["café", "road"]
    (tmp_path / "classes.txt").write_text("café\n", encoding="latin-1")
    with pytest.raises(UserError, match="classes.txt' is not text in UTF-8: save it as such$"):
        tfssl.open_source(f"masks:{tmp_path}")
    names.write_text("im2\n", encoding="utf-16")
    with pytest.raises(UserError, match="train.txt' is not text in UTF-8: save it as such$"):
        tfssl.open_source(f"masks:{tmp_path}")


def test_what_is_no_mask_is_passed_over(tmp_path):
    camvid(tmp_path)
    Image.fromarray(np.zeros([12, 16, 3], np.uint8)).save(tmp_path / "trainannot" / "1.png")
    (tmp_path / "trainannot" / "3.png").write_bytes(b"\x89PNG")
    source = tfssl.open_source(f"masks:{tmp_path}", "train")
    assert len(list(source.records().map(source.fetch).ignore_errors())) == 3


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no such folder: '/no/where'"):
        tfssl.open_source("masks:/no/where")
    with pytest.raises(UserError, match="no images with masks: expected SPLIT and SPLITannot"):
        tfssl.open_source(f"masks:{tmp_path}")
    with pytest.raises(UserError, match="val"):
        tfssl.open_source(f"masks:{camvid(tmp_path)}", "val")

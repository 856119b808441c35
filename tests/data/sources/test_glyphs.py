import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.data.sources import glyphs
from tfssl.errors import UserError
from tfssl.testing import check_source


@pytest.fixture(scope="module")
def drawn():
    return glyphs.draw(400)


def test_shapes_and_types(drawn):
    assert {key: (value.shape, value.dtype.name) for key, value in drawn.items()} == {
        "image": ((400, 32, 32, 3), "uint8"),
        "label": ((400,), "int64"),
        "box": ((400, 4), "float32"),
        "mask": ((400, 32, 32), "uint8"),
    }


def test_classes_are_balanced_in_every_slice(drawn):
    assert np.bincount(drawn["label"]).tolist() == [40] * 10
    assert np.bincount(drawn["label"][130:230]).tolist() == [10] * 10


def test_boxes_touch_the_masks(drawn):
    for box, mask in zip(drawn["box"], drawn["mask"]):
        rows, columns = np.nonzero(mask)
        assert set(np.unique(mask)) == {0, 1}
        expected = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        np.testing.assert_allclose(box * 32, expected, atol=1e-4)


def test_letters_stand_out(drawn):
    """The mean luma of a letter's pixels differs from that of the pixels just around it, in all but
    a few images."""
    luma = drawn["image"] @ np.array([0.299, 0.587, 0.114])
    differences = []
    for image, mask in zip(luma, drawn["mask"].astype(bool)):
        near = np.zeros_like(mask)
        for shift in range(-2, 3):
            for axis in (0, 1):
                near |= np.roll(mask, shift, axis)
        differences.append(abs(image[mask].mean() - image[near & ~mask].mean()))
    assert np.mean(np.array(differences) > 25) > 0.95


def test_masks_tell_the_letters_apart(drawn):
    """Nearest neighbors among the masks, cut out and scaled, find the letter: they are drawn
    upright and whole."""
    cut = []
    for box, mask in zip(drawn["box"], drawn["mask"]):
        y, x, bottom, right = np.rint(box * 32).astype(int)
        cut.append(
            tf.image.resize(mask[y:bottom, x:right, None].astype(np.float32), (12, 12))
            .numpy()
            .ravel()
        )
    cut, label = np.array(cut), drawn["label"]
    distance = ((cut[300:, None] - cut[None, :300]) ** 2).sum(-1)
    assert np.mean(label[distance.argmin(1)] == label[300:]) > 0.9


def test_places_sizes_and_backgrounds_vary(drawn):
    box = drawn["box"]
    height, centre = box[:, 2] - box[:, 0], (box[:, :2] + box[:, 2:]) / 2
    assert height.min() < 0.5 and height.max() > 0.7
    assert centre.min() < 0.3 and centre.max() > 0.7
    corners = drawn["image"][:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(400, -1).astype(float)
    assert len(np.unique(corners, axis=0)) > 390


def test_backgrounds_are_turned_at_random():
    """In photographs the sky is above; in these backgrounds no side is brighter than the opposite
    one."""
    images = glyphs.draw(2000, size=16)["image"].astype(float).mean(-1)
    vertical = images[:, :4].mean((1, 2)) - images[:, -4:].mean((1, 2))
    horizontal = images[:, :, :4].mean((1, 2)) - images[:, :, -4:].mean((1, 2))
    for difference in (vertical, horizontal):
        assert abs(difference.mean()) < 4 * difference.std() / 2000**0.5


def test_twelve_text_fonts_and_ten_letters():
    names = [os.path.basename(font) for font in glyphs._fonts()]
    assert len(names) == 12 and not any("Display" in name for name in names)
    assert len(set(glyphs.LETTERS)) == 10 and not set(glyphs.LETTERS) & set(
        "HINOSXZ"
    )  # half a turn maps these to themselves


def test_more_images_begin_with_the_same_ones(drawn):
    few = glyphs.draw(20)
    assert all(np.array_equal(few[key], drawn[key][:20]) for key in few)


def test_streams_and_seeds_are_independent(drawn):
    for other in (glyphs.draw(50, stream=1), glyphs.draw(50, seed=1)):
        same = [np.array_equal(a, b) for a, b in zip(other["image"], drawn["image"])]
        assert not any(same) and not np.array_equal(other["box"], drawn["box"][:50])


@pytest.mark.parametrize("size", [16, 47, 96])
def test_every_letter_fits_at_every_size(size):
    image = glyphs.draw(120, size)
    assert image["image"].shape == (120, size, size, 3)
    assert (image["box"] >= 0).all() and (image["box"] <= 1).all()


def test_source():
    source = tfssl.open_source("glyphs:300", "train[:200]")
    assert (source.num_examples, source.num_classes, source.class_names) == (
        200,
        10,
        list("AEFGJKPRTY"),
    )
    expected = glyphs.draw(200)
    for example in source.records(seed=0).map(source.fetch).take(200).as_numpy_iterator():
        (example["box"],), (label,) = example.pop("boxes"), example.pop("classes")
        assert label == example["label"]
        for key, value in expected.items():
            np.testing.assert_array_equal(example[key], value[example["index"]])
    assert source.records().map(source.fetch).element_spec["image"].shape == (32, 32, 3)
    assert source.name(7) == "glyph 7" and source.random_access
    check_source(source)
    source.check_readable()


def test_sizes_of_splits(monkeypatch):
    monkeypatch.setattr(glyphs, "draw", lambda count, size, stream: _blank(count, size))
    assert tfssl.open_source("glyphs").num_examples == 6000
    assert tfssl.open_source("glyphs:50").num_examples == 50
    assert tfssl.open_source("glyphs:50", "test").num_examples == 2000
    assert tfssl.open_source("glyphs:50", "train[50%:]+test[:10]", image_size=20).num_examples == 35


def _blank(count, size):
    shapes = {
        "image": (count, size, size, 3),
        "label": (count,),
        "box": (count, 4),
        "mask": (count, size, size),
    }
    return {key: np.zeros(shape, np.uint8) for key, shape in shapes.items()}


def test_drawn_once_and_again_if_the_cache_is_damaged(cache, monkeypatch):
    calls = []
    real = glyphs.draw
    monkeypatch.setattr(
        glyphs, "draw", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs)
    )

    def first():
        source = tfssl.open_source("glyphs:20")
        return next(source.records().map(source.fetch).as_numpy_iterator())["image"]

    image = first()
    np.testing.assert_array_equal(first(), image)
    assert len(calls) == 1
    (file,) = (cache / "glyphs").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(first(), image)
        assert file.read_bytes() == whole
    assert len(calls) == 4
    tfssl.open_source("glyphs:20", image_size=24)
    assert len(calls) == 5


def test_without_a_place_to_keep_them(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path / "file" / "cache"))
    assert tfssl.open_source("glyphs:20").num_examples == 20
    source = tfssl.open_source("glyphs:20", data_dir=str(tmp_path / "mine"))
    assert (
        source.num_examples == 20
        and len(list(pathlib.Path(tmp_path / "mine" / "glyphs").iterdir())) == 1
    )


@pytest.mark.parametrize(
    "spec, split, size, message",
    [
        ("glyphs:many", "train", 32, "glyphs:20000"),
        ("glyphs:0", "train", 32, "glyphs:20000"),
        ("glyphs:-5", "train", 32, "glyphs:20000"),
        ("glyphs", "val", 32, "no split 'val'; it has train .6000 examples., test .2000 examples."),
        ("glyphs", "train", 8, "image_size must be 16"),
    ],
)
def test_user_errors(spec, split, size, message):
    with pytest.raises(UserError, match=message):
        tfssl.open_source(spec, split, image_size=size)

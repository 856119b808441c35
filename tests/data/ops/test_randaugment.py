"""tfssl.data.ops.randaugment against Pillow."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from tfssl.data.ops import randaugment
from tfssl.errors import UserError

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def photograph():
    """uint8 [60, 80, 3]"""
    return load_sample_images().images[1][100:160, 200:280]


def affine(image, matrix, fill=FILL):
    return image.transform(
        image.size, Image.AFFINE, matrix, resample=Image.BILINEAR, fillcolor=fill
    )


def smooth_blend(image, factor):
    return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


# name -> level, its sign, Pillow's way, and by how many levels single pixels may be off
BY_PILLOW = {
    "autocontrast": (0.7, 1, ImageOps.autocontrast, 0),
    "equalize": (0.7, 1, ImageOps.equalize, 0),
    "invert": (0.7, 1, ImageOps.invert, 0),
    "rotate": (0.7, -1, lambda x: x.rotate(-21, resample=Image.BILINEAR, fillcolor=FILL), 1),
    "posterize": (0.8, 1, lambda x: ImageOps.posterize(x, 3), 0),
    "solarize": (0.5, 1, lambda x: ImageOps.solarize(x, 128), 0),
    "solarize_add": (0.5, 1, lambda x: x.point(lambda v: min(255, v + 55) if v < 128 else v), 0),
    "color": (0.9, 1, lambda x: ImageEnhance.Color(x).enhance(1.72), 1),
    "contrast": (0.2, 1, lambda x: ImageEnhance.Contrast(x).enhance(0.46), 1),
    "brightness": (0.8, 1, lambda x: ImageEnhance.Brightness(x).enhance(1.54), 1),
    "sharpness": (0.9, 1, lambda x: ImageEnhance.Sharpness(x).enhance(1.72), 2),
    "shear_x": (0.5, 1, lambda x: affine(x, (1, 0.15, 0, 0, 1, 0)), 1),
    "shear_y": (0.5, -1, lambda x: affine(x, (1, 0, 0, -0.15, 1, 0)), 1),
    "translate_x": (0.5, 1, lambda x: affine(x, (1, 0, 0.225 * 80, 0, 1, 0)), 1),
    "translate_y": (0.5, -1, lambda x: affine(x, (1, 0, 0, 0, 1, -0.225 * 60)), 1),
}


# CLSA's ranges, at its levels 1 to 9
BLACK = (0, 0, 0)
CLSA = {
    "brightness": (0.9, 1, lambda x: ImageEnhance.Brightness(x).enhance(0.86), 1),
    "color": (0.1, 1, lambda x: ImageEnhance.Color(x).enhance(0.14), 1),
    "contrast": (0.2, 1, lambda x: ImageEnhance.Contrast(x).enhance(0.23), 1),
    "sharpness": (0.5, 1, lambda x: ImageEnhance.Sharpness(x).enhance(0.5), 2),
    "posterize": (0.2, 1, lambda x: ImageOps.posterize(x, 4), 0),
    "rotate": (0.7, -1, lambda x: x.rotate(-21, resample=Image.BILINEAR, fillcolor=BLACK), 1),
    "shear_x": (0.5, 1, lambda x: affine(x, (1, 0.15, 0, 0, 1, 0), BLACK), 1),
    "shear_y": (0.9, -1, lambda x: affine(x, (1, 0, 0, -0.27, 1, 0), BLACK), 1),
    "solarize": (0.7, 1, lambda x: ImageOps.solarize(x, 256 - 179), 0),
    "translate_x": (0.5, 1, lambda x: affine(x, (1, 0, 0.15 * 80, 0, 1, 0), BLACK), 1),
    "translate_y": (0.5, -1, lambda x: affine(x, (1, 0, 0, 0, 1, -0.15 * 60), BLACK), 1),
}
# timm's increasing ops, where they differ from InfoMin's: each changes more at a greater level
INCREASING = {
    "posterize": (0.9, 1, lambda x: ImageOps.posterize(x, 1), 0),
    "solarize": (0.9, 1, lambda x: ImageOps.solarize(x, 256 - 230), 0),
    "color": (0.9, -1, lambda x: ImageEnhance.Color(x).enhance(0.19), 1),
    "contrast": (0.9, 1, lambda x: ImageEnhance.Contrast(x).enhance(1.81), 1),
    "brightness": (0.9, -1, lambda x: ImageEnhance.Brightness(x).enhance(0.19), 1),
    "sharpness": (0.9, 1, lambda x: ImageEnhance.Sharpness(x).enhance(1.81), 2),
}
BY_POOL = {"infomin": BY_PILLOW, "increasing": INCREASING, "clsa": CLSA}
CASES = [(pool, name) for pool, ops in BY_POOL.items() for name in ops]


def test_all_ops_are_compared():
    assert set(randaugment.OPS) == set(BY_PILLOW)
    assert set(randaugment.CLSA_OPS) - set(CLSA) == {"autocontrast", "equalize", "identity"}
    assert len(randaugment.CLSA_OPS) == 14
    increasing = randaugment.INCREASING_OPS
    assert list(increasing) == list(randaugment.OPS)
    assert {name for name in increasing if increasing[name] != randaugment.OPS[name]} == {
        *INCREASING
    }


@pytest.mark.parametrize("pool, name", CASES)
def test_ops_are_pillows(pool, name, photograph):
    level, sign, by_pillow, tolerance = BY_POOL[pool][name]
    picture = photograph // 2 + 30 if name == "autocontrast" else photograph
    want = np.array(by_pillow(Image.fromarray(picture)), float)
    level = tf.constant(level)
    got = tf.function(randaugment.POOLS[pool][name])(
        tf.constant(picture, tf.float32), level, sign * level
    ).numpy()
    assert got.shape == picture.shape and got.min() >= 0 and got.max() <= 255
    # At the border Pillow does not interpolate with the fill, and its smoothing is one level off in
    # places.
    assert np.mean(np.abs(got - want) > tolerance) < 0.03 and np.median(np.abs(got - want)) <= min(
        tolerance, 0.5
    )
    np.testing.assert_array_equal(got, np.round(got))
    assert np.abs(want - picture).max() > 10


@pytest.mark.parametrize("numbers", [(0.0, 0.1, 0.7), (0.5, 0.95, 0.999), (0.99, 0.5, 0.3)])
def test_pirls_photometric_step_is_pillows(numbers, photograph):
    """Posterize to 4 to 8 bits, sharpness of 0.1 to 1.9, solarize from 0 to 256, autocontrast:
    VISSL's order and ranges."""
    bits, factor, threshold = 4 + int(5 * numbers[0]), 0.1 + 1.8 * numbers[1], int(257 * numbers[2])
    want = ImageOps.posterize(Image.fromarray(photograph), bits)
    want = ImageEnhance.Sharpness(want).enhance(factor)
    want = np.asarray(ImageOps.autocontrast(ImageOps.solarize(want, threshold))).astype(int)
    got = randaugment.enhance(tf.constant(photograph / 255.0), tf.constant(numbers)).numpy() * 255
    np.testing.assert_allclose(got, want, atol=1 + 1e-4)
    assert (np.abs(got - want) > 0.5).mean() < 0.01 and np.abs(want - photograph).max() > 10


def test_a_flat_channel_stays():
    flat = np.full([8, 8, 3], 70, np.float32)
    for op in (randaugment.autocontrast, randaugment.equalize):
        np.testing.assert_array_equal(op(tf.constant(flat)), flat)


def for_each(numbers, function):
    data = tf.data.Dataset.from_tensor_slices(numbers).map(function)
    return next(iter(data.batch(len(numbers)))).numpy()


def test_half_of_the_layers_act_and_all_ops_come(photograph, monkeypatch):
    """With ops that add 1, 16, 256 ... the sum tells which ones ran."""
    ops = {str(i): (lambda x, level, signed, i=i: x + 17.0**i) for i in range(5)}
    monkeypatch.setitem(randaugment.POOLS, "infomin", ops)
    numbers = tf.random.stateless_uniform([3000, 2, randaugment.DRAWS], [3, 4])
    image = tf.zeros([1, 1, 3], tf.float64)
    sums = for_each(numbers, lambda n: randaugment.rand_augment(image, n)[0, 0, 0])
    sums = np.round(sums * 255).astype(int)
    ran = np.array([[total // 17**i % 17 for i in range(5)] for total in sums])
    assert ran.max() == 2
    assert scipy.stats.chisquare(ran.sum(0)).pvalue > 1e-3
    assert abs(ran.sum() / 6000 - 0.5) < 0.03


def test_magnitudes_are_normal_and_cut(monkeypatch):
    tell = {"tell": lambda x, level, signed: x * 0 + tf.stack([level, signed, 0.0]) * 255}
    for pool in randaugment.POOLS:
        monkeypatch.setitem(randaugment.POOLS, pool, tell)
    numbers = tf.random.stateless_uniform([4000, 1, randaugment.DRAWS], [3, 4])
    told = for_each(
        numbers, lambda n: randaugment.rand_augment(tf.ones([1, 1, 3]), n, 8.0, 0.5)[0, 0]
    )
    told = told[told[:, 2] == 0]
    level, signed = 10 * told[:, 0], 10 * told[:, 1]
    assert scipy.stats.kstest((level - 8) / 0.5, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.abs(signed), level)
    assert abs((signed > 0).mean() - 0.5) < 0.05
    told = for_each(
        numbers, lambda n: randaugment.rand_augment(tf.ones([1, 1, 3]), n, 10.0, 0.5)[0, 0]
    )
    told = told[told[:, 2] == 0, 0] * 10
    assert told.max() == 10 and 0.4 < (told == 10).mean() < 0.6
    told = for_each(
        numbers, lambda n: randaugment.rand_augment(tf.ones([1, 1, 3]), n, pool="clsa")[0, 0]
    )
    told = told[told[:, 2] == 0, 0] * 10
    values, counts = np.unique(np.round(told, 3), return_counts=True)
    np.testing.assert_allclose(values, np.arange(1, 10))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_gray_images_are_refused():
    with pytest.raises(UserError, match="RandAugment of images with 1 channels"):
        randaugment.rand_augment(tf.zeros([4, 4, 1]), tf.zeros([2, randaugment.DRAWS]))

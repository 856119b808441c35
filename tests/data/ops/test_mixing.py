"""Mixup and CutMix: label masses against what the pixels show, boxes against loops, and
distributions against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfssl.data.ops import mixing
from tfssl.data.ops.draws import Draws
from tfssl.data.ops.mixing import Mixing
from tfssl.errors import UserError


def draws(n, first=0, rows=None, replicas=1):
    number = first + tf.range(rows or n, dtype=tf.int64)
    return Draws({"number": number, "seed": tf.zeros_like(number)}, replicas)


def one_per_image(n, side=16):
    """Images [N, S, S, N]: channel i of image i is 1, so that a mixed pixel says whose it is."""
    return np.broadcast_to(np.eye(n, dtype=np.float32)[:, None, None], [n, side, side, n])


@pytest.mark.parametrize("mixup,cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_the_label_is_what_the_pixels_show(mixup, cutmix):
    n = 64
    images, own = Mixing(mixup, cutmix).mix(tf.constant(one_per_image(n)), draws(n))
    images, own = images.numpy(), own.numpy()
    rows, others = np.arange(n), np.arange(n) ^ 1
    np.testing.assert_allclose(images.sum(-1), 1, rtol=1e-6)
    shown = images.mean((1, 2))  # NxN: how much of each image is in each
    np.testing.assert_allclose(shown[rows, rows], own, atol=1e-5)
    np.testing.assert_allclose(shown[rows, others], 1 - own, atol=1e-5)
    np.testing.assert_array_equal(own[::2], own[1::2])  # one draw for each pair
    assert len(set(own)) > n / 4
    whole = np.isin(images, [0, 1]).all((1, 2, 3))  # each pixel of one image alone
    assert whole.all() == (mixup == 0) and whole.any() == (cutmix > 0)
    for i in rows[whole]:  # the partner's pixels fill a rectangle
        y, x = np.nonzero(images[i, ..., i ^ 1])
        assert not len(y) or len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1)


def test_mixup_is_the_formula_by_its_weight(float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=[8, 5, 7, 3])
    images, own = Mixing(mixup=0.4).mix(tf.constant(x), draws(8))
    for i in range(8):
        weight = float(own[i])
        np.testing.assert_allclose(images[i], weight * x[i] + (1 - weight) * x[i ^ 1], rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_weights_are_of_the_beta_distribution(alpha):
    n = 20_000
    _, own = Mixing(mixup=alpha).mix(tf.zeros([n, 1, 1, 1]), draws(n))
    found = own.numpy()[::2]
    assert scipy.stats.kstest(found, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    at = tf.constant([0.0, 0.25, 0.5, 0.999], tf.float64)
    expected = scipy.stats.beta.ppf(at.numpy(), alpha, alpha)
    np.testing.assert_allclose(mixing.beta(at, alpha), expected, atol=2e-4)


def test_boxes_are_those_of_a_loop():
    """The published code's, image by image, with its integers."""
    n, height, width = 200, 24, 37
    own, y, x = np.random.default_rng(0).random([3, n]).astype(np.float32)
    inside, area = mixing.box(*map(tf.constant, (own, y, x)), height, width)
    for i in range(n):
        ratio = np.sqrt(np.float32(1) - own[i])
        cut_h, cut_w = int(height * ratio), int(width * ratio)
        cy, cx = int(y[i] * height), int(x[i] * width)
        expected = np.zeros([height, width], bool)
        top, bottom = np.clip([cy - cut_h // 2, cy + cut_h // 2], 0, height)
        left, right = np.clip([cx - cut_w // 2, cx + cut_w // 2], 0, width)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(inside[i], expected)
        assert float(area[i]) == pytest.approx(expected.mean(), abs=1e-6)


def test_the_mean_area_of_boxes_is_the_closed_form():
    """A side r about a uniform point covers r - r^2 / 4 of a line on average; with r^2 uniform the
    area is E (r - r^2 / 4)^2 = 1/2 - 1/5 + 1/48."""
    n, side = 4000, 128
    own, y, x = np.random.default_rng(1).random([3, n]).astype(np.float32)
    _, area = mixing.box(*map(tf.constant, (own, y, x)), side, side)
    # Sides are rounded down to even numbers of pixels: by one on average.
    shorter = 2 / side * (1 / 2) * 2 / 3
    expected = 1 / 2 - 1 / 5 + 1 / 48 - shorter
    assert float(tf.reduce_mean(area)) == pytest.approx(expected, abs=0.012)


def test_how_often_each_is_drawn():
    n = 8000
    images = tf.constant(
        np.tile([[0.0], [1.0]], [n // 2, 1])[:, None, None].repeat(8, 1).repeat(8, 2)
    )
    mixed, own = Mixing(1.0, 1.0, switch=0.25, probability=0.6).mix(images, draws(n))
    own = own.numpy()[::2]
    hard = np.isin(mixed.numpy(), [0, 1]).all((1, 2, 3))[::2]
    assert (~hard).mean() == pytest.approx(0.6 * 0.75, abs=0.03)
    # CutMix with weights near 1 has boxes of no pixels, too.
    assert 0.4 <= (own == 1).mean() < 0.4 + 0.6 * 0.25 * 0.15 + 0.03


def test_replicas_mix_what_one_does():
    x = np.random.default_rng(0).random([8, 6, 6, 3]).astype(np.float32)
    whole = Mixing(0.8, 1.0).mix(tf.constant(x), draws(8))
    for first in (0, 4):
        half = Mixing(0.8, 1.0).mix(tf.constant(x[first : first + 4]), draws(8, first, 4, 2))
        for ours, theirs in zip(half, whole):
            np.testing.assert_array_equal(ours, theirs[first : first + 4])


def test_none_is_false_and_pairs_need_two():
    assert not Mixing() and not Mixing(0.8, probability=0.0) and Mixing(cutmix=1.0)
    with pytest.raises(UserError, match="mix pairs of images, and each replica has 3"):
        Mixing(0.8).mix(tf.zeros([3, 4, 4, 3]), draws(3))


def test_it_compiles():
    x = tf.constant(np.random.default_rng(0).random([4, 6, 6, 3]).astype(np.float32))
    mix = tf.function(lambda x: Mixing(0.8, 1.0).mix(x, draws(4)), jit_compile=True)
    images, own = mix(x)
    np.testing.assert_allclose(
        tf.reduce_sum(images), tf.reduce_sum(x), rtol=1e-5
    )  # pairs exchange what they lose
    assert 0 <= float(tf.reduce_min(own)) and float(tf.reduce_max(own)) <= 1

"""Random erasing: how often, how large and where, against sums over the distribution."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.data.ops.erasing import random_erasing

SIDE = 32


def erased(n, probability=1.0, shape=(SIDE, SIDE, 3), dtype=tf.uint8, first=0, **ranges):
    """Images [n, H, W, C] that were of 7 (bytes) or 0.25 everywhere."""
    value = 7 if dtype == tf.uint8 else 0.25
    numbers = tf.range(first, first + n, dtype=tf.int64)

    def one(number):
        image = tf.fill(shape, tf.cast(value, dtype))
        return random_erasing(image, tf.stack([number * 0 + 5, number]), probability, **ranges)

    data = tf.data.Dataset.from_tensor_slices(numbers).map(one)
    return next(iter(data.batch(n))).numpy(), value


def mean_area(area_range=(0.02, 1 / 3), aspect_range=(0.3, 1 / 0.3), side=SIDE):
    """Of rectangles that fit, by a sum over 400 areas and 400 aspect ratios."""
    ticks = (np.arange(400) + 0.5) / 400
    area = (area_range[0] + (area_range[1] - area_range[0]) * ticks)[:, None] * side**2
    aspect = np.exp(np.log(aspect_range[0]) + np.log(aspect_range[1] / aspect_range[0]) * ticks)
    tall, wide = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (tall < side) & (wide < side)
    return (tall * wide)[fits].mean() / side**2


def test_areas_and_places_are_those_of_the_distribution():
    images, value = erased(1500)
    changed = (images != value).any(-1)
    boxes = []
    for one in changed:
        (y,), (x,) = np.nonzero(one.any(1)), np.nonzero(one.any(0))
        tall, wide = np.ptp(y) + 1, np.ptp(x) + 1
        # One pixel in 256^3 has the old color by chance.
        assert one[y[0] : y[0] + tall, x[0] : x[0] + wide].mean() > 0.99
        boxes.append([y[0], x[0], tall, wide])
    y, x, tall, wide = np.transpose(boxes)
    area = tall * wide / SIDE**2
    assert 0.015 < area.min() and area.max() < 0.36
    five = 5 * area.std() / np.sqrt(len(area))
    assert area.mean() == pytest.approx(mean_area(), abs=five)
    assert np.log(tall / wide).mean() == pytest.approx(0, abs=0.1)
    assert (tall / wide).max() < 1 / 0.25 and (tall / wide).min() > 0.25
    # Every place where it fits is as likely.
    for first, extent in ((y, tall), (x, wide)):
        share = first / np.maximum(SIDE - extent, 1)
        assert share.mean() == pytest.approx(0.5, abs=0.05) and np.ptp(first) > 20


def test_noise_is_uniform_and_of_every_channel():
    images, value = erased(400)
    noise = images[(images != value).any(-1)].astype(float)
    assert noise.mean() == pytest.approx(127.5, abs=1) and noise.max() == 255 and noise.min() == 0
    assert noise.std() == pytest.approx(256 / np.sqrt(12), rel=0.02)
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.03


def test_probability_and_seeds():
    images, value = erased(2000, probability=0.25)
    fraction = (images != value).any((1, 2, 3)).mean()
    assert fraction == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 2000))
    again, _ = erased(100, probability=0.25, first=900)
    np.testing.assert_array_equal(again, images[900:1000])
    assert not (erased(200, probability=0.0)[0] != value).any()


def test_a_rectangle_that_never_fits_erases_nothing():
    images, value = erased(20, shape=(8, 8, 3), area_range=(1.5, 2.0))
    assert (images == value).all()


def test_floats_and_other_shapes():
    images, value = erased(200, shape=(20, 30, 1), dtype=tf.float32)
    changed = images[images != value]
    assert images.shape == (200, 20, 30, 1) and 0 <= changed.min() and changed.max() < 1
    assert changed.mean() == pytest.approx(0.5, abs=0.01)

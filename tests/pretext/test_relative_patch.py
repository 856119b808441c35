"""Relative patch location: the eight pairs and chance."""

import math

import numpy as np
import tensorflow as tf

from tfssl import backbones
from tfssl.pretext.relative_patch import RelativePatch


def build(**settings):
    network = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(16, 3, 2, name="conv"), tf.keras.layers.ReLU(name="relu")]
    )
    sizes = {
        "image_size": 30,
        "scaled_size": 33,
        "patch_size": 8,
        "head_units": 64,
        "head_bn_momentum": 0.8,
    }
    return RelativePatch(backbones.build(network), **{**sizes, **settings})


def test_the_eight_neighbours_in_raster_order():
    """Around the center (1, 1): top left, top, top right, left, right, bottom left, bottom, bottom
    right."""
    model = build()
    sides = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    found = [(p // 3 - c // 3, p % 3 - c % 3) for p, c in model.table]
    assert found == sides and {c for _, c in model.table.tolist()} == {4}
    batch = {"image": tf.zeros([2, 9, 8, 8, 3])}
    np.testing.assert_array_equal(model.questions(batch), [range(8)] * 2)
    assert len(build(grid=5, patch_size=6).table) == 24


def test_labels_and_chance():
    model = build()
    batch = {"image": tf.zeros([2, 9, 8, 8, 3])}
    losses, _ = model.objective(batch, tf.zeros([16, 8]))
    assert model.chance() == {"loss": math.log(8), "accuracy": 1 / 8}
    np.testing.assert_allclose(losses, [math.log(8)] * 16, rtol=1e-6)
    _, measured = model.objective(batch, tf.tile(tf.eye(8), [2, 1]))
    np.testing.assert_array_equal(measured["accuracy"], np.ones(16))

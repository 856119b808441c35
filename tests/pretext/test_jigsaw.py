"""Jigsaw: which orders are asked, and that they are the orders of the set."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.jigsaw import Jigsaw
from tfssl.pretext.parts import permutations


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
    return Jigsaw(backbones.build(network), **{**sizes, **settings})


def orders(model, step=0, rows=32, batch=32):
    """What is drawn for the first rows of a batch."""
    numbers = tf.range(rows, dtype=tf.int64) + step * batch
    part = {
        "image": tf.zeros([rows, 9, 8, 8, 3]),
        "number": numbers,
        "seed": tf.zeros([rows], tf.int64),
    }
    return model.augment(part, Draws(part, batch // rows))["orders"].numpy()


def test_each_image_has_its_own_sixteen_orders():
    model = build()
    drawn = orders(model)
    assert drawn.shape == (32, 16) and set(drawn.ravel()) <= set(range(100))
    assert all(len(set(row)) == 16 for row in drawn)
    assert len({tuple(sorted(row)) for row in drawn}) == 32
    assert (drawn != orders(model, 1)).any()
    np.testing.assert_array_equal(drawn, orders(model))
    many = np.concatenate([orders(model, step) for step in range(40)])
    counts = np.bincount(
        many.ravel(), minlength=100
    )  # each expected 205 times, with a deviation of 13
    assert counts.min() > 150 and counts.max() < 260


def test_one_choice_for_the_whole_batch():
    model = build(share_permutations=True, permutations_per_image=8)
    drawn = orders(model)
    assert (drawn == drawn[0]).all() and len(set(drawn[0])) == 8
    np.testing.assert_array_equal(
        drawn[:16], orders(model, rows=16)
    )  # on each of two replicas the same
    assert (drawn[0] != orders(model, 1)[0]).any()


def test_evaluation_asks_for_all_orders_up_to_100():
    batch = {"image": tf.zeros([2, 9, 8, 8, 3])}
    np.testing.assert_array_equal(build().questions(batch), [range(100)] * 2)
    np.testing.assert_array_equal(build(permutations=30).questions(batch), [range(30)] * 2)
    model = build(permutations=150)
    asked = model.questions(batch).numpy()
    assert asked.shape == (2, 100) and len(set(asked[0])) == 100 and asked.max() > 100
    np.testing.assert_array_equal(asked, build(permutations=150).questions(batch))


def test_labels_are_the_orders_numbers():
    model = build(permutations=20)
    drawn = tf.constant([[3, 0], [19, 7]])
    batch = {"image": tf.zeros([2, 9, 8, 8, 3]), "orders": drawn}
    losses, measured = model.objective(batch, 50 * tf.one_hot([3, 0, 19, 0], 20))
    np.testing.assert_array_equal(measured["accuracy"], [1, 1, 1, 0])
    np.testing.assert_allclose(losses, [0, 0, 0, 50], atol=1e-5)
    assert model.chance()["accuracy"] == 1 / 20


def test_the_set_is_the_flags_or_the_files(tmp_path):
    np.testing.assert_array_equal(build(permutation_seed=3).table, permutations.greedy(100, seed=3))
    np.testing.assert_array_equal(
        build(permutation_criterion="min").table, permutations.greedy(100, criterion="min")
    )
    path = str(tmp_path / "set.bin")
    table = permutations.greedy(40, seed=5)
    permutations.write(path, table)
    np.testing.assert_array_equal(build(permutations=30, permutations_file=path).table, table[:30])
    with pytest.raises(UserError, match="holds 40 permutations, and permutations=100"):
        build(permutations_file=path)
    with pytest.raises(UserError, match="permutations_per_image=16 must be 1 to permutations=8"):
        build(permutations=8)
    with pytest.raises(UserError, match="permutations=100 of 4 patches: choose 1 to 24"):
        build(grid=2)

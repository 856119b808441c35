"""The gather of replicas' rows: order, shape, gradients, XLA."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses import replicas as across


def on_each(strategy, function, values):
    """function(rows) on every replica, which holds its share of `values`: a list of results by
    replica."""
    parts = tf.split(values, strategy.num_replicas_in_sync)
    shared = strategy.experimental_distribute_values_from_function(
        lambda c: parts[c.replica_id_in_sync_group]
    )
    run = tf.function(lambda x: strategy.run(function, args=(x,)))
    return strategy.experimental_local_results(run(shared))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_replicas_see_all_rows_in_order(replicas, shape):
    count = replicas.num_replicas_in_sync
    values = np.random.default_rng(0).normal(size=[2 * count, *shape])

    def gather(x):
        assert x.shape == (2, *shape)
        gathered = across.gather(x)
        assert gathered.shape == (2 * count, *shape)  # static
        return gathered, across.first_row(2)

    for replica, (gathered, first) in enumerate(zip(*zip(*on_each(replicas, gather, values)))):
        np.testing.assert_array_equal(gathered, values)
        assert first == 2 * replica


def test_integers_of_a_tpu_travel_as_it_can_add_them(replicas, monkeypatch):
    """It has sums of half, bfloat16, float, double, int32 and uint32: of large numbers too."""
    values = tf.constant([-(2**40), 3, 2**62 + 1, -1, 7, 2**31][: 3 * 2], tf.int64)
    values = tf.tile(values, [replicas.num_replicas_in_sync])
    monkeypatch.setattr(across, "_on_tpu", lambda: True)
    summed = []

    def gather(x):
        context = tf.distribute.get_replica_context()
        add = context.all_reduce
        monkeypatch.setattr(
            context, "all_reduce", lambda op, v: summed.append(v.dtype) or add(op, v), raising=False
        )
        return across.gather(x)

    for gathered in on_each(replicas, gather, values):
        np.testing.assert_array_equal(gathered, values)
    assert set(summed) <= {tf.int32} and summed


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 1)])  # 15 bytes, which are padded, and 8
def test_bytes_arrive_as_they_are(replicas, shape):
    """Every value of a byte; the same without replicas, and compiled."""
    count = replicas.num_replicas_in_sync
    rows = 40 * count
    values = np.arange(rows * math.prod(shape)).astype(np.uint8).reshape([rows, *shape])
    assert len(np.unique(values)) == 256
    for gathered in on_each(replicas, across.gather_bytes, values):
        assert gathered.dtype == tf.uint8 and gathered.shape == values.shape
        np.testing.assert_array_equal(gathered, values)
    for compiled in (False, True):
        np.testing.assert_array_equal(
            tf.function(across.gather_bytes, jit_compile=compiled)(values), values
        )


def test_gradients_of_replicas_are_those_of_one_batch(replicas, float64):
    """A loss in which every row meets every other: each replica's share of it, summed, gives the
    gradient of the whole."""
    count = replicas.num_replicas_in_sync
    values = np.random.default_rng(1).normal(size=[3 * count, 4])

    def loss_of(mine, everyone, first):
        scores = tf.matmul(mine, everyone, transpose_b=True)
        own = tf.range(tf.shape(mine)[0]) + first
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(own, scores)) / (
            3 * count
        )

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = loss_of(x, across.gather(x), across.first_row(3))
        return tape.gradient(loss, x)

    found = np.concatenate(on_each(replicas, gradient, values))
    x = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_of(x, x, 0)
    np.testing.assert_allclose(found, tape.gradient(loss, x), rtol=0, atol=1e-13)


def test_one_replicas_nan_stays_in_its_rows(replicas):
    values = np.ones([2 * replicas.num_replicas_in_sync, 2])
    values[0] = np.nan
    for gathered in on_each(replicas, across.gather, values):
        np.testing.assert_array_equal(gathered, values)


def test_without_replicas_nothing_happens():
    x = tf.ones([3, 2])
    assert across.gather(x) is x and across.count() == 1 and int(across.first_row(3)) == 0
    np.testing.assert_array_equal(tf.function(across.gather, jit_compile=True)(x), x)

"""Shares of blocks: what replicas hold, add up and return is what one device has."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.solvers.shares import Replicas


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("size", [0, 13])
def test_blocks_of_any_length(count, size, replicas):
    array = np.random.default_rng(0).normal(size=[count, 3])
    scale = tf.constant(2.0, tf.float64)

    def of_rows(x, scale):
        return tf.reduce_sum(x) * scale, tf.reduce_sum(x * x, 0)

    for each in (Replicas(), Replicas(replicas)):
        shared = each.share(array, size=size)
        np.testing.assert_array_equal(each.joined(shared, count), array)
        found = [value.numpy() for value in each.sum(of_rows, shared, scale)]
        np.testing.assert_allclose(found[0], 2 * array.sum(), rtol=1e-12)
        np.testing.assert_allclose(found[1], (array**2).sum(0), rtol=1e-12)
        twice = each.map(lambda x, scale: x * scale, shared, scale)
        np.testing.assert_array_equal(each.joined(twice, count), 2 * array)
    several = replicas.num_replicas_in_sync
    assert Replicas(replicas).count == several and Replicas().count == 1
    rows = [part.shape[0] for part in replicas.experimental_local_results(shared)]
    assert rows == [size or -(-count // several)] * several  # equal, as a TPU demands


def test_rows_that_fill_up_a_share(replicas):
    several = replicas.num_replicas_in_sync
    shared = Replicas(replicas).share(np.arange(several + 1, dtype=np.int32), -1)
    parts = [part.numpy().tolist() for part in replicas.experimental_local_results(shared)]
    whole = sum(parts, [])
    assert whole == [*range(several + 1), *[-1] * (several - 1)]


def test_one_replica_that_is_the_default_device_shares_nothing():
    replicas = Replicas(tf.distribute.get_strategy())
    assert isinstance(replicas.share(np.zeros([3, 2])), tf.Tensor)

"""Target networks follow by an exponential moving average."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import tiny

from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.target import MomentumNetwork, cosine_momentum


def test_momentum_network(float64):
    tf.keras.utils.set_random_seed(0)
    network, head = tiny(), MLP("head", [3])
    follower = MomentumNetwork(network, head)
    images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 1], dtype=tf.float64)

    def online():
        return head(network(images)["pre_logits"])

    assert np.any(online().numpy() != follower(images).numpy())
    follower.copy()
    np.testing.assert_array_equal(online(), follower(images))
    before = [v.numpy() for v in head.trainable_variables]
    for v in head.trainable_variables:
        v.assign_add(tf.ones_like(v))
    follower.follow(0.9)
    for old, v in zip(before, follower.twins[1].trainable_variables):
        np.testing.assert_allclose(v, 0.9 * old + 0.1 * (old + 1), rtol=1e-12)
    assert follower.trainable_variables == () and len(follower.non_trainable_variables) == 4


def test_momentum_rises_along_half_a_cosine():
    at = [float(cosine_momentum(0.99, step, 100)) for step in (0, 50, 100, 150)]
    np.testing.assert_allclose(at, [0.99, 0.995, 1, 1], atol=1e-7)
    assert float(cosine_momentum(0.99, 70, 0)) == pytest.approx(0.99)

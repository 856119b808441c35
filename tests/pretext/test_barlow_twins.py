"""Barlow Twins: its heads, and the rate of biases and batch normalizations."""

import pytest
import tensorflow as tf
from joint_embedding import dense, head_parameters, task

import tfssl
from tfssl import optim


def test_the_projection_has_the_published_size():
    """Three layers of 8192 without biases, two of them with batch normalization; here a
    sixty-fourth of that."""
    expected = dense(2048, 128, False) + 2 * dense(128, 128, False) + 2 * 2 * 128
    assert head_parameters("barlow_twins", projection_size=128) == expected


def test_biases_and_normalizations_have_a_rate_of_their_own():
    model = task("barlow_twins", projection_size=8, bias_rate=0.25)
    model.compile(tfssl.optim.build("sgd", 0.1))
    model.prepare()
    before = [v.numpy() for v in model.trainable_variables]
    model.optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    for old, v in zip(before, model.trainable_variables):
        rate = 0.1 if optim.is_kernel(v) else 0.025
        assert (old - v.numpy()).mean() == pytest.approx(rate, rel=1e-3), v.name
    assert {v.name for v in model.decaying()} == {
        v.name for v in model.trainable_variables if optim.is_kernel(v)
    }


def test_levels_of_views_that_have_nothing_in_common():
    model = task("barlow_twins", projection_size=2048)
    model.batch_size = 256
    assert model.chance()["loss"] == pytest.approx(2131.5, abs=0.05)  # D + lambda D (D - 1) / N

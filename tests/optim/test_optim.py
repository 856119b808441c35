"""Schedules against their formulas, optimizers against one hand-computed step."""

import math
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.errors import UserError
from tfssl.training import checks


def test_piecewise_is_the_published_schedule():
    """Kolesnikov et al.: 35 epochs, warm-up over 5, x0.1 after 15 and 25; here 10 steps an epoch, 512 images at 0.1 per 256."""
    rate = optim.schedule("piecewise", peak=0.2, total_steps=350, warmup_steps=50, decay_steps=[150, 250])
    expected = {0: 0.0, 25: 0.1, 49: 0.196, 50: 0.2, 150: 0.2, 151: 0.02, 250: 0.02, 251: 0.002, 349: 0.002}
    np.testing.assert_allclose([float(rate(s)) for s in expected], list(expected.values()), rtol=1e-6)


def test_piecewise_equals_keras_after_warmup():
    ours = optim.schedule("piecewise", peak=0.5, total_steps=100, decay_steps=[30, 60, 80])
    theirs = tf.keras.optimizers.schedules.PiecewiseConstantDecay([30, 60, 80], [0.5, 0.05, 0.005, 0.0005])
    for step in range(0, 100, 5):
        np.testing.assert_allclose(float(ours(step)), float(theirs(step)), rtol=1e-6)


def test_cosine_ends():
    rate = optim.schedule("cosine", peak=0.3, total_steps=110, warmup_steps=10)
    values = [float(rate(s)) for s in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.15, 0.3, 0.15, 0], atol=1e-7)
    np.testing.assert_allclose(float(rate(35)), 0.15 * (1 + math.cos(math.pi / 4)), rtol=1e-6)


def test_constant():
    rate = optim.schedule("constant", peak=0.3, total_steps=10, decay_steps=[3])
    assert [round(float(rate(s)), 6) for s in (0, 9)] == [0.3, 0.3]


@pytest.mark.parametrize("name", ["piecewise", "cosine"])
def test_schedules_survive_serialisation_and_graphs(name):
    rate = optim.schedule(name, peak=0.3, total_steps=110, warmup_steps=10, decay_steps=[50])
    again = type(rate).from_config(rate.get_config())
    graph = tf.function(again)
    for step in (0, 7, 50, 51, 109):
        np.testing.assert_allclose(float(graph(tf.constant(step, tf.int64))), float(rate(step)), rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_momentum_steps(name):
    """v <- m v - r g, w <- w + v; Nesterov: w <- w + m v - r g."""
    variable = tf.Variable([1.0])
    optimizer = optim.build(name, 0.1, momentum=0.5)
    optim.create_slots(optimizer, [variable])
    w, v = 1.0, 0.0
    for g in (2.0, -1.0, 3.0):
        optimizer.apply_gradients([(tf.constant([g]), variable)])
        v = 0.5 * v - 0.1 * g
        w += 0.5 * v - 0.1 * g if name == "nesterov" else v
        np.testing.assert_allclose(variable.numpy(), [w], rtol=1e-5)


def test_lamb_or_a_clear_line():
    if sys.version_info >= (3, 12):
        with pytest.raises(UserError, match="tensorflow-addons"):
            optim.build("lamb", 0.1)
        return
    # One step by hand (You et al., Algorithm 2): the first Adam direction is g / |g|, then the trust ratio |w| / |r + wd w|.
    w = np.array([3.0, 4.0])
    kernel = tf.Variable(w, dtype=tf.float32, name="kernel")
    optimizer = optim.build("lamb", 0.1, weight_decay=0.01)
    optim.create_slots(optimizer, [kernel])
    optimizer.apply_gradients([(tf.constant([0.5, -2.0]), kernel)])
    update = np.array([1.0, -1.0]) + 0.01 * w
    np.testing.assert_allclose(kernel.numpy(), w - 0.1 * np.linalg.norm(w) / np.linalg.norm(update) * update, rtol=1e-4)


def test_decay_of_all_is_refused_where_the_optimizer_decays_kernels():
    for name in ("lars", "lars_byol", "lamb"):
        with pytest.raises(UserError, match=f"{name} decays kernels alone"):
            checks.decays_kernels(name, "all")


def test_unknown_names():
    with pytest.raises(UserError, match="sgd, nesterov, adam, lamb"):
        optim.build("sdg", 0.1)
    with pytest.raises(UserError, match="piecewise, cosine, constant"):
        optim.schedule("step", 0.1, 10)
    with pytest.raises(UserError, match="ascend"):
        optim.schedule("piecewise", 0.1, 10, decay_steps=[5, 3])

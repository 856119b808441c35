"""AdamW against PyTorch's figures, and against Keras's."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.optim.adamw import AdamW


def trained(optimizer, gradients, start=(1.0, -2.0), kernel=True):
    variable = tf.Variable(np.array(start), name="kernel")  # float64
    optimizer.kernels = lambda: [variable][: int(kernel)]
    values = []
    for g in gradients:
        optimizer.apply_gradients([(tf.constant(g, tf.float64), variable)])
        values.append(variable.numpy())
    return values


def test_two_steps_of_pytorch(float64):
    """torch.optim.AdamW (2.13) in float64: rate 0.01, decay 0.05, epsilon 1e-8, betas 0.9 and
    0.999."""
    first, second = trained(AdamW(0.01, weight_decay=0.05), ([0.1, -0.3], [0.2, 0.1]))
    np.testing.assert_allclose(first, [0.989500001, -1.989000000333], rtol=0, atol=1e-12)
    np.testing.assert_allclose(second, [0.9793534313, -1.9840033148], rtol=0, atol=1e-10)


def test_an_epsilon_of_weight(float64):
    """The first step is r g / (|g| + epsilon), whatever beta_2: epsilon is added after the bias is
    corrected."""
    for beta_2 in (0.5, 0.95, 0.999):
        (first,) = trained(AdamW(0.1, beta_2=beta_2, epsilon=0.3), ([0.1, -0.6],))
        np.testing.assert_allclose(first, [1 - 0.1 * 0.1 / 0.4, -2 + 0.1 * 0.6 / 0.9], rtol=1e-12)


@pytest.mark.parametrize("kernel", [True, False])
def test_keras_has_the_same_but_for_its_epsilon(kernel):
    gradients = np.random.default_rng(0).normal(size=(5, 2))
    theirs = tf.keras.optimizers.AdamW(
        0.01, weight_decay=0.05 if kernel else 0.0, beta_2=0.95, epsilon=1e-12
    )
    variable = tf.Variable([1.0, -2.0], dtype=tf.float64)
    for g in gradients:
        theirs.apply_gradients([(tf.constant(g), variable)])
    ours = trained(AdamW(0.01, 0.9, 0.05, 0.95, 1e-12), gradients, kernel=kernel)
    np.testing.assert_allclose(ours[-1], variable, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "lars_byol", "larc"])
def test_weight_decay_follows_its_schedule(name, float64):
    """At each step the optimizer does what one of that constant decay would."""
    decay = optim.schedule("cosine", 0.04, 3, end=0.4)
    settings = {} if name in ("adamw", "lamb") else {"eeta": 0.1}
    gradients = np.random.default_rng(0).normal(size=(4, 2))
    scheduled = optim.build(name, 0.1, 0.0, decay, **settings)
    values = trained(scheduled, gradients)
    constant = optim.build(name, 0.1, 0.0, 0.04, **settings)
    attribute = "decoupled_decay" if name in ("adamw", "lamb") else "folded_decay"
    variable = tf.Variable(np.array([1.0, -2.0]), name="kernel")
    constant.kernels = lambda: [variable]
    for step, g in enumerate(gradients):
        setattr(constant, attribute, float(decay(step)))
        constant.apply_gradients([(tf.constant(g), variable)])
        np.testing.assert_allclose(values[step], variable, rtol=1e-7)
    assert (
        np.abs(
            values[-1] - trained(optim.build(name, 0.1, 0.0, 0.04, **settings), gradients)[-1]
        ).max()
        > 1e-4
    )

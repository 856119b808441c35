"""Distillation: the loss and its gradient against NumPy, from the formula."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses.distillation import distillation


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("scale", [False, True])
def test_loss_and_gradient_by_numpy(temperature, scale):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=[2, 6, 5])
    taught, guessed = softmax(teacher / temperature), softmax(student / temperature)
    factor = temperature**2 if scale else 1.0
    x, t = tf.Variable(student), tf.Variable(teacher)
    with tf.GradientTape() as tape:
        loss = distillation(x, t, temperature, scale)
    np.testing.assert_allclose(loss, -factor * (taught * np.log(guessed)).sum(1), rtol=1e-10)
    by_student, by_teacher = tape.gradient(loss, [x, t])
    np.testing.assert_allclose(by_student, factor * (guessed - taught) / temperature, rtol=1e-8, atol=1e-12)
    assert by_teacher is None


def test_half_precision_is_raised():
    x = tf.constant([[60.0, -60.0]], tf.float16)
    loss = distillation(x, -x)
    assert loss.dtype == tf.float32 and loss.numpy()[0] == pytest.approx(120.0)

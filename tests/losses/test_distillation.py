"""Distillation: the loss and its gradient against NumPy, from the formula."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import normal

from tfssl.losses.distillation import dino, distillation


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
    np.testing.assert_allclose(
        by_student, factor * (guessed - taught) / temperature, rtol=1e-8, atol=1e-12
    )
    assert by_teacher is None


def test_half_precision_is_raised():
    x = tf.constant([[60.0, -60.0]], tf.float16)
    loss = distillation(x, -x)
    assert loss.dtype == tf.float32 and loss.numpy()[0] == pytest.approx(120.0)


def test_dino_of_a_second_implementation():
    """Lightly's of 1.6, in float64; and naive loops."""
    targets = 0.5 * normal(5, 2, 32, 64).transpose(1, 0, 2)
    scores, center = 0.5 * normal(6, 4, 32, 64).transpose(1, 0, 2), 0.1 * normal(7, 64)
    variable = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        found = dino(variable, targets, center)
        loss = tf.reduce_mean(found.loss)
    assert float(loss) == pytest.approx(12.9289829911, abs=1e-9)
    assert np.linalg.norm(tape.gradient(loss, variable)) == pytest.approx(0.9494725724, abs=2e-9)
    assert float(tf.reduce_mean(found.entropy)) == pytest.approx(0.4029931757, abs=1e-9)
    large = dino(scores[:, :2], targets, center)
    assert float(tf.reduce_mean(large.loss)) == pytest.approx(12.7737747608, abs=1e-9)

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    naive = [
        -(softmax((targets[3, i] - center) / 0.04) * np.log(softmax(scores[3, j] / 0.1))).sum()
        for i in range(2)
        for j in range(4)
        if i != j
    ]
    assert float(found.loss[3]) == pytest.approx(np.mean(naive), rel=1e-12)

"""Soft-label cross-entropy against loops and closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses.soft_labels import soft_cross_entropy, soft_targets


def naive(targets, logits):
    losses = []
    for t, z in zip(targets, logits):
        log_p = [value - max(z) - np.log(sum(np.exp(z - max(z)))) for value in z]
        losses.append(-sum(a * b for a, b in zip(t, log_p)))
    return losses


def test_the_loss_and_its_gradient_are_those_of_the_sum(float64):
    rng = np.random.default_rng(0)
    targets, logits = rng.dirichlet(np.ones(5), 7), 3 * rng.normal(size=[7, 5])
    targets[3] *= 0.3  # a part of the image has no label
    targets[4] = 0
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = soft_cross_entropy(tf.constant(targets), z)
    np.testing.assert_allclose(loss, naive(targets, logits), rtol=1e-12)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = targets.sum(1, keepdims=True) * p - targets
    np.testing.assert_allclose(tape.gradient(loss, z), expected, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_targets(float64, smoothing):
    """The loss has its least value, the entropy of the targets, where the probabilities are the
    targets; at chance it is log C; and it is the mixture of the label's cross-entropy and that of
    all classes (Szegedy et al., Section 7)."""
    classes, rng = 10, np.random.default_rng(0)
    targets = soft_targets(tf.constant([3, -1], tf.int64), classes, smoothing).numpy()
    on, off = 1 - smoothing + smoothing / classes, smoothing / classes
    np.testing.assert_allclose(np.delete(targets[0], 3), off, rtol=1e-12)
    assert targets[0, 3] == pytest.approx(on) and targets[0].sum() == pytest.approx(1)
    assert (targets[1] == 0).all()
    logits = rng.normal(size=[1, classes])
    log_p = logits - np.log(np.exp(logits).sum())
    mixture = -(1 - smoothing) * log_p[0, 3] - smoothing * log_p.mean()
    found = float(soft_cross_entropy(targets[:1], tf.constant(logits))[0])
    assert found == pytest.approx(mixture, rel=1e-12)
    chance = soft_cross_entropy(targets, tf.zeros([2, classes], tf.float64))
    np.testing.assert_allclose(chance, [np.log(classes), 0], atol=1e-12)
    if smoothing:
        entropy = -on * np.log(on) - (classes - 1) * off * np.log(off)
        least = soft_cross_entropy(targets[:1], tf.math.log(targets[:1]))
        assert float(least[0]) == pytest.approx(entropy) and entropy < found


def test_half_precision_is_summed_in_float32():
    targets = soft_targets(tf.constant([1], tf.int64), 3, 0.1)
    assert soft_cross_entropy(targets, tf.zeros([1, 3], tf.bfloat16)).dtype == tf.float32

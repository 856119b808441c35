"""SIGReg against values of a second implementation (lightly 1.6, in float64), and against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses import sigreg as module
from tfssl.losses.sigreg import directions, sigreg


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or (32, 64)).astype("float32").astype(np.float64)


X, Y = normal(0), 0.8 * normal(0) + 0.6 * normal(1)
ALONG = normal(8, 64, 16) / np.linalg.norm(normal(8, 64, 16), axis=0)


def test_values_of_a_second_implementation():
    assert float(sigreg(X, ALONG)) == pytest.approx(1.0884132001, abs=1e-9)
    assert float(sigreg(3 * X, ALONG)) == pytest.approx(17.5023638903, abs=1e-9)
    assert float(sigreg(0 * X, ALONG)) == pytest.approx(12.8655225514, abs=1e-9)
    assert np.mean([sigreg(z, ALONG) for z in (X, Y, normal(9))]) == pytest.approx(1.0684370133, abs=1e-9)
    z = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = sigreg(z, ALONG)
    assert np.linalg.norm(tape.gradient(value, z)) == pytest.approx(0.4632583696, abs=1e-9)


def test_levels_are_the_integrals():
    """By the naive sum over knots that the paper has, and over a fine grid."""
    t = np.linspace(-3, 3, 100_001)
    phi = np.exp(-np.square(t) / 2)
    assert module.EXPECTED == pytest.approx(np.trapz(phi - phi**3, t), abs=5e-4)
    assert module.COLLAPSED == pytest.approx(np.trapz(phi * np.square(1 - phi), t), abs=5e-4)
    assert float(sigreg(np.zeros([50, 8]))) == pytest.approx(50 * module.COLLAPSED, rel=2e-3)
    many = np.mean([sigreg(normal(seed, 256, 8)) for seed in range(20)])
    assert many == pytest.approx(module.EXPECTED, rel=0.15)


def test_rows_without_weight_do_not_count():
    more = np.concatenate([X, normal(5, 8, 64)])
    weight = (np.arange(40) < 32).astype(np.float32)
    assert float(sigreg(more, ALONG, weight)) == pytest.approx(float(sigreg(X, ALONG)), rel=1e-12)


def test_directions_are_of_length_one_and_anew_at_each_step():
    first, second = directions(16, 300, 0).numpy(), directions(16, 300, tf.constant(1)).numpy()
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1, rtol=1e-5)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, directions(16, 300, tf.constant(0, tf.int64)))
    assert np.abs(np.mean(first, 1)).max() < 0.1

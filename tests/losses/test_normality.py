"""SIGReg against values of a second implementation (lightly 1.6, in float64), and against closed
forms."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import X, Y, normal

from tfssl.losses.normality import COLLAPSED, EXPECTED, sigreg

ALONG = normal(8, 64, 16) / np.linalg.norm(normal(8, 64, 16), axis=0)


def test_values_of_a_second_implementation():
    assert float(sigreg(X, ALONG)) == pytest.approx(1.0884132001, abs=1e-9)
    assert float(sigreg(3 * X, ALONG)) == pytest.approx(17.5023638903, abs=1e-9)
    assert float(sigreg(0 * X, ALONG)) == pytest.approx(12.8655225514, abs=1e-9)
    assert np.mean([sigreg(z, ALONG) for z in (X, Y, normal(9))]) == pytest.approx(
        1.0684370133, abs=1e-9
    )
    z = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = sigreg(z, ALONG)
    assert np.linalg.norm(tape.gradient(value, z)) == pytest.approx(0.4632583696, abs=1e-9)


def test_levels_are_the_integrals():
    """By the naive sum over knots that the paper has, and over a fine grid."""
    t = np.linspace(-3, 3, 100_001)
    phi = np.exp(-np.square(t) / 2)
    step = t[1] - t[0]
    assert EXPECTED == pytest.approx(step * (phi - phi**3).sum(), abs=5e-4)
    assert COLLAPSED == pytest.approx(step * (phi * np.square(1 - phi)).sum(), abs=5e-4)
    assert float(sigreg(np.zeros([50, 8]))) == pytest.approx(50 * COLLAPSED, rel=2e-3)
    many = np.mean([sigreg(normal(seed, 256, 8)) for seed in range(20)])
    assert many == pytest.approx(EXPECTED, rel=0.15)


def test_rows_without_weight_do_not_count():
    more = np.concatenate([X, normal(5, 8, 64)])
    weight = (np.arange(40) < 32).astype(np.float32)
    assert float(sigreg(more, ALONG, weight)) == pytest.approx(float(sigreg(X, ALONG)), rel=1e-12)

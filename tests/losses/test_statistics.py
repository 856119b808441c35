"""Barlow Twins and VICReg against values of a second implementation (lightly 1.6, in float64),
closed forms and naive NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import X, Y, normal

from tfssl.losses.statistics import barlow_twins, vicreg


def gradients(loss, *z):
    z = [tf.constant(x) for x in z]
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = tf.reduce_mean(loss(*z))
    return [g.numpy() for g in tape.gradient(value, z)]


def test_barlow_twins_of_a_second_implementation():
    assert float(barlow_twins(X, Y).loss) == pytest.approx(3.649273122456, abs=1e-9)
    assert float(barlow_twins(X, Y, 0.0).loss) == pytest.approx(2.9898464419, abs=1e-9)
    assert float(barlow_twins(X, X).loss) == pytest.approx(0.6275237413, abs=1e-9)
    assert float(barlow_twins(X, normal(2)).loss) == pytest.approx(69.8915241742, rel=1e-9)
    by_x, by_y = gradients(lambda *z: barlow_twins(*z).loss, X, Y)
    assert np.linalg.norm(by_x) == pytest.approx(0.4344033207, abs=1e-9)
    assert np.linalg.norm(by_y) == pytest.approx(0.4397730300, abs=1e-9)
    np.testing.assert_allclose(by_x[0, :2], [-0.00215978218, -0.02269033250], atol=1e-10)


def test_barlow_twins_measures():
    found = barlow_twins(X, Y)
    correlation = np.corrcoef(X.T, Y.T)[:64, 64:]
    assert float(found.agreement) == pytest.approx(np.diag(correlation).mean(), rel=1e-4)
    off = correlation[~np.eye(64, dtype=bool)]
    assert float(found.redundancy) == pytest.approx(np.square(off).mean(), rel=1e-4)
    assert np.square(off).sum() == pytest.approx(129.2993491203, rel=1e-4)


def test_vicreg_of_a_second_implementation():
    found = vicreg(X, Y)
    assert float(tf.reduce_mean(found.loss)) == pytest.approx(15.554419687, abs=1e-9)
    assert float(tf.reduce_mean(found.invariance)) == pytest.approx(0.4070583344, abs=1e-9)
    assert (float(found.variance), float(found.covariance)) == pytest.approx(
        (0.0546951404, 4.0105828168), abs=1e-9
    )
    half = vicreg(X / 2, Y / 2)
    assert float(tf.reduce_mean(half.loss)) == pytest.approx(15.3534037422, abs=1e-9)
    by_x, by_y = gradients(lambda *z: vicreg(*z).loss, X, Y)
    assert (np.linalg.norm(by_x), np.linalg.norm(by_y)) == pytest.approx(
        (0.7433434863, 0.7542006671), abs=1e-9
    )
    np.testing.assert_allclose(by_x[0, :2], [-0.00752495842, -0.01468327966], atol=1e-10)


def test_vicreg_of_one_image():
    """Such as the last batch of a validation split: no covariance, and no variance."""
    found = vicreg(tf.ones([1, 4]), tf.ones([1, 4]))
    np.testing.assert_allclose(np.ravel(found.loss), 25 * (1 - 1e-2), rtol=1e-6)


def test_vicreg_of_a_collapse():
    constant = np.ones([8, 4])
    assert float(tf.reduce_mean(vicreg(constant, constant).loss)) == pytest.approx(24.75, abs=1e-12)


@pytest.mark.parametrize("loss", [barlow_twins, vicreg])
def test_rows_without_weight_do_not_count(loss):
    weight = np.arange(40) < 32
    more = [np.concatenate([z, normal(5, 8, 64)]) for z in (X, Y)]
    found, expected = loss(*more, weight=weight.astype(np.float32)).loss, loss(X, Y).loss
    np.testing.assert_allclose(tf.reshape(found, [-1])[:32], tf.reshape(expected, [-1]), rtol=1e-12)


def test_half_precision_is_computed_in_single():
    for loss in (barlow_twins, vicreg):
        found = loss(tf.cast(X, tf.float16), tf.cast(Y, tf.float16)).loss
        assert found.dtype == tf.float32
        np.testing.assert_allclose(
            tf.reduce_mean(found), tf.reduce_mean(loss(X, Y).loss), rtol=2e-3
        )

"""LeJEPA: its alarm, its levels."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import X, Y, normal
from joint_embedding import task

from tfssl.pretext import lejepa
from tfssl.pretext.lejepa import directions

SMALL = {
    "projection_hidden": 8,
    "projection_size": 4,
    "directions": 8,
    "small_crops": 2,
    "small_size": 8,
}


def test_the_loss_of_a_second_implementation(float64, monkeypatch):
    """lightly 1.6, of two large views and a small one."""
    along = normal(8, 64, 16) / np.linalg.norm(normal(8, 64, 16), axis=0)
    monkeypatch.setattr(lejepa, "directions", lambda *_: along)
    model, z = task("lejepa", **SMALL), tf.constant(np.stack([X, Y, normal(9)], 1))
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss, measured = model.contrast({"weight": tf.ones([len(X)], tf.float64)}, {"z": z})
        loss = tf.reduce_mean(loss)
    assert float(loss) == pytest.approx(0.7264386501, abs=1e-9)
    assert np.mean(measured["invariance"]) == pytest.approx(0.7084387362, abs=1e-9)
    assert np.linalg.norm(tape.gradient(loss, z)) == pytest.approx(0.0281193657, abs=2e-8)


def test_a_collapse_raises_the_alarm():
    model = task("lejepa", **SMALL)
    model.batch_size = 64
    assert model.alarm({"spread": 1.0, "sigreg": 2.0}) is None
    assert "collapsed" in model.alarm({"spread": 1.0, "sigreg": 0.402 * 64})


def test_levels_of_independent_views():
    """Two large views and two small ones: the large ones are part of the mean that they are
    measured by."""
    chance = task("lejepa", **SMALL).chance()
    assert chance["invariance"] == pytest.approx((2 * 0.5 + 2 * 1.5) / 4)
    assert chance["loss"] == pytest.approx(0.95 * 1.0 + 0.05 * 1.053)


def test_directions_are_of_length_one_and_anew_at_each_step():
    first, second = directions(16, 400, 0).numpy(), directions(16, 400, tf.constant(1)).numpy()
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1, rtol=1e-5)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, directions(16, 400, tf.constant(0, tf.int64)))
    np.testing.assert_allclose(
        first @ first.T * 16 / 400, np.eye(16), atol=0.25
    )  # as likely to all sides
    assert np.abs(first.mean(1)).max() < 0.05
    compiled = tf.function(lambda: directions(16, 400, 0), jit_compile=True)()
    np.testing.assert_allclose(compiled, first, atol=1e-5)

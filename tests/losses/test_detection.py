"""Losses of detectors against naive loops; focal loss and GIoU in the test of their protocol."""

import numpy as np
import tensorflow as tf

from tfssl.losses.detection import centerness


def test_centerness_is_that_of_the_formula():
    ends = np.random.default_rng(0).uniform(0.1, 9, [40, 4])
    expected = [np.sqrt(min(e, r) / max(e, r) * min(t, b) / max(t, b)) for t, e, b, r in ends]
    np.testing.assert_allclose(centerness(tf.constant(ends)), expected, rtol=1e-12)
    edge = tf.constant([[0.0, 3, 4, 5], [-1, 3, 4, 5], [0, 0, 0, 0], [2, 7, 2, 7]])
    with tf.GradientTape() as tape:
        tape.watch(edge)
        values = centerness(edge)
    np.testing.assert_array_equal(values, [0, 0, 0, 1])  # the edge, outside, no object, the center
    assert np.isfinite(tape.gradient(values, edge)).all()

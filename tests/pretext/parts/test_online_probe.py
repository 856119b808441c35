"""The online linear probe learns, and disturbs nothing."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import task, train

from tfssl.errors import UserError
from tfssl.training.checkpoints import Checkpoints


def test_the_probe_learns_and_sends_no_gradient(source):
    with_probe, without = (task("simclr", projection_size=4, num_classes=c) for c in (2, 0))
    for model in (with_probe, without):
        tf.keras.utils.set_random_seed(0)
        for v, w in zip(model.backbone.variables, with_probe.backbone.variables):
            v.assign(w)
        for v, w in zip(model.projection.variables, with_probe.projection.variables):
            v.assign(w)
    histories = [train(model, source, 3) for model in (with_probe, without)]
    for v, w in zip(with_probe.backbone.variables, without.backbone.variables):
        np.testing.assert_allclose(v, w, atol=1e-6)
    np.testing.assert_allclose(
        histories[0]["loss"], histories[1]["loss"], rtol=1e-5
    )  # the method's own is reported
    assert "probe_accuracy" in histories[0] and "probe_accuracy" not in histories[1]


def test_a_probe_that_diverged_stops_nobody(source, tmp_path):
    """The method learns as beside a healthy one, in float16 too, whose loss scaling would skip
    every step; checkpoints are written; it is said once."""
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        states = []
        for kernel in (0.0, np.nan):
            tf.keras.utils.set_random_seed(0)
            model = task("simclr", projection_size=4, num_classes=2)
            sgd = tf.keras.optimizers.SGD(0.1)
            model.compile(
                tf.keras.mixed_precision.LossScaleOptimizer(sgd, initial_scale=16)
            )  # which overflows nowhere
            model.probe.kernel.assign(tf.fill(model.probe.kernel.shape, kernel))
            before = model.projection.dense[0].kernel.numpy()
            train(model, source, 2)
            states.append(
                [
                    v.numpy()
                    for part in (model.backbone, model.projection)
                    for v in part.trainable_variables
                ]
            )
            assert np.any(model.projection.dense[0].kernel.numpy() != before)
        assert model.counters["nonfinite_steps"] == 0
        for healthy, beside in zip(*states):
            np.testing.assert_allclose(beside, healthy, rtol=1e-5, atol=1e-7)
        Checkpoints(model, str(tmp_path)).save(2)
        assert sorted(path.name for path in tmp_path.glob("*.index")) == ["ckpt-2.index"]
        measured = {m.name: float(m.result()) for m in model.metrics}
        assert np.isfinite(measured["loss"]) and np.isnan(measured["probe_accuracy"])
        assert "online probe" in model.alarm(measured) and model.alarm(measured) is None
        model.projection.dense[0].kernel.assign_add(
            tf.fill(model.projection.dense[0].kernel.shape, np.nan)
        )
        train(model, source, 1)
        assert model.counters["nonfinite_steps"] == 1  # the method's own
        with pytest.raises(UserError, match="is not finite after step 3"):
            Checkpoints(model, str(tmp_path)).save(3)
    finally:
        tf.keras.mixed_precision.set_global_policy(None)

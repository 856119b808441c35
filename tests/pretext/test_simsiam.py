"""SimSiam: the fixed rate of its predictor."""

import pytest
import tensorflow as tf
from joint_embedding import task

import tfssl


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("policy,name", [("float32", "nesterov"), ("mixed_float16", "adam")])
def test_simsiams_prediction_keeps_the_peak_rate(policy, name, fixed):
    """With any optimizer: where the cosine is at half, the same gradients move it twice as far.
    Adam's first step is the rate."""
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = task("simsiam", projection_size=8, prediction_size=4, fixed_prediction_rate=fixed)
        model.compile(
            tfssl.optim.build(name, tfssl.optim.schedule("cosine", 0.4, 10), momentum=0.5)
        )
        model.prepare()
        model.optimizer.iterations.assign(5)
        before = [v.numpy() for v in model.trainable_variables]
        scale = model.optimizer.loss_scale if policy == "mixed_float16" else 1.0
        scaled = [tf.ones_like(v) * scale for v in model.trainable_variables]
        gradients = model._loss_scaling("get_unscaled_gradients", scaled)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        moved = {id(v): b - v.numpy() for b, v in zip(before, model.trainable_variables)}
        own = {id(v) for v in model.prediction.trainable_variables}
        (slow,) = {round(float(moved[i].mean()), 5) for i in moved if i not in own}
        (fast,) = {round(float(moved[i].mean()), 5) for i in own}
        assert slow > 0.1 and fast == pytest.approx((1 + fixed) * slow, rel=1e-3)
    finally:
        tf.keras.mixed_precision.set_global_policy(None)

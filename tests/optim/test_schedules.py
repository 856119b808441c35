"""Schedules against their formulas."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.errors import UserError


def test_piecewise_is_the_published_schedule():
    """Kolesnikov et al.: 35 epochs, warm-up over 5, x0.1 after 15 and 25; here 10 steps an epoch,
    512 images at 0.1 per 256."""
    rate = optim.schedule(
        "piecewise", peak=0.2, total_steps=350, warmup_steps=50, decay_steps=[150, 250]
    )
    expected = {
        0: 0.0,
        25: 0.1,
        49: 0.196,
        50: 0.2,
        150: 0.2,
        151: 0.02,
        250: 0.02,
        251: 0.002,
        349: 0.002,
    }
    np.testing.assert_allclose(
        [float(rate(s)) for s in expected], list(expected.values()), rtol=1e-6
    )


def test_piecewise_equals_keras_after_warmup():
    ours = optim.schedule("piecewise", peak=0.5, total_steps=100, decay_steps=[30, 60, 80])
    theirs = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
        [30, 60, 80], [0.5, 0.05, 0.005, 0.0005]
    )
    for step in range(0, 100, 5):
        np.testing.assert_allclose(float(ours(step)), float(theirs(step)), rtol=1e-6)


def test_cosine_ends():
    rate = optim.schedule("cosine", peak=0.3, total_steps=110, warmup_steps=10)
    values = [float(rate(s)) for s in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.15, 0.3, 0.15, 0], atol=1e-7)
    np.testing.assert_allclose(float(rate(35)), 0.15 * (1 + math.cos(math.pi / 4)), rtol=1e-6)


def test_constant():
    rate = optim.schedule("constant", peak=0.3, total_steps=10, decay_steps=[3])
    assert [round(float(rate(s)), 6) for s in (0, 9)] == [0.3, 0.3]


def ijepa(step, start=2e-4, peak=1e-3, end=1e-6, warmup=40, total=300):
    """The rate of I-JEPA's WarmupCosineSchedule, by its formula."""
    if step < warmup:
        return start + step / warmup * (peak - start)
    progress = (step - warmup) / (total - warmup)
    return max(end, end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress)))


def test_a_start_and_a_floor():
    rate = optim.schedule("cosine", 1e-3, 300, 40, start=2e-4, end=1e-6)
    steps = (0, 1, 20, 39, 40, 41, 170, 299, 300)
    np.testing.assert_allclose(
        [float(rate(s)) for s in steps], [ijepa(s) for s in steps], rtol=1e-5
    )
    np.testing.assert_allclose(
        [float(rate(s)) for s in (0, 20, 40, 300, 400)], [2e-4, 6e-4, 1e-3, 1e-6, 1e-6], rtol=1e-5
    )


@pytest.mark.parametrize("form", ["cosine", "piecewise", "constant"])
def test_without_them_each_bit_is_as_it_was(form):
    """The formulas of before there was a choice."""

    def before(step, peak=0.3, warmup=7.5, steps=(20, 40), total=60):
        step = tf.cast(step, tf.float32)
        if form == "cosine":
            progress = tf.clip_by_value((step - warmup) / max(1, total - warmup), 0.0, 1.0)
            rate = peak * 0.5 * (1.0 + tf.cos(math.pi * progress))
        else:
            steps = steps if form == "piecewise" else ()
            passed = tf.add_n(
                [tf.cast(step > boundary, tf.float32) for boundary in steps] or [tf.zeros([])]
            )
            rate = peak * tf.pow(0.1, passed)
        return tf.where(step < warmup, peak * step / max(1, warmup), rate)

    now = optim.schedule(form, 0.3, 60, 7.5, (20, 40))
    assert [float(now(s)) for s in range(61)] == [float(before(s)) for s in range(61)]
    graph = tf.function(now)
    assert [float(graph(tf.constant(s))) for s in range(61)] == [
        float(tf.function(before)(tf.constant(s))) for s in range(61)
    ]


def test_weight_decay_and_other_quantities():
    """DINO's weight decay, end + 0.5 (start - end) (1 + cos(pi t / T)), a teacher's decay to 1, and
    its temperature's warm-up."""
    decay = optim.schedule("cosine", 0.04, 100, end=0.4)
    target = optim.schedule("cosine", 0.996, 100, end=1.0)
    for t in (0, 1, 25, 50, 99, 100):
        cosine = 0.5 * (1 + math.cos(math.pi * t / 100))
        np.testing.assert_allclose(float(decay(t)), 0.4 + (0.04 - 0.4) * cosine, rtol=1e-5)
        np.testing.assert_allclose(float(target(t)), 1 - (1 - 0.996) * cosine, rtol=1e-6)
    temperature = optim.schedule("constant", 0.07, 100, 30, start=0.04)
    np.testing.assert_allclose(
        [float(temperature(t)) for t in (0, 15, 30, 99)], [0.04, 0.055, 0.07, 0.07], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["piecewise", "cosine"])
def test_schedules_survive_serialization_and_graphs(name):
    end = 0.01 if name == "cosine" else 0.0
    rate = optim.schedule(
        name, 0.3, total_steps=110, warmup_steps=10, decay_steps=[50], start=0.02, end=end
    )
    again = type(rate).from_config(rate.get_config())
    graph = tf.function(again)
    for step in (0, 7, 50, 51, 109):
        np.testing.assert_allclose(
            float(graph(tf.constant(step, tf.int64))), float(rate(step)), rtol=1e-6
        )


def test_contradictions():
    with pytest.raises(UserError, match="piecewise, cosine, constant"):
        optim.schedule("step", 0.1, 10)
    with pytest.raises(UserError, match="ascend"):
        optim.schedule("piecewise", 0.1, 10, decay_steps=[5, 3])
    with pytest.raises(UserError, match="end of a cosine: choose schedule=cosine, not constant"):
        optim.schedule("constant", 0.1, 10, end=0.01)
    with pytest.raises(UserError, match="where warm-up begins"):
        optim.schedule("cosine", 0.1, 10, start=0.01)

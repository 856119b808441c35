"""What a run is built of: its optimizer, with the schedules of its rate and its weight decay."""

import numpy as np

from tfssl.config.configs import TrainConfig
from tfssl.config.plan import plan
from tfssl.training import build


def optimizer_of(weight_decay=0.04, own=(), **settings):
    """Of a run of 40 steps of 512 images, with 4 of warm-up."""
    given = {
        "optimizer": "adamw",
        "batch_size": 512,
        "train_steps": 40,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
    }
    config = TrainConfig(optimizer_settings=dict(own)).replace(**{**given, **settings})
    return build.build_optimizer(config, plan(config.optimization, 2048), weight_decay)


def test_rates_of_a_run_are_scaled_together():
    """By 512 / 256 here: start, peak and end."""
    optimizer = optimizer_of(initial_rate=0.02, final_rate=0.001)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 4, 22, 40)]
    np.testing.assert_allclose(rates, [0.04, 0.2, 0.101, 0.002], rtol=1e-5)
    assert optimizer.decoupled_decay == 0.04
    decay = optimizer_of(final_weight_decay=0.4).decoupled_decay
    np.testing.assert_allclose(
        [float(decay(step)) for step in (0, 20, 40)], [0.04, 0.22, 0.4], rtol=1e-5
    )


def test_settings_reach_the_optimizer():
    optimizer = optimizer_of(
        own={"beta_2": 0.95, "epsilon": 1e-3, "momentum": 0.5, "clipnorm": 3.0}
    )
    assert (optimizer.beta_2, optimizer.epsilon, optimizer.momentum, optimizer.clipnorm) == (
        0.95,
        1e-3,
        0.5,
        3.0,
    )
    optimizer = optimizer_of(optimizer="nesterov")  # the loss has the weight decay
    assert optimizer.nesterov and optimizer.momentum == 0.9 and optimizer.weight_decay is None


def test_the_neck_of_the_flags_is_the_networks():
    config = TrainConfig(task_settings={}, backbone_settings={"stem": "small"}).replace(
        backbone="resnet18_v2", neck="fpn", neck_width=5
    )
    backbone = build.build_model(config).backbone
    assert backbone.config()["neck"] == "fpn" and backbone.neck_width == 5
    plain = build.build_model(config.replace(neck="")).backbone
    assert "neck" not in plain.config()

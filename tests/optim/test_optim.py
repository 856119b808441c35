"""Optimizers by name: their settings, which are their flags; and what decays where."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.config import bounds
from tfssl.errors import UserError


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_momentum_steps(name):
    """v <- m v - r g, w <- w + v; Nesterov: w <- w + m v - r g."""
    variable = tf.Variable([1.0])
    optimizer = optim.build(name, 0.1, momentum=0.5)
    optim.create_slots(optimizer, [variable])
    w, v = 1.0, 0.0
    for g in (2.0, -1.0, 3.0):
        optimizer.apply_gradients([(tf.constant([g]), variable)])
        v = 0.5 * v - 0.1 * g
        w += 0.5 * v - 0.1 * g if name == "nesterov" else v
        np.testing.assert_allclose(variable.numpy(), [w], rtol=1e-5)


KERAS = {
    "sgd": tf.keras.optimizers.SGD(0.1, momentum=0.8),
    "nesterov": tf.keras.optimizers.SGD(0.1, momentum=0.8, nesterov=True),
    "adam": tf.keras.optimizers.Adam(0.1, beta_1=0.8),
}


@pytest.mark.parametrize("name", KERAS)
def test_those_of_keras_step_and_store_as_keras_does(name, tmp_path):
    """To the bit; and a checkpoint of the one restores into the other."""
    ours, theirs = optim.build(name, 0.1, 0.8), KERAS[name]
    variables = [[tf.Variable(tf.ones([3, 2])), tf.Variable(tf.zeros([2]))] for _ in range(2)]
    for optimizer, own in zip((ours, theirs), variables):
        optim.create_slots(optimizer, own)
        for step in range(3):
            optimizer.apply_gradients([(tf.fill(v.shape, 0.3 - 0.1 * step), v) for v in own])
    for x, y in zip(*variables):
        np.testing.assert_array_equal(x, y)
    path = tf.train.Checkpoint(optimizer=theirs, variables=variables[1]).save(
        str(tmp_path / "ckpt")
    )
    restored = tf.train.Checkpoint(optimizer=ours, variables=variables[0])
    restored.restore(path).assert_existing_objects_matched().assert_consumed()


@pytest.mark.parametrize("name", optim.NAMES)
def test_a_configuration_makes_the_same_optimizer(name):
    settings = {"weight_decay": 0.05} if optim.own_decay(name) else {}
    config = optim.build(name, 0.5, 0.8, global_clipnorm=2.0, **settings).get_config()
    assert {
        **config,
        "momentum": 0.8,
        "learning_rate": 0.5,
        "global_clipnorm": 2.0,
        **settings,
    } == config
    assert optim.OPTIMIZERS.find(name).from_config(dict(config)).get_config() == config


def test_each_setting_is_a_flag_with_bounds():
    flags = optim.optimizer_flags()
    assert set(flags.flags) == {
        "momentum",
        "clipnorm",
        "global_clipnorm",
        "beta_2",
        "optimizer_epsilon",
    }
    assert set(flags.flags) <= set(bounds.OF_FLAG)
    assert flags.defaults("sgd") == {"momentum": 0.9, "clipnorm": 0.0, "global_clipnorm": 0.0}
    assert flags.defaults("lars_byol") == flags.defaults("sgd")
    assert flags.arguments("adamw", {"optimizer_epsilon": 1e-3})["epsilon"] == 1e-3
    with pytest.raises(UserError, match="--beta_2 is not a setting of optimizer 'sgd'"):
        flags.check("sgd", {"beta_2": 0.9})


class Mine(tf.keras.optimizers.SGD):
    def __init__(self, learning_rate, **keras):
        super().__init__(learning_rate, **keras)


def test_names_and_settings_that_there_are_not():
    with pytest.raises(UserError, match="sgd, nesterov, adam, adamw, lamb.*mypackage"):
        optim.build("sdg", 0.1)
    with pytest.raises(UserError, match="optimizer 'sgd': beta_2 is not a valid argument"):
        optim.build("sgd", 0.1, beta_2=0.9)
    with pytest.raises(UserError, match="part of the task's loss"):
        optim.build("sgd", 0.1, weight_decay=0.1)
    with pytest.raises(UserError, match="--clipnorm=1 and --global_clipnorm=2"):
        optim.build("sgd", 0.1, clipnorm=1.0, global_clipnorm=2.0)
    with pytest.raises(UserError, match="beta_2=1 is the decay of a moment in AdamW"):
        optim.build("adamw", 0.1, beta_2=1.0)


def test_an_optimizer_of_ones_own(monkeypatch):
    assert isinstance(optim.build(f"{__name__}:Mine", 0.1, clipnorm=1.0), Mine)
    assert optim.own_decay(f"{__name__}:Mine") == ()

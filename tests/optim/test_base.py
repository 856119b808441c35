"""Clipping, and which variables weight decay acts on, in the training of whole tasks."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, optim, pretext
from tfssl.runtime import strategy as strategies


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def task(**settings):
    """Rotation, with a network that has no batch statistics, so that parts of a batch are as good
    as the whole."""
    convolutions = [
        tf.keras.layers.Conv2D(6, 3, 2, activation="relu", name="conv1"),
        tf.keras.layers.Conv2D(8, 3, 2, name="conv2"),
    ]
    network = tf.keras.Sequential([*convolutions, tf.keras.layers.LayerNormalization(name="norm")])
    return pretext.build(
        "rotation", backbones.build(network), image_size=16, color=False, **settings
    )


def trained(source, name, strategy=None, accumulate=1, **settings):
    """(weights, largest step of a weight) of three steps."""
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = task(weight_decay=0.0)
        model.compile(optim.build(name, 0.1, **settings), accumulate_steps=accumulate)
    model.prepare()
    start = [v.numpy() for v in model.trainable_variables]
    batches = strategies.training_data(strategy, model, source, 8, 2, 0, 3)
    model.fit(batches, steps_per_epoch=3, epochs=1, verbose=0)
    weights = [v.numpy() for v in model.trainable_variables]
    return weights, np.sqrt(sum(((w - s) ** 2).sum() for w, s in zip(weights, start)))


def assert_same(found, expected):
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)


def test_a_batch_in_parts_is_clipped_as_a_whole(source, float64):
    """SGD moves each variable by at most rate * norm per step; nearly by that where gradients are
    longer and point one way."""
    settings = {"momentum": 0.0, "clipnorm": 1e-3}
    alone, length = trained(source, "sgd", **settings)
    bound = 3 * 0.1 * 1e-3 * np.sqrt(len(alone))
    assert 0.5 * bound < length <= bound * (1 + 1e-9)
    assert_same(trained(source, "sgd", accumulate=2, **settings)[0], alone)


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_the_online_probe_has_no_part_in_clipping(name, photos):
    """Labels would otherwise change the network's steps, and a diverging probe stop it."""
    source = tfssl.open_source(f"folder:{photos}")

    def task(**settings):
        network = tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(6, 3, 2, name="conv"),
                tf.keras.layers.GlobalAveragePooling2D(name="pool"),
            ]
        )
        model = pretext.build(
            "simclr", backbones.build(network), image_size=16, augmentation="crop", **settings
        )
        model.compile(optim.build(name, 0.1, global_clipnorm=1e-3))
        model.prepare()
        return model, [v for part in (network, model.projection) for v in part.variables]

    (alone, own), (probed, others) = task(), task(num_classes=2)
    for mine, other in zip(own, others):
        other.assign(mine)
    for model in (alone, probed):
        model.fit(model.dataset(source, 8, steps=2), steps_per_epoch=2, verbose=0)
    assert np.ptp(probed.probe.bias) > 1e-3  # it learns, unclipped
    assert_same(others, own)


def test_replicas_clip_and_decay_like_one(source, replicas, float64):
    settings = {"weight_decay": optim.schedule("cosine", 0.04, 3, end=0.4), "global_clipnorm": 1e-3}
    alone, _ = trained(source, "adamw", **settings)
    assert_same(trained(source, "adamw", replicas, **settings)[0], alone)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_float16_with_loss_scaling(name, source):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        weights, length = trained(source, name, weight_decay=0.05, global_clipnorm=1.0)
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    assert length > 0 and all(w.dtype == np.float32 and np.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_decay_acts_on_kernels_or_on_all(name):
    """As the task says: those of convolutions and dense layers, or biases and normalizations
    too."""
    for decay in ("kernels", "all"):
        model = task(decay=decay)
        model.compile(optim.build(name, 0.1, weight_decay=0.1))
        model.prepare()
        decayed = {v.name for v in model.optimizer.kernels()}
        every = {v.name for v in model.trainable_variables}
        assert (
            decayed == (every if decay == "all" else {n for n in every if "kernel" in n})
            and len(every) > 6
        )


def test_where_nobody_tells_kernels_they_are_seen_by_shape():
    variables = [tf.Variable(tf.ones([2, 2]), name="w"), tf.Variable(tf.ones([2]), name="b")]
    variables += [
        tf.Variable(tf.ones([1, 2, 2]), name=name)
        for name in ("norm/gamma", "vit/cls", "vit/registers", "vit/positions", "vit/cls_position")
    ]
    optimizer = optim.build("adamw", 0.1, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros(v.shape), v) for v in variables])
    np.testing.assert_allclose([v.numpy().min() for v in variables], [0.95, *[1] * 6])

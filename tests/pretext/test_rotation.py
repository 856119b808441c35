"""Rotation: labels against np.rot90, the chance level, and that it can be learnt."""

import math

import numpy as np
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext


def rotation(**settings):
    backbone = backbones.build("resnet18_v2", 0.125, "small", bn_momentum=0.8)
    return pretext.build("rotation", backbone, image_size=16, min_area=0.5, **settings)


def test_copies_are_counter_clockwise_quarter_turns():
    images = np.random.default_rng(0).random([3, 8, 8, 3], np.float32)
    views = rotation().preview({"image": tf.constant(images)}).numpy()
    np.testing.assert_array_equal(views, [np.rot90(x, k) for x in images for k in range(4)])


def test_chance_is_what_an_ignorant_network_reaches():
    model = rotation()
    batch = {"image": tf.zeros([2, 16, 16, 3])}
    losses, measured = model.objective(batch, tf.zeros([8, 4]))
    assert model.chance()["loss"] == math.log(4)
    np.testing.assert_allclose(losses, [math.log(4)] * 8, rtol=1e-6)
    perfect = tf.tile(tf.eye(4) * 50, [2, 1])
    losses, measured = model.objective(batch, perfect)
    assert float(tf.reduce_max(losses)) < 1e-6 and float(tf.reduce_min(measured["accuracy"])) == 1.0
    assert (
        float(tf.reduce_mean(model.objective(batch, tf.roll(perfect, 1, 0))[1]["accuracy"])) == 0.0
    )


def test_it_learns(photos):
    tf.keras.utils.set_random_seed(0)
    source = tfssl.open_source(f"folder:{photos}", "train[:75%]")
    held_out = tfssl.open_source(f"folder:{photos}", "train[75%:]")
    model = rotation()
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(model.dataset(source, 12), epochs=1, steps_per_epoch=40, verbose=0)
    result = model.evaluate(model.evaluation_dataset(held_out, 12), verbose=0, return_dict=True)
    assert result["accuracy"] > 0.8 and result["loss"] < 0.7, result


def test_a_users_own_model_is_a_backbone_as_it_is():
    own = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(5, 3, name="c"), tf.keras.layers.GlobalAveragePooling2D(name="g")]
    )
    model = pretext.build("rotation", own, image_size=16)
    assert model({"image": tf.zeros([2, 16, 16, 3])}).shape == (8, 4)

"""Tiny joint-embedding tasks, and their parameters counted by hand."""

import numpy as np
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.backbones.norm import BatchNorm

SMALL = {"image_size": 16, "augmentation": "crop"}


def tiny(channels=6):
    return backbones.build(
        tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(channels, 3, 2, activation="tanh", name="conv"),
                tf.keras.layers.GlobalAveragePooling2D(name="pool"),
            ]
        )
    )


def normalized():
    """A batch normalization and a mean."""
    network = tf.keras.Sequential(
        [BatchNorm(name="norm"), tf.keras.layers.GlobalAveragePooling2D(name="pool")]
    )
    return backbones.build(network)


def task(name, **settings):
    model = pretext.build(name, tiny(), **{**SMALL, **settings})
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.prepare()
    return model


def train(model, source, steps, batch_size=8):
    return model.fit(
        model.dataset(source, batch_size, steps=steps), steps_per_epoch=steps, verbose=0
    ).history


def head_parameters(name, width=2048, **settings):
    """Parameters of the heads on features of a ResNet-50's width, counted without running the
    network."""
    features = tf.keras.Sequential(
        [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(width, use_bias=False)]
    )
    model = pretext.build(name, features, image_size=8, augmentation="crop", **settings)
    model.prepare()
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables) - 3 * width


def dense(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs

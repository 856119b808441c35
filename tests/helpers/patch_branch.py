"""Tiny tasks with a jigsaw branch, and formulas in NumPy."""

import numpy as np
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.data.ops.draws import Draws

SMALL = {
    "image_size": 16,
    "jigsaw_size": 30,
    "jigsaw_patch_size": 8,
    "projection_size": 4,
    "augmentation": "crop",
}


OWN = {
    "pirl": {"num_images": 48, "negatives": 6},
    "infomin": {"queue_size": 16, "split_batch_norm": 1},
}


def task(name, width=5, **settings):
    network = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(width, 3, 2, activation="tanh", name="conv"),
            tf.keras.layers.GlobalAveragePooling2D(name="pool"),
        ]
    )
    model = pretext.build(name, backbones.build(network), **{**SMALL, **OWN[name], **settings})
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.prepare()
    return model


def first_batch(model, source, rows=6):
    batch = model.to_float(next(iter(model.dataset(source, rows, seed=2))))
    return model.augment(batch, Draws(batch))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

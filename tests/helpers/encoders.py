"""Small modules that tests fine-tune: they are traced in a moment."""

import tensorflow as tf

from tfssl import backbones, export, pretext


def encoder(channels=6):
    """A SimCLR task for 16 pixels, untrained: a normalization of the images, a convolution, a
    normalization; a projection of two layers."""
    tf.keras.utils.set_random_seed(0)
    layers = [
        tf.keras.layers.BatchNormalization(momentum=0.8, name="first"),
        tf.keras.layers.Conv2D(channels, 3, activation="relu", name="conv"),
        tf.keras.layers.BatchNormalization(momentum=0.8, name="second"),
    ]
    task = pretext.build(
        "simclr", backbones.build(tf.keras.Sequential(layers, name="own")), image_size=16
    )
    task.prepare()
    return task


def save_encoder(path, channels=6, head_endpoints=0):
    """The module of an `encoder`. Returns the path as a string."""
    return export.save(encoder(channels), path, head_endpoints=head_endpoints)

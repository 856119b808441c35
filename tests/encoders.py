"""Small modules that tests fine-tune: they are traced in a moment."""

import tensorflow as tf

from tfssl import backbones, export, pretext


def save_encoder(path, channels=6, head_endpoints=0):
    """A SimCLR encoder for 16 pixels, untrained: a normalisation of the images, a convolution, a normalisation. Its projection has two
    layers. Returns the path as a string."""
    tf.keras.utils.set_random_seed(0)
    layers = [
        tf.keras.layers.BatchNormalization(momentum=0.8, name="first"),
        tf.keras.layers.Conv2D(channels, 3, activation="relu", name="conv"),
        tf.keras.layers.BatchNormalization(momentum=0.8, name="second"),
    ]
    task = pretext.build("simclr", backbones.build(tf.keras.Sequential(layers, name="own")), image_size=16)
    task.prepare()
    return export.save(task, path, head_endpoints=head_endpoints)

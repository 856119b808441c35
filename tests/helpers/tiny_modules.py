"""Small hand-written SavedModels, as the Hub knows them: one of ours, and those that other people
publish."""

import json
import os
import tarfile

import tensorflow as tf

DEPTH = [
    "stem",
    "block",
    "pre_logits",
]  # not the alphabetical order, in which SavedModel returns them
_IMAGES = tf.TensorSpec([None, None, None, 3], tf.float32)


class Encoder(tf.Module):
    """Two fixed random convolutions; with `training` its answer is wrong on purpose."""

    def __init__(self, seed=0):
        super().__init__()
        self.first = tf.Variable(tf.random.stateless_normal([3, 3, 3, 8], [seed, 1]))
        self.second = tf.Variable(tf.random.stateless_normal([3, 3, 8, 16], [seed, 2]) / 6)

    def maps(self, images, training=False):
        stem = tf.nn.relu(tf.nn.conv2d(images - 0.5, self.first, 1, "SAME"))
        block = tf.nn.relu(tf.nn.conv2d(stem, self.second, 2, "SAME"))
        pre_logits = tf.reduce_mean(block, [1, 2]) + (100.0 if training else 0.0)
        return {"stem": stem, "block": block, "pre_logits": pre_logits}


def save_ours(folder, image_size=16, resize=20, seed=0):
    """A module as tfssl-export writes it."""
    encoder = Encoder(seed)

    @tf.function
    def endpoints(images, training=False):
        return encoder.maps(images, training)

    @tf.function
    def vector(images, training=False):
        return encoder.maps(images, training)["pre_logits"]

    def reusable(function):
        obj = tf.train.Checkpoint()
        obj.__call__ = function
        obj.variables, obj.trainable_variables, obj.regularization_losses = (
            list(encoder.variables),
            [],
            [],
        )
        for training in (False, True):
            function.get_concrete_function(_IMAGES, training=training)
        return obj

    module = reusable(vector)
    module.endpoints = reusable(endpoints)
    facts = {
        "format": 1,
        "task": "none",
        "endpoints": DEPTH,
        "image_size": image_size,
        "crop": image_size,
        "resize": resize,
    }
    path = os.path.join(str(folder), "tfssl.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(facts, f)
    module.facts = tf.saved_model.Asset(path)
    tf.saved_model.save(module, os.path.join(str(folder), "1"))
    os.remove(path)
    return os.path.join(str(folder), "1")


def save_callable(folder, size=None):
    """Somebody's module: no training argument, no endpoints; of a fixed input size if asked."""
    encoder = Encoder()

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32)])
    def function(images):
        return encoder.maps(images)["pre_logits"]

    module = tf.train.Checkpoint(encoder=encoder)
    module.__call__ = function
    tf.saved_model.save(module, str(folder), signatures={})
    return str(folder)


def save_signature(folder, name="serving_default", size=16):
    """A module that has nothing but one signature, in the manner of TF1's Hub; its outputs are a
    dict."""
    encoder = Encoder()

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, name="images")])
    def function(images):
        maps = encoder.maps(images)
        return {"default": maps["pre_logits"], "net/block": maps["block"]}

    tf.saved_model.save(
        tf.train.Checkpoint(encoder=encoder), str(folder), signatures={name: function}
    )
    return str(folder)


def save_text(folder):
    """A module that takes text."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def function(text):
        return tf.cast(tf.strings.length(text), tf.float32)

    module = tf.train.Checkpoint()
    module.__call__ = function
    tf.saved_model.save(module, str(folder), signatures={})
    return str(folder)


def pack(module, path, prefix="."):
    """A tarball of a module's folder."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(module, arcname=prefix)
    return str(path)

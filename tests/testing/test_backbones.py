"""Our backbones keep the promises that users' are held to, and each broken promise is named."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones
from tfssl.backbones import Network, resnet, revnet
from tfssl.testing import check_backbone

TINY = {"width_multiplier": 1 / 16, "stem": "small", "jit_compile": False, "image_size": 16}
OURS = {
    "resnet18_v1": {**TINY, "representation_size": 6, "bn_groups": 2},
    "resnet18_v2": {**TINY, "jit_compile": True, "image_size": 8},
    "resnet50_v1": {**TINY, "sk_ratio": 0.0625},
    "resnet50_v2": {**TINY, "stem": "imagenet", "output_stride": 8},
    "revnet18": {**TINY, "remat": True},
    "vgg11": {**TINY, "width_multiplier": 1 / 32, "remat": True},
    "resnet18_v2 ": {**TINY, "neck": "fpn", "neck_width": 5, "neck_tower": 1},
    "alexnet_lrn": {**TINY, "remat": True, "jit_compile": True, "image_size": 20},
}


@pytest.mark.parametrize("name", OURS)
def test_ours(name, monkeypatch):
    monkeypatch.setattr(revnet, "UNITS", {18: (1, 2, 1, 1)})
    monkeypatch.setattr(resnet, "DEPTHS", {18: (1, 2, 1, 1), 50: (1, 1, 2, 1)})
    check_backbone(name.strip(), **OURS[name])


@pytest.mark.parametrize("functional", [False, True])
def test_a_model_of_keras(functional):
    known = {"input_shape": (None, None, 3)} if functional else {}
    check_backbone(
        lambda: tf.keras.Sequential([tf.keras.layers.Conv2D(5, 3, 2, **known)]), 8, channels=[3]
    )


class Tokens(Network):
    """Patches of 4x4 pixels, each through a layer of its own, and their mean."""

    endpoint_names, min_image_size = ("embedded", "tokens", "pre_logits"), 4
    endpoint_kinds = {"embedded": "map", "tokens": "tokens", "pre_logits": "vector"}

    def __init__(self, hidden=6, **common):
        super().__init__(**common)
        self.hidden = hidden
        self.norm_policy = dataclasses.replace(self.norm_policy, kind="layer")
        self.embed = tf.keras.layers.Conv2D(hidden, 4, 4, name="embed")
        self.norm1, self.dense = self.norm("norm"), tf.keras.layers.Dense(hidden, name="dense")

    def build_layers(self, shape):
        for layer, channels in (
            (self.embed, shape[-1]),
            (self.norm1, self.hidden),
            (self.dense, self.hidden),
        ):
            with tf.name_scope(layer.name):
                layer.build((None, None, None, channels))
        return self.hidden

    def endpoints(self, images, training, keep=None):
        embedded = self.embed(images)  # NxhxwxD
        x = tf.reshape(embedded, [tf.shape(images)[0], -1, self.hidden])  # NxLxD
        if None not in embedded.shape[1:3]:
            x = tf.reshape(x, [-1, embedded.shape[1] * embedded.shape[2], self.hidden])
        if keep is not None:
            x = embedded = tf.gather(x, keep, batch_dims=1)  # NxKxD
        tokens = x + self.dense(tf.sin(self.norm1(x)))
        mean = tf.reduce_mean(tf.cast(tokens, tf.keras.backend.floatx()), 1)
        return {"embedded": embedded, "tokens": tokens, "pre_logits": mean}


def test_a_network_of_tokens():
    check_backbone(Tokens, 8)
    network = backbones.build(Tokens)
    images, keep = tf.random.stateless_uniform([2, 8, 12, 3], [0, 0]), tf.constant([[4, 0], [1, 5]])
    everything, kept = network(images), network(images, keep=keep)
    expected = np.stack([everything["tokens"].numpy()[i, keep[i]] for i in range(2)])
    np.testing.assert_allclose(kept["tokens"], expected, rtol=1e-6)
    np.testing.assert_allclose(kept["pre_logits"], expected.mean(1), rtol=1e-5)
    assert backbones.build(Tokens, bn_sync=True).norm_policy == backbones.Norm("layer", sync=True)


class Reordered(Tokens):
    def endpoints(self, images, training, keep=None):
        return dict(reversed(super().endpoints(images, training, keep).items()))


class WrongKind(Tokens):
    endpoint_kinds = {"embedded": "map", "tokens": "map", "pre_logits": "vector"}


class RoundedFeatures(Tokens):
    def endpoints(self, images, training, keep=None):
        endpoints = super().endpoints(images, training, keep)
        return {**endpoints, "pre_logits": tf.cast(endpoints["pre_logits"], tf.float32)}


class ThreeChannels(Tokens):
    def endpoints(self, images, training, keep=None):
        return super().endpoints(
            images * tf.constant([1.0, 2.0, 3.0], images.dtype), training, keep
        )


class DynamicShape(Tokens):
    def endpoints(self, images, training, keep=None):
        endpoints = super().endpoints(images, training, keep)
        chosen = tf.boolean_mask(
            endpoints["tokens"], tf.ones(tf.shape(endpoints["tokens"])[1]) > 0, axis=1
        )
        return {**endpoints, "tokens": chosen}


class CountsInInference(Tokens):
    def build_layers(self, shape):
        self.calls = self.add_weight("calls", [], initializer="zeros", trainable=False)
        return super().build_layers(shape)

    def endpoints(self, images, training, keep=None):
        self.calls.assign_add(1.0)
        return super().endpoints(images, training, keep)


class ComparesImages(Tokens):
    def endpoints(self, images, training, keep=None):
        return super().endpoints(images - tf.reduce_mean(images, 0, keepdims=True), training, keep)


class SharesItsWeights(Tokens):
    def twin(self):
        return self


class LosesASetting(Tokens):
    def config(self):
        return {name: value for name, value in super().config().items() if name != "hidden"}


class ForgetsAWeight(Tokens):
    def build_layers(self, shape):
        self.unused = self.add_weight("unused", [3])
        return super().build_layers(shape)


class DrawsOnce(Tokens):
    def build_layers(self, shape):
        width, shared = super().build_layers(shape), tf.keras.initializers.RandomNormal()
        self.pair = [self.add_weight(name, [width, width], initializer=shared) for name in "ab"]
        return width


class IgnoresKeep(Tokens):
    def endpoints(self, images, training, keep=None):
        return super().endpoints(images, training)


class Rounds(Tokens):
    def endpoints(self, images, training, keep=None):
        endpoints = super().endpoints(images, training, keep)
        return {**endpoints, "pre_logits": tf.cast(endpoints["pre_logits"], self.compute_dtype)}


@pytest.mark.parametrize(
    "cls,settings,promise",
    [
        (Reordered, {}, "endpoint_names says"),
        (WrongKind, {}, "tokens is said to be of kind 'map'"),
        (RoundedFeatures, {}, "pre_logits are float64"),
        (ThreeChannels, {}, "images of 1 channels"),
        (DynamicShape, {}, "tokens of images .* has static shape"),
        (CountsInInference, {}, "inference changes .*calls"),
        (ComparesImages, {}, "embedded of an image alone differs"),
        (SharesItsWeights, {}, "shares variables"),
        (LosesASetting, {"hidden": 5}, "has other variables"),
        (ForgetsAWeight, {}, "no endpoint depends on .*unused"),
        (DrawsOnce, {}, "/b:0 begins with the values of .*/a:0"),
        (IgnoresKeep, {}, "embedded that keep all tokens has shape"),
        (Rounds, {}, "in mixed_bfloat16 pre_logits are float32"),
    ],
)
def test_a_broken_promise_is_named(cls, settings, promise):
    with pytest.raises(AssertionError, match=promise):
        check_backbone(cls, 8, jit_compile=False, **settings)

"""Exemplar-CNN: Dosovitskiy et al., "Discriminative Unsupervised Feature Learning with
Convolutional Neural Networks", NIPS 2014, and "... with Exemplar Convolutional Neural Networks",
TPAMI 2016 (arXiv 1406.6909)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.data.ops import image as ops
from tfssl.data.ops import patches, photometric
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError
from tfssl.losses import contrastive
from tfssl.pretext.parts.online_probe import Probed
from tfssl.pretext.task import Batch, Example, Measured, cross_entropy_chance

GEOMETRY, COLOURS = 4, 10  # numbers that make a transformation


class ExemplarCNN(Probed):
    """A patch of each image, where there is something to see, is a class of its own; the network
    tells the classes, N of them, of randomly transformed patches.

    A transformation is a vector of numbers, drawn uniformly in ranges about that of no change (of
    what multiplies, and of powers, the logarithm is uniform, from 1 / range to range): a
    translation, a scale, a rotation; contrast along the principal components of the patch's pixels;
    powers, factors and offsets of saturation and value; and of the hue. The host moves, the device
    colors.

    A class is for ever one patch: its place is drawn from a hash of the image's pixels. Class i is
    image i of the training split, so that validation, on untransformed patches, means something on
    that split (or the beginning of it) only; its probe_accuracy on any.

    Accuracy of the features saturates at 8000 to 16000 classes in the paper: of a larger data set
    take a part, --train_split=train[:8000].

    Args:
      num_images: images of the data set, which are the classes; 0 takes its number.
      image_size: side of a patch, in pixels (the paper: 32).
      scaled_size: shorter side, in pixels, to which an image is scaled before its patch is cut, and
        in the published encoder (the paper's STL-10 images: 96); where it is image_size, the patch
        of a square image is all of it.
      samples_per_class: so many fixed transformations of each patch (the paper: 150); 0: new ones
        each time.
      max_translation: up to this share of the patch's side, on either axis (the paper: 0.2).
      max_scale: up to so much larger or smaller (the paper: 0.7 to 1.4).
      max_rotation: up to so many degrees, to either side (the paper: 20).
      max_contrast: factor of each principal component (the paper: 0.5 to 2); 1 leaves it out. The
        components are those of the patch's own pixels about their mean, so that its mean color
        stays; in the paper, of the pixels of all patches.
      max_power: of saturation and value (the paper: 0.25 to 4); 1 leaves it out.
      max_factor: of saturation and value (the paper: 0.7 to 1.4); 1 leaves it out.
      max_offset: of saturation and value (the paper: 0.1).
      max_hue: in turns of the color circle (the paper: 0.1).
    """

    needs = ("color",)
    task = "exemplar_cnn"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_images: int = 0,
        image_size: int = 32,
        scaled_size: int = 96,
        samples_per_class: int = 0,
        max_translation: float = 0.2,
        max_scale: float = 1.4,
        max_rotation: float = 20.0,
        max_contrast: float = 2.0,
        max_power: float = 4.0,
        max_factor: float = 1.4,
        max_offset: float = 0.1,
        max_hue: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        if num_images < 1:
            raise UserError(
                "num_images is missing: each image is a class, and the classifier needs to know "
                "how many there are"
            )
        if not 2 <= image_size <= scaled_size:
            raise UserError(
                f"scaled_size={scaled_size} must be at least image_size={image_size}, which is cut "
                "out of it"
            )
        ratios = {
            "max_scale": max_scale,
            "max_contrast": max_contrast,
            "max_power": max_power,
            "max_factor": max_factor,
        }
        shifts = {
            "max_translation": max_translation,
            "max_rotation": max_rotation,
            "max_offset": max_offset,
            "max_hue": max_hue,
        }
        for least, settings in ((1, ratios), (0, shifts)):
            for name, value in settings.items():
                if value < least:
                    raise UserError(
                        f"{name}={value} must be at least {least}, which changes nothing"
                    )
        if samples_per_class < 0:
            raise UserError(
                f"samples_per_class={samples_per_class} must be a number of transformations, or 0 "
                "for new ones"
            )
        self.num_images, self.scaled_size, self.samples_per_class = (
            num_images,
            scaled_size,
            samples_per_class,
        )
        self.geometry = [max_translation] * 2 + [math.log(max_scale), max_rotation]
        logarithms = (
            [math.log(max_contrast)] * 3 + [math.log(max_power)] * 2 + [math.log(max_factor)] * 2
        )
        self.colours = logarithms + [max_offset] * 2 + [max_hue]
        self.head = tf.keras.layers.Dense(num_images, name="head", dtype=tf.keras.backend.floatx())

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        """{"image": the moved patch, uint8 [S, S, 3]; "colors": the numbers of its colors, uint8
        [10]}"""
        image = ops.resize_small(example["image"], self.scaled_size)
        own = tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(image), 1 << 40)
        size = self.image_size
        corner = patches.salient_corner(
            image, tf.random.stateless_uniform([], tf.stack([tf.zeros_like(own), own])), size
        )
        if seed is None:
            return {
                "image": patches.cut(image, corner[None], size)[0],
                "colors": tf.zeros([COLOURS], tf.uint8),
            }
        if self.samples_per_class:
            sample = tf.random.stateless_uniform(
                [], fork(seed, 0), 0, self.samples_per_class, tf.int64
            )
            seed = tf.stack([seed[0], own + sample * (1 << 40)])
        vector = tf.random.stateless_uniform([GEOMETRY + COLOURS], fork(seed, 1), -1, 1)
        down, right, scale, angle = tf.unstack(vector[:GEOMETRY] * self.geometry)
        patch = patches.affine_patch(
            image, corner, size, tf.stack([down, right]), tf.exp(scale), angle
        )
        return {
            "image": patch,
            "colors": tf.cast(tf.round((vector[GEOMETRY:] + 1) * 127.5), tf.uint8),
        }

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        numbers = (2 * batch["colors"] - 1) * self.colours  # Nx10
        contrast, powers, factors, offsets, hue = tf.split(numbers, [3, 2, 2, 2, 1], 1)
        images = tf.clip_by_value(
            photometric.scale_components(batch["image"], tf.exp(contrast)), 0, 1
        )
        images = photometric.adjust_hsv(images, tf.exp(powers), tf.exp(factors), offsets, hue[:, 0])
        return {**batch, "image": images}

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        x, probe = self.features(batch["image"], training)
        return {"logits": self.head(x), **probe}

    def objective(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        found = contrastive.classify(
            outputs["logits"], tf.cast(batch["index"] % self.num_images, tf.int32)
        )
        return self.probed(batch, found.loss, {"accuracy": found.accuracy}, outputs.get("probe"))

    def chance(self) -> dict[str, float]:
        return {**cross_entropy_chance(self.num_images), **super().chance()}

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.scaled_size, self.scaled_size

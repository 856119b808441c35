"""Rotation prediction: Gidaris et al., "Unsupervised Representation Learning by Predicting Image
Rotations", ICLR 2018."""

from typing import Any

import tensorflow as tf

from tfssl.data.ops.photometric import four_rotations
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.task import Batch, Measured, cross_entropy_chance


class Rotation(InceptionImages):
    """Each image stands in the batch four times, turned by 0, 90, 180 and 270 degrees; the network
    tells the four apart.

    All four copies share one crop and one color draw. Kolesnikov et al. (2019), section 3.2,
    trains with 1024 images, each four times.
    """

    task = "rotation"

    def __init__(self, backbone: tf.keras.Model, **common: Any) -> None:
        super().__init__(backbone, **common)
        self.head = tf.keras.layers.Dense(4, name="head", dtype=tf.keras.backend.floatx())

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        images = four_rotations(batch["image"])  # 4NxHxWx3, image-major
        return self.head(self.endpoints(images, training)["pre_logits"])  # 4Nx4

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        turns = tf.tile(
            tf.range(4), [batch["image"].shape[0]]
        )  # 4N: quarter turns counter-clockwise
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(turns, logits)
        return loss, {"accuracy": tf.keras.metrics.sparse_categorical_accuracy(turns, logits)}

    def chance(self) -> dict[str, float]:
        return cross_entropy_chance(4)

    def preview(self, batch: dict) -> tf.Tensor:
        return four_rotations(batch["image"])

"""Supervised classification: the yardstick beside the pretext tasks."""

from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.task import Batch, Measured, cross_entropy_chance


class Supervised(InceptionImages):
    """Softmax cross-entropy on the labels; top-1 and top-5 accuracy.

    Args:
      num_classes: number of classes; 0 takes the data set's.
    """

    task = "supervised"
    needs: tuple[str, ...] = ("label",)
    head_initializer = "glorot_uniform"

    def __init__(self, backbone: tf.keras.Model, num_classes: int = 0, **common: Any) -> None:
        super().__init__(backbone, **common)
        if num_classes < 1:
            raise UserError(
                "task 'supervised' needs labels: the data set has no classes, and num_classes is "
                "not set"
            )
        self.num_classes = num_classes
        floatx = tf.keras.backend.floatx()
        self.head = tf.keras.layers.Dense(
            num_classes, name="head", dtype=floatx, kernel_initializer=self.head_initializer
        )

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        return self.head(self.endpoints(batch["image"], training)["pre_logits"])  # NxC

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        labels = batch["label"]
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        top5 = tf.math.in_top_k(labels, tf.cast(logits, tf.float32), min(5, self.num_classes))
        return loss, {
            "accuracy": tf.keras.metrics.sparse_categorical_accuracy(labels, logits),
            "top5_accuracy": tf.cast(top5, logits.dtype),
        }

    def chance(self) -> dict[str, float]:
        return {
            **cross_entropy_chance(self.num_classes),
            "top5_accuracy": min(1.0, 5 / self.num_classes),
        }

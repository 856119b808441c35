"""LeJEPA: Balestriero and LeCun, "Provable and Scalable Self-Supervised Learning Without the
Heuristics" (arXiv 2511.08544)."""

import math
from collections.abc import Mapping
from typing import Any, Optional, Union

import tensorflow as tf

from tfssl.data.ops.draws import hash32
from tfssl.losses.normality import COLLAPSED, EXPECTED, sigreg
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.multi_crop import MultiCrop
from tfssl.pretext.task import Batch, Measured


class LeJEPA(MultiCrop):
    """The embeddings of all views of an image are pulled to the mean of its large views, and those
    of a batch are regularized to be an isotropic Gaussian's, by a test along random directions
    (SIGReg). There is no teacher, no queue and no schedule.

    Args:
      augmentation: policy of the views.
      projection_hidden: hidden units of the projection, in two layers (published code: 2048).
      projection_size: its outputs (published code: 16 to 512).
      sigreg_weight: lambda: of SIGReg, and 1 - lambda of the invariance (published code: 0.02 to
        0.05).
      directions: how many random directions a step has (published code: 256 to 1024).
      small_size: side of the small views, in pixels (98 is a multiple of a ViT's patches of 14).
    """

    task = "lejepa"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "lejepa",
        projection_hidden: int = 2048,
        projection_size: int = 128,
        sigreg_weight: float = 0.05,
        directions: int = 1024,
        small_size: int = 98,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, small_size=small_size, **common)
        self.sigreg_weight, self.directions = sigreg_weight, directions
        self.projection = MLP(
            "projection",
            [projection_hidden, projection_hidden, projection_size],
            norm=self.head_norm,
        )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed(batch["image"], {"z": self.projection}, training)  # NxVxE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z = outputs["z"]
        center = tf.reduce_mean(z[:, :2], 1, keepdims=True)  # of the large views
        invariance = tf.reduce_mean(tf.square(z - center), [1, 2])  # N
        step = self.optimizer.iterations if getattr(self, "optimizer", None) else 0
        along = directions(z.shape[2], self.directions, step)
        tested = [sigreg(view, along, batch["weight"]) for view in tf.unstack(z, axis=1)]
        normality = tf.add_n(tested) / len(tested)
        loss = (1 - self.sigreg_weight) * invariance + self.sigreg_weight * normality
        return loss, {"invariance": invariance, "sigreg": normality * tf.ones_like(loss)}

    def chance(self) -> dict[str, float]:
        """Of views that have nothing in common, standard normal."""
        views = sum(group.count for group in self.crops())
        invariance = (2 * (1 - 1 / 2) + (views - 2) * (1 + 1 / 2)) / views
        loss = (1 - self.sigreg_weight) * invariance + self.sigreg_weight * EXPECTED
        return {**super().chance(), "loss": loss, "invariance": invariance, "sigreg": EXPECTED}

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        if self.batch_size and measured["sigreg"] > 0.9 * COLLAPSED * self.batch_size:
            return (
                f"the embeddings have collapsed into one point (sigreg {measured['sigreg']:.3g}; "
                "healthy is about 1): a larger sigreg_weight or a smaller learning rate helps"
            )
        return super().alarm(measured)


def directions(features: int, count: int, step: Union[int, tf.Tensor]) -> tf.Tensor:
    """`count` random unit vectors, [features, count] of Keras's floatx: other ones at each step,
    and the same on every replica, with XLA and without (which TensorFlow's own generators do not
    promise)."""
    place = tf.range(2 * features * count, dtype=tf.int64)
    bits = hash32(hash32(place) + hash32(tf.cast(step, tf.int64) + 17))
    uniform = (tf.cast(bits, tf.keras.backend.floatx()) + 0.5) / 2**32
    radius, angle = tf.unstack(
        tf.reshape(uniform, [2, features, count])
    )  # Box and Muller's normal numbers
    return tf.math.l2_normalize(tf.sqrt(-2 * tf.math.log(radius)) * tf.cos(2 * math.pi * angle), 0)

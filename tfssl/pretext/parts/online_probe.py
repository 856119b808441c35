"""The online probe: whether the features are any good, told while they are learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfssl.backbones.norm import frozen_statistics
from tfssl.errors import check_choice
from tfssl.pretext.task import Batch, Measured, Pretext, imagenet_normalized


class Probed(Pretext):
    """Base class of the tasks in which a linear classifier learns along where there are labels; it
    sends no gradient into the network.

    Args:
      image_size: side of the images that the network sees, in pixels.
      normalization: what the network sees of images in [0, 1]: imagenet (less its mean, by its
        deviation) or none (as they are).
      num_classes: classes of the online probe, a linear classifier on the features that sends no
        gradient into the network; 0 takes the data set's, and leaves the probe out where there are
        none.
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        normalization: str = "imagenet",
        num_classes: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        self._autocast = (
            False  # colors are computed in full precision; the network casts for itself
        )
        check_choice("normalization", normalization, ("imagenet", "none"))
        self.normalization = normalization
        floatx = tf.keras.backend.floatx()
        self.probe = (
            tf.keras.layers.Dense(num_classes, name="probe", dtype=floatx) if num_classes else None
        )
        if self.probe:
            self.probe.decayed = self.probe.clipped = False
        self._probe_is_lost = False

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        return images if self.normalization == "none" else imagenet_normalized(images)

    def features(self, images: tf.Tensor, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Images [n, H, W, 3] -> pre-logits [n, D], and {"probe": its logits [n, C]}, where there
        is one."""
        x = self.endpoints(images, training)["pre_logits"]
        return x, self.probe_logits(x, lambda: self.encode(images, training)["pre_logits"])

    def probe_logits(self, x: tf.Tensor, encoded: Callable[[], tf.Tensor]) -> dict[str, tf.Tensor]:
        """{"probe": its logits [n, C]}, where there is a probe. It reads the published encoder: the
        backbone's pre-logits x [n, D] of this step, or, where another network is published,
        `encoded` (), its pre-logits of the same images."""
        if not self.probe:
            return {}
        if self.published != (self.backbone,):
            with frozen_statistics():  # it is run for the probe alone
                x = encoded()
        return {"probe": self.probe(tf.stop_gradient(x))}

    def probed(
        self, batch: Batch, loss: tf.Tensor, metrics: Measured, logits: tf.Tensor | None
    ) -> tuple[tf.Tensor, Measured]:
        """(Loss [N], metrics) of the method, with those of the probe, whose logits are [N, C].

        A probe that has diverged must not stop the method, nor make the loss scaling of float16
        skip its steps: rows whose logits are not finite have no part in the loss, and so send no
        gradient. Their `probe_accuracy` is NaN.
        """
        if not self.probe:
            return loss, metrics
        finite = tf.reduce_all(tf.math.is_finite(logits), 1)  # N
        logits = tf.where(finite[:, None], logits, tf.zeros_like(logits))
        labels = tf.maximum(batch["label"], 0)
        known = tf.cast((batch["label"] >= 0) & finite, loss.dtype)
        accuracy = tf.keras.metrics.sparse_categorical_accuracy(batch["label"], logits)
        accuracy = tf.where(finite, accuracy, tf.constant(math.nan, accuracy.dtype))
        metrics = {
            **metrics,
            "loss": loss,
            "probe_accuracy": accuracy,
        }  # the loss that is reported is the method's own
        return loss + known * tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, logits
        ), metrics

    def alarm(self, measured: Mapping[str, float]) -> str | None:
        if math.isnan(measured.get("probe_accuracy", 0.0)) and not self._probe_is_lost:
            self._probe_is_lost = True  # said once
            return (
                "the online probe's outputs are no longer finite, and probe_accuracy means "
                "nothing; the method goes on, for the probe "
                "sends no gradient into it"
            )
        return super().alarm(measured)

    def chance(self) -> dict[str, float]:
        return {"probe_accuracy": 1 / self.probe.units} if self.probe else {}

"""CMC: Tian, Krishnan and Isola, "Contrastive Multiview Coding", ECCV 2020 (arXiv 1906.05849)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfssl.data.ops import lab
from tfssl.losses import contrastive
from tfssl.pretext.instance_discrimination import InstanceDiscrimination
from tfssl.pretext.parts import ab_bins
from tfssl.pretext.parts.halves import Halves, side_by_side
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Bank
from tfssl.pretext.task import Batch, Measured

# The middle and half the range of L, a and b over sRGB's colors, as in the published code.
_MIDDLE, _RANGE = (50.0, 6.025, -6.690), (50.0, 92.208, 101.168)
_GRAY = 5.0  # neither a nor b of a gray image goes beyond this: colorization's


class CMC(Halves, InstanceDiscrimination):
    """The lightness of an image and its colors are two views, of which a network each tells the
    image: the embedding of one is to be found in the memory bank of the other, among those of other
    images. One set of negatives is drawn for both.

    The published encoder is both networks: RGB in, features side by side, twice as many as the
    backbone has. One of the usual size has a `width_multiplier` of 0.5 (in the published code, all
    but a ResNet's first convolution). A data set whose images are all gray is refused, as far as a
    part of them tells. Among others gray images count like any, though their colors all look alike:
    the metric `gray` is their fraction, and half of a batch warns.

    Args:
      augmentation: policy of the crop, from which both views are made (the published code: crop).
      num_images, temperature, projection_size, form, negatives, bank_momentum: as of
        instance_discrimination, of each bank (the paper: 16384 negatives).
    """

    needs = ("color",)
    task = "cmc"
    flag_names = {"normalization": ""}  # which is that of L*a*b*

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "crop",
        negatives: int = 16384,
        projection_size: int = 128,
        bank_momentum: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(
            backbone,
            augmentation=augmentation,
            negatives=negatives,
            projection_size=projection_size,
            bank_momentum=bank_momentum,
            **common,
        )
        self.split()
        self.color_projection = MLP("color_projection", [projection_size])
        self.color_bank = Bank(self.num_images, projection_size, bank_momentum)
        self.color_constant = self.add_weight(
            "color_constant",
            [],
            initializer="zeros",
            trainable=False,
        )

    @staticmethod
    def from_data(settings: Mapping[str, Any], source: Any, workdir: str | None) -> dict[str, Any]:
        """{}; raises a UserError of images that are all gray."""
        if source is not None and workdir:
            ab_bins.of_images(source, images=256)
        return {}

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """RGB in [0, 1] -> L, a and b, each about -1 to 1."""
        x = lab.from_rgb(images)
        return (x - tf.constant(_MIDDLE, x.dtype)) / tf.constant(_RANGE, x.dtype)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        images = batch["image"][0][:, 0]  # NxSxSx3
        light, color = self.halves(images, training)
        chroma = tf.reduce_max(tf.abs(lab.from_rgb(images)[..., 1:]), [1, 2, 3])  # N
        outputs = {
            "z": self.projection(light["pre_logits"], training=training)[:, None],  # Nx1xE
            "color": self.color_projection(color["pre_logits"], training=training),  # NxE
            "gray": tf.cast(chroma <= _GRAY, chroma.dtype),
        }
        if self.probe:
            features = side_by_side(light, color)["pre_logits"]
            outputs["probe"] = self.probe(tf.stop_gradient(features))[:, None]  # Nx1xC
        return outputs

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        by_light = self.discriminate(
            batch, outputs["z"][:, 0], self.color_bank, self.color_constant
        )
        by_color = self.discriminate(batch, outputs["color"])
        return by_light.loss + by_color.loss, {
            "accuracy": by_light.accuracy,
            "color_accuracy": by_color.accuracy,
            "gray": outputs["gray"],
        }

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        super().after_step(batch, outputs)
        self.color_bank.update(batch["index"], contrastive.l2_normalize(outputs["color"]))

    def alarm(self, measured: Mapping[str, float]) -> str | None:
        if measured["gray"] > 0.5:
            return (
                f"{measured['gray']:.0%} of the images are gray, whose colors all look alike: "
                "choose another task"
            )
        return super().alarm(measured)

    def chance(self) -> dict[str, float]:
        one = super().chance()
        of_color = {"color_accuracy": one["accuracy"], "gray": float("nan")}
        return {**one, "loss": 2 * one["loss"], **of_color}

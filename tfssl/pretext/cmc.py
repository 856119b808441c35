"""CMC: Tian, Krishnan and Isola, "Contrastive Multiview Coding", ECCV 2020 (arXiv 1906.05849)."""

from typing import Any

import tensorflow as tf

from tfssl.data.ops import lab
from tfssl.losses import contrastive
from tfssl.pretext.instance_discrimination import InstanceDiscrimination
from tfssl.pretext.parts.halves import Halves, side_by_side
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Bank
from tfssl.pretext.task import Batch, Measured

# The middle and half the range of L, a and b over sRGB's colors, as in the published code.
_MIDDLE, _RANGE = (50.0, 6.025, -6.690), (50.0, 92.208, 101.168)


class CMC(Halves, InstanceDiscrimination):
    """The lightness of an image and its colors are two views, of which a network each tells the
    image: the embedding of one is to be found in the memory bank of the other, among those of other
    images. One set of negatives is drawn for both.

    The published encoder is both networks: RGB in, features side by side, twice as many as the
    backbone has. One of the usual size has a `width_multiplier` of 0.5 (in the published code, all
    but a ResNet's first convolution). Images without color are refused where the data set has one
    channel; among others they count like any, and the colors tell nothing of them.

    Args:
      augmentation: policy of the crop, from which both views are made (the published code: crop).
      num_images, temperature, projection_size, form, negatives, bank_momentum: as of
        instance_discrimination, of each bank (the paper: 16384 negatives).
    """

    needs = ("color",)
    task = "cmc"

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
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """RGB in [0, 1] -> L, a and b, each about -1 to 1."""
        x = lab.from_rgb(images)
        return (x - tf.constant(_MIDDLE, x.dtype)) / tf.constant(_RANGE, x.dtype)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        light, color = self.halves(batch["image"][0][:, 0], training)
        outputs = {
            "z": self.projection(light["pre_logits"], training=training)[:, None],  # Nx1xE
            "color": self.color_projection(color["pre_logits"], training=training),  # NxE
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
        }

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        super().after_step(batch, outputs)
        self.color_bank.update(batch["index"], contrastive.l2_normalize(outputs["color"]))

    def chance(self) -> dict[str, float]:
        one = super().chance()
        return {**one, "loss": 2 * one["loss"], "color_accuracy": one["accuracy"]}

"""PIRL: Misra and van der Maaten, "Self-Supervised Learning of Pretext-Invariant Representations",
CVPR 2020 (arXiv 1912.01991)."""

from typing import Any

import tensorflow as tf

from tfssl.pretext.instance_discrimination import InstanceDiscrimination
from tfssl.pretext.parts.jigsaw_branch import JigsawBranch
from tfssl.pretext.task import Batch, Measured


class PIRL(JigsawBranch, InstanceDiscrimination):
    """An image and a jigsaw puzzle of it are both to be told, by their embeddings, to be that image
    among all: what the network makes of an image does not depend on the transformation. What stands
    for an image is a moving average of its own embeddings, in a memory bank.

    Two thirds of the images and patches of the published code (VISSL's) are posterized, sharpened,
    solarized and stretched besides: augmentation=jigsaw_augmentation=pirl_photometric, with
    augment_on=host. It keeps biases and batch normalization out of weight decay.

    Args:
      augmentation: policy of the image; pirl_photometric is the published code's.
      negatives: entries of the bank that are drawn for each image (the code: 32000); 0: all, with
        cross_entropy.
      jigsaw_augmentation: policy of the patches, drawn for each by itself.
    """

    needs = ("color",)
    task = "pirl"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "pirl",
        negatives: int = 32000,
        jigsaw_augmentation: str = "pirl",
        **common: Any,
    ) -> None:
        policies: dict[str, Any] = {
            "augmentation": augmentation,
            "jigsaw_augmentation": jigsaw_augmentation,
        }
        super().__init__(backbone, negatives=negatives, **policies, **common)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return {
            **super().call(batch, training),
            "jigsaw": self.embed_patches(batch, training),
        }  # Nx1xE, NxE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        image, jigsaw = (
            self.discriminate(batch, z) for z in (outputs["z"][:, 0], outputs["jigsaw"])
        )
        return self.both(image, jigsaw)

"""InfoMin: Tian et al., "What Makes for Good Views for Contrastive Learning?", NeurIPS 2020 (arXiv
2005.10243)."""

from typing import Any

import tensorflow as tf

from tfssl.pretext.moco import MoCo
from tfssl.pretext.parts.jigsaw_branch import JigsawBranch
from tfssl.pretext.task import Batch, Measured


class InfoMin(JigsawBranch, MoCo):
    """MoCo with views that share as little as they may beside what matters: stronger colors,
    RandAugment, and PIRL's puzzles. A puzzle is a query too, whose positive is its own image's key.

    Patches are mirrored each by itself; in the published code, the nine of an image together.

    Args:
      augmentation: policy of the views; RandAugment is a part of infomin.
      augment_on: where the policies act: host (each image in the input pipeline), which RandAugment
        needs, or device.
      temperature: what cosines are divided by (the paper: 0.15).
    """

    task = "infomin"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "infomin",
        augment_on: str = "host",
        temperature: float = 0.15,
        **common: Any,
    ) -> None:
        super().__init__(
            backbone,
            augmentation=augmentation,
            augment_on=augment_on,
            temperature=temperature,
            **common,
        )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return {
            **super().call(batch, training),
            "jigsaw": self.embed_patches(batch, training),
        }  # NxPxE each, NxE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        keys = self.own_keys(batch, outputs)
        puzzles = tf.repeat(outputs["jigsaw"][:, None], keys.shape[1], axis=1)  # NxPxE
        return self.both(self.among_keys(outputs["z"], keys), self.among_keys(puzzles, keys))

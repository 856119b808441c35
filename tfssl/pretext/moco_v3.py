"""MoCo v3: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV
2021 (arXiv 2104.02057)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.pretext.byol import BYOL
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.task import Batch, Measured


class MoCoV3(BYOL):
    """BYOL's two networks with a contrastive loss: the prediction for one view identifies, by
    cosine similarity, the momentum encoder's projection of the other view among those of all images
    of the batch. There is no queue.

    Args:
      augmentation: policy of the views (the paper: moco_v3, with crops of 0.2 to 1 for ResNets
        and 0.08 to 1 for ViTs).
      temperature: what cosines are divided by (the paper: 1 for ResNet-50, 0.2 for ViTs).
      projection_layers: layers of the projection (the paper: 2 for ResNet-50, 3 for ViTs).
      projection_hidden: hidden units of projection and prediction (the paper: 4096).
      prediction_norm: batch normalization after the last layer of the prediction too (the paper:
        for ViTs).
      target_momentum: EMA decay of the momentum network per step, at the start (the paper: 0.99;
        0.996 for 1000 epochs).
    """

    task = "moco_v3"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "moco_v3",
        temperature: float = 1.0,
        projection_layers: int = 2,
        projection_hidden: int = 4096,
        prediction_norm: bool = False,
        target_momentum: float = 0.99,
        **common: Any,
    ) -> None:
        self.temperature = temperature
        self.projection_layers, self.prediction_norm = projection_layers, prediction_norm
        super().__init__(
            backbone,
            augmentation=augmentation,
            projection_hidden=projection_hidden,
            target_momentum=target_momentum,
            **common,
        )

    def heads(
        self, projection_hidden: int, prediction_hidden: int, projection_size: int
    ) -> tuple[MLP, MLP]:
        settings: dict[str, Any] = {"bias": False, "norm": self.head_norm}
        sizes = [projection_hidden] * (self.projection_layers - 1) + [projection_size]
        projection = MLP("projection", sizes, last_norm="nothing", **settings)
        last_norm = "nothing" if self.prediction_norm else None
        return projection, MLP(
            "prediction", [prediction_hidden, projection_size], last_norm=last_norm, **settings
        )

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        p, targets, valid = outputs["p"], outputs["targets"], batch["weight"] > 0
        found = [
            contrastive.in_batch(
                p[:, i], targets[:, 1 - i], self.temperature, valid, batch.get("sequence")
            )
            for i in (0, 1)
        ]
        loss = 2 * self.temperature * (found[0].loss + found[1].loss)
        return loss, {"accuracy": (found[0].accuracy + found[1].accuracy) / 2}

    def chance(self) -> dict[str, float]:
        rows = self.batch_size or math.nan
        return {
            **super().chance(),
            "loss": 4 * self.temperature * math.log(rows),
            "accuracy": 1 / rows,
        }

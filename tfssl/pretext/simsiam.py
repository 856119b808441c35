"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv
2011.10566)."""

from typing import Any

import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.optim.groups import Group, apart, at_peak
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class SimSiam(Views):
    """One view's prediction is to have the direction of the other view's projection, through which
    no gradient flows. Nothing else keeps all projections from becoming one.

    Args:
      augmentation: policy of the views (the paper: MoCo v2's).
      projection_layers: layers of the projection (the paper: 3; for CIFAR-10 2).
      projection_size: outputs of each of them (the paper: 2048).
      prediction_size: hidden units of the prediction (the paper: 512).
      fixed_prediction_rate: the predictor trains at the peak learning rate throughout, as the
        paper's does.
    """

    task = "simsiam"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "moco_v2",
        projection_layers: int = 3,
        projection_size: int = 2048,
        prediction_size: int = 512,
        fixed_prediction_rate: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        sizes = [projection_size] * projection_layers
        self.projection = MLP(
            "projection", sizes, bias=False, norm=self.head_norm, last_norm="nothing"
        )
        self.prediction = MLP(
            "prediction",
            [prediction_size, projection_size],
            bias=(False, True),
            norm=self.head_norm,
        )
        self.fixed_prediction_rate = fixed_prediction_rate

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed_each(
            batch, {"z": self.projection, "p": self.prediction}, training
        )  # Nx2xE both

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z, p = outputs["z"], outputs["p"]
        distance = contrastive.cosine_distance(p[:, 0], z[:, 1]) + contrastive.cosine_distance(
            p[:, 1], z[:, 0]
        )
        return distance / 4 - 1, {}  # -cos, from -1 to 1

    def groups(self) -> list[Group]:
        groups = super().groups()
        if not self.fixed_prediction_rate:
            return groups
        return apart(
            groups,
            Group(
                self.prediction.trainable_variables,
                schedule=at_peak(getattr(self, "optimizer", None)),
            ),
        )

    def chance(self) -> dict[str, float]:
        return {**super().chance(), "loss": 0.0}

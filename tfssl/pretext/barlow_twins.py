"""Barlow Twins: Zbontar et al., "Self-Supervised Learning via Redundancy Reduction", ICML 2021
(arXiv 2103.03230)."""

import math
from typing import Any

import tensorflow as tf

from tfssl import optim
from tfssl.losses import statistics
from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class BarlowTwins(Views):
    """The cross-correlation matrix of the two views' features, over the batch, is pulled toward the
    identity: views agree, and features are decorrelated.

    Args:
      augmentation: policy of the views (the paper: barlow_twins, in which the two differ).
      projection_layers: layers of the projection (the paper: 3).
      projection_size: outputs of each of them (the paper: 8192).
      redundancy_weight: of the squares off the diagonal (the paper: 0.0051).
      loss_factor: times the loss, for optimizers without a trust ratio: 0.1 with SGD.
      bias_rate: factor on the learning rate of biases and batch normalizations. The published
        rates, 0.0048 and 0.2 for kernels, belong to gradients that are divided by the number of
        GPUs: with exact ones, for 16 GPUs, 0.0015.
    """

    task = "barlow_twins"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "barlow_twins",
        projection_layers: int = 3,
        projection_size: int = 8192,
        redundancy_weight: float = 0.0051,
        loss_factor: float = 1.0,
        bias_rate: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        self.redundancy_weight, self.loss_factor, self.bias_rate = (
            redundancy_weight,
            loss_factor,
            bias_rate,
        )
        self.projection = MLP(
            "projection", [projection_size] * projection_layers, bias=False, norm=self.head_norm
        )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed_each(batch, {"z": self.projection}, training)  # Nx2xE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z = outputs["z"]
        found = statistics.barlow_twins(z[:, 0], z[:, 1], self.redundancy_weight, batch["weight"])
        ones = tf.ones([z.shape[0]], found.loss.dtype)
        metrics = {"agreement": ones * found.agreement, "redundancy": ones * found.redundancy}
        return self.loss_factor * found.loss * ones, metrics

    def groups(self) -> list[Group]:
        groups = super().groups()
        if self.bias_rate == 1:
            return groups
        others = [v for v in self.trainable_variables if not optim.is_kernel(v)]
        return apart(groups, Group(others, rate=self.bias_rate, decay=0.0))

    def chance(self) -> dict[str, float]:
        """Of views that have nothing in common."""
        size, rows = self.projection.sizes[-1], self.batch_size or math.nan
        loss = self.loss_factor * (size + self.redundancy_weight * size * (size - 1) / rows)
        return {**super().chance(), "loss": loss, "agreement": 0.0, "redundancy": 1 / rows}

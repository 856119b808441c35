"""VICReg: Bardes et al., "Variance-Invariance-Covariance Regularization", ICLR 2022 (arXiv
2105.04906)."""

import math
from collections.abc import Mapping
from typing import Any, Optional

import tensorflow as tf

from tfssl.losses import statistics
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class VICReg(Views):
    """Embeddings of two views are pulled together (invariance), a hinge keeps the standard
    deviation of each feature above 1 (variance), and features are decorrelated (covariance).

    Args:
      augmentation: policy of the views (the paper: barlow_twins, in which the two differ).
      projection_layers: layers of the expander (the paper: 3).
      projection_size: outputs of each of them (the paper: 8192).
      invariance_weight: of the distance between views (the paper: 25).
      variance_weight: of what features lack of a deviation of 1 (the paper: 25).
      covariance_weight: of the squared covariances between features (the paper: 1).
    """

    task = "vicreg"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "barlow_twins",
        projection_layers: int = 3,
        projection_size: int = 8192,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        self.weights_of_terms = invariance_weight, variance_weight, covariance_weight
        bias = [True] * (projection_layers - 1) + [False]
        self.projection = MLP(
            "projection", [projection_size] * projection_layers, bias=bias, norm=self.head_norm
        )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed_each(batch, {"z": self.projection}, training)  # Nx2xE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z = outputs["z"]
        found = statistics.vicreg(z[:, 0], z[:, 1], *self.weights_of_terms, batch["weight"])
        ones = tf.ones_like(found.loss)
        metrics = {"variance": ones * found.variance, "covariance": ones * found.covariance}
        return found.loss, {"invariance": found.invariance, **metrics}

    def chance(self) -> dict[str, float]:
        """Of views that have nothing in common, standard normal."""
        invariance, _, covariance = self.weights_of_terms
        size, rows = self.projection.sizes[-1], self.batch_size or math.nan
        levels = {"invariance": 2.0, "variance": 0.0, "covariance": 2 * (size - 1) / (rows - 1)}
        loss = invariance * levels["invariance"] + covariance * levels["covariance"]
        return {**super().chance(), "loss": loss, **levels}

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        if measured["variance"] > 0.98:
            return (
                f"no feature of the embeddings varies over the batch (variance term "
                f"{measured['variance']:.3g}; of constant ones it is 0.99): they have collapsed; "
                "a smaller learning rate helps"
            )
        return super().alarm(measured)

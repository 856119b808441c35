"""SupCon: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (arXiv 2004.11362)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.data.sources.base import Source
from tfssl.errors import UserError
from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class SupCon(Views):
    """Identify, for each view, the views of all images with the same label among those of the
    batch. An image without a label has its own other view alone, as in SimCLR: so a few labels can
    be used along with many images. Frames of one sequence are not each other's negatives.

    Args:
      temperature: softmax temperature (the paper: 0.1; 0.5 for CIFAR-10).
      projection_size: outputs of the projection (the paper: 128); its hidden layer has as many as
        the features.
    """

    task = "sup_con"

    def __init__(
        self,
        backbone: tf.keras.Model,
        temperature: float = 0.1,
        projection_size: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature = temperature
        self.projection = MLP("projection", [0, projection_size])

    def require(self, source: Source) -> None:
        super().require(source)
        if not source.num_classes:
            raise UserError(
                f"task 'sup_con' compares images of one label, and {source.spec} has no labels: "
                "take simclr, which is the same without them"
            )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed(batch["image"][0], {"z": self.projection}, training)  # Nx2xE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z, valid = outputs["z"], batch["weight"] > 0
        groups = batch.get("sequence")
        found = contrastive.nt_xent(
            z[:, 0], z[:, 1], self.temperature, valid, labels=batch["label"], groups=groups
        )
        return found.loss, {"accuracy": found.accuracy}

    def chance(self) -> dict[str, float]:
        """Of directions that have nothing in common: any of the batch's views is as near, and one
        class in C is right."""
        others = 2 * self.batch_size - 1 if self.batch_size else math.nan
        right = 1 / self.probe.units if self.probe else 1 / others
        return {**super().chance(), "loss": math.log(others), "accuracy": right}

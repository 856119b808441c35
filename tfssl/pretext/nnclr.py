"""NNCLR: Dwibedi et al., "With a Little Help from My Friends", ICCV 2021 (arXiv 2104.14548)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Queue
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class NNCLR(Views):
    """A contrastive loss whose positives are nearest neighbors: the neighbor of one view's
    projection, among projections of earlier steps, is matched with the prediction of the other
    view, and the predictions of the other images in the batch are its negatives.

    Args:
      temperature: what cosines are divided by (the paper: 0.1).
      projection_hidden: hidden units of the projection, in two layers (the paper: 2048).
      projection_size: outputs of projection and prediction (the paper: 256).
      prediction_hidden: hidden units of the prediction (the paper: 4096).
      queue_size: how many projections of earlier steps are kept (the paper: 98304).
    """

    task = "nnclr"

    def __init__(
        self,
        backbone: tf.keras.Model,
        temperature: float = 0.1,
        projection_hidden: int = 2048,
        projection_size: int = 256,
        prediction_hidden: int = 4096,
        queue_size: int = 98304,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature = temperature
        sizes = [projection_hidden, projection_hidden, projection_size]
        self.projection = MLP(
            "projection", sizes, norm=self.head_norm, last_norm="offset and scale"
        )
        self.prediction = MLP(
            "prediction", [prediction_hidden, projection_size], norm=self.head_norm
        )
        self.queue = Queue(queue_size, projection_size)

    def start(self) -> None:
        self.queue.check_step(self.batch_size)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed_each(
            batch, {"z": self.projection, "p": self.prediction}, training
        )  # Nx2xE both

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z, p, valid = outputs["z"], outputs["p"], batch["weight"] > 0
        among = self.temperature, valid, batch.get("sequence")
        found = [
            contrastive.in_batch(contrastive.nearest(z[:, i], self.queue.rows), p[:, 1 - i], *among)
            for i in (0, 1)
        ]
        return (found[0].loss + found[1].loss) / 2, {
            "accuracy": (found[0].accuracy + found[1].accuracy) / 2
        }

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        self.queue.push(contrastive.l2_normalize(outputs["z"][:, 0]))

    def chance(self) -> dict[str, float]:
        rows = self.batch_size or math.nan
        return {**super().chance(), "loss": math.log(rows), "accuracy": 1 / rows}

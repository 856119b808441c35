"""BYOL: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020 (arXiv 2006.07733)."""

from typing import Any

import tensorflow as tf

from tfssl.errors import check_choice
from tfssl.losses import contrastive
from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.target import MomentumNetwork, cosine_momentum
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured


class BYOL(Views):
    """The predictor's output for one view regresses the target (EMA) network's projection of the
    other view.

    Args:
      augmentation: policy of the views (the paper: byol, in which the two differ).
      projection_hidden: hidden units of the projection (the paper: 4096).
      projection_size: its outputs (the paper: 256).
      prediction_hidden: hidden units of the prediction; 0 takes those of the projection, as in the
        paper.
      target_momentum: EMA decay of the target network per step, at the start (the paper: 0.996 for
        1000 epochs, 0.99 for 300).
      momentum_schedule: cosine, up to 1 at the end of the run, as in the paper; or constant.
    """

    task = "byol"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "byol",
        projection_hidden: int = 4096,
        projection_size: int = 256,
        prediction_hidden: int = 0,
        target_momentum: float = 0.996,
        momentum_schedule: str = "cosine",
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        check_choice("momentum_schedule", momentum_schedule, ("cosine", "constant"))
        self.target_momentum, self.momentum_schedule = target_momentum, momentum_schedule
        hidden = projection_hidden, prediction_hidden or projection_hidden
        self.projection, self.prediction = self.heads(*hidden, projection_size)
        self.target = MomentumNetwork(self.backbone, self.projection)

    def heads(
        self, projection_hidden: int, prediction_hidden: int, projection_size: int
    ) -> tuple[MLP, MLP]:
        """Projection and prediction, from hidden units of the two and outputs of either."""
        settings: dict[str, Any] = {"bias": (True, False), "norm": self.head_norm}
        projection = MLP("projection", [projection_hidden, projection_size], **settings)
        return projection, MLP("prediction", [prediction_hidden, projection_size], **settings)

    def start(self) -> None:
        self.target.copy()

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = self.embed_each(
            batch, {"z": self.projection, "p": self.prediction}, training
        )  # Nx2xE both
        targets = [self.target(self.normalize(view[:, 0]), training) for view in self.each(batch)]
        return {**outputs, "targets": tf.stack(targets, 1)}  # Nx2xE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        p, targets = outputs["p"], outputs["targets"]
        return sum(contrastive.cosine_distance(p[:, i], targets[:, 1 - i]) for i in (0, 1)), {}

    def groups(self) -> list[Group]:
        """LARS adapts the probe too: BYOL's code has it so, other than SimCLR's."""
        probe = self.probe.trainable_variables if self.probe else []
        return apart(super().groups(), Group(probe, decay=0.0, adapt=True))

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        length = self.total_steps if self.momentum_schedule == "cosine" else 0
        step = self.optimizer.iterations - 1  # this one's
        self.target.follow(cosine_momentum(self.target_momentum, step, length))

    def chance(self) -> dict[str, float]:
        """The loss of directions that are independent of one another."""
        return {**super().chance(), "loss": 4.0}

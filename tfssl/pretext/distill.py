"""Distillation of a published encoder on images without labels: Wei et al., "Contrastive Learning
Rivals Masked Image Modeling in Fine-tuning via Feature Distillation" (arXiv 2205.14141), of vectors
in place of maps."""

from typing import Any

import tensorflow as tf

from tfssl.backbones.hub import PRE_LOGITS, Hub
from tfssl.data.sources.base import Source
from tfssl.errors import UserError, check_choice
from tfssl.hub import load as modules
from tfssl.losses import distillation
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Crops, Views
from tfssl.pretext.task import Batch, Measured


class Distill(Views):
    """The network predicts the features that a fixed encoder, ours or anybody's, has of the same
    crop; these are first standardized over their dimensions. What is published is the network.

    Args:
      teacher: Hub module of the encoder; it gets crops of `image_size` pixels in [0, 1].
      teacher_endpoint: whose features are predicted, of a map its mean; "": the deepest.
      augmentation: policy of the crops (the paper: crops and flips, and color jitter of 0.4).
      projection_layers: layers of the head, which predicts (the paper: 1).
      projection_size: hidden units of its other layers.
      beta: of the smooth L1 distance (the paper: 2).
    """

    task = "distill"
    training_only = {"teacher": "", "teacher_endpoint": ""}

    def __init__(
        self,
        backbone: tf.keras.Model,
        teacher: str = "",
        teacher_endpoint: str = "",
        augmentation: str = "crop",
        projection_layers: int = 1,
        projection_size: int = 2048,
        beta: float = 2.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        if not beta > 0:
            raise UserError(f"beta={beta}: give a number above 0")
        self.beta, self.projection = beta, None
        if not teacher:  # the network alone, untrained
            return
        # A plain list in a tuple's place would be tracked: the module is no part of checkpoints.
        network = Hub(modules.load(teacher), self.image_size, trainable=False)
        channels = getattr(backbone, "input_channels", 3)
        if network.input_channels != channels:
            raise UserError(
                f"teacher={teacher} takes images of {network.input_channels} channels, and these "
                f"have {channels}: it has to see what the network sees"
            )
        self._teacher = lambda: network
        self.endpoint = teacher_endpoint or _deepest(network)
        check_choice("teacher_endpoint", self.endpoint, tuple(network.shapes))
        sizes = [projection_size] * (projection_layers - 1) + [network.shapes[self.endpoint][-1]]
        self.projection = MLP("projection", sizes, bias=True, norm=self.head_norm)

    def crops(self) -> list[Crops]:
        return [Crops(1, self.image_size, None)]

    def require(self, source: Source) -> None:
        if self.projection is None:
            raise UserError("task 'distill' needs an encoder to learn from: give --teacher=MODULE")
        super().require(source)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        (views,) = batch["image"]
        if self.projection is None:
            return self.embed(views, {}, training)
        network = self._teacher()
        endpoints = network(tf.cast(views[:, 0], tf.float32), training=False)
        target = tf.stop_gradient(network.vector(endpoints, self.endpoint))  # NxD
        return {**self.embed(views, {"z": self.projection}, training), "target": target}

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z = outputs["z"][:, 0]
        loss = distillation.of_features(z, tf.cast(outputs["target"], z.dtype), self.beta)
        return loss, {}


def _deepest(network: Hub) -> str:
    return PRE_LOGITS if PRE_LOGITS in network.shapes else list(network.shapes)[-1]

"""SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020 (arXiv 2002.05709)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Queue
from tfssl.pretext.parts.target import MomentumNetwork
from tfssl.pretext.parts.views import Views
from tfssl.pretext.task import Batch, Measured, image_major


class SimCLR(Views):
    """Identify, for each view, the other view of the same image by cosine similarity of the
    projections, among all views of the batch.

    The projection is that of the published code: layers without biases, each with batch
    normalization, the last one's without an offset.

    With a memory, as SimCLR v2 may have (Chen et al., NeurIPS 2020, arXiv 2006.10029), the other
    views are embedded by a momentum encoder, and those of earlier steps are among them. Its code
    was never published; here both views of an image enter the queue.

    Args:
      temperature: softmax temperature (the paper: 0.1; 0.5 for CIFAR-10).
      projection_layers: layers of the projection (SimCLR: 2; SimCLR v2: 3).
      projection_size: outputs of its last layer; the others have as many as the features.
      queue_size: how many views of earlier steps are kept; 0 is no memory (SimCLR v2: 65536).
      key_momentum: EMA decay of the momentum encoder per step (SimCLR v2: 0.999).
      loss_factor: times the loss, which is the paper's mean over all views; the published code sums
        the means of first and second views: 2. LARS's trust ratio cancels it for kernels, not for
        batch normalization and biases.
      decoupled: the positive is no part of the sum that it is compared with (DCL: Yeh et al., arXiv
        2110.06848), which helps small batches.
      normalization: the published code shows the network images in [0, 1] as they are.
    """

    task = "simclr"

    def __init__(
        self,
        backbone: tf.keras.Model,
        temperature: float = 0.1,
        projection_layers: int = 2,
        projection_size: int = 128,
        queue_size: int = 0,
        key_momentum: float = 0.999,
        loss_factor: float = 1.0,
        decoupled: bool = False,
        normalization: str = "none",
        **common: Any,
    ) -> None:
        super().__init__(backbone, normalization=normalization, **common)
        self.temperature, self.key_momentum = temperature, key_momentum
        self.loss_factor, self.decoupled = loss_factor, decoupled
        sizes = [0] * (projection_layers - 1) + [projection_size]
        self.projection = MLP(
            "projection", sizes, bias=False, norm=self.head_norm, last_norm="scale", stddev=0.01
        )
        self.queue = Queue(queue_size, projection_size) if queue_size else None
        self.keys = MomentumNetwork(self.backbone, self.projection) if queue_size else None

    def start(self) -> None:
        if self.queue is None or self.keys is None:
            return
        self.keys.copy()
        self.queue.check_step(2 * self.batch_size)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = self.embed(batch["image"][0], {"z": self.projection}, training)  # Nx2xE
        if self.keys:
            keys = self.keys(self.normalize(image_major(batch["image"][0])), training)
            outputs["keys"] = contrastive.l2_normalize(
                tf.reshape(keys, outputs["z"].shape)
            )  # Nx2xE
        return outputs

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z, queue = outputs["z"], self.queue.rows if self.queue else None
        found = contrastive.nt_xent(
            z[:, 0],
            z[:, 1],
            self.temperature,
            batch["weight"] > 0,
            outputs.get("keys"),
            queue,
            self.decoupled,
            groups=batch.get("sequence"),
        )
        return self.loss_factor * found.loss, {"accuracy": found.accuracy}

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        if self.queue and self.keys:
            self.queue.push(tf.reshape(outputs["keys"], [-1, outputs["keys"].shape[-1]]))
            self.keys.follow(self.key_momentum)

    def chance(self) -> dict[str, float]:
        others = (
            2 * self.batch_size - 1 + (self.queue.size if self.queue else 0)
            if self.batch_size
            else math.nan
        )
        loss = self.loss_factor * math.log(others - self.decoupled)
        return {**super().chance(), "loss": loss, "accuracy": 1 / others}

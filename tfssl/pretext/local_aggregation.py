"""Local Aggregation: Zhuang, Zhai and Yamins, "Local Aggregation for Unsupervised Learning of
Visual Embeddings", ICCV 2019 (arXiv 1903.12355); and its published code."""

import math
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.pretext.instance_discrimination import InstanceDiscrimination
from tfssl.pretext.parts import clusterings as parts
from tfssl.pretext.parts.clusterings import Clusterings
from tfssl.pretext.task import Batch, Measured
from tfssl.step.phases import Context, Phase, every


class LocalAggregation(InstanceDiscrimination):
    """Images that lie close together come closer, and away from those around them. Of an image, the
    background neighbors are the entries of the memory bank that are most like its embedding, and
    the close neighbors those among them that share its cluster in any of several clusterings of the
    bank. The loss is that of a close neighbor among the background neighbors: -log P(close) /
    P(background).

    Training begins as instance discrimination (`form`, `negatives`). An image's own entry always
    counts as a close neighbor, so that the loss is finite (the code: where it is among the
    background neighbors, and 1e-7 is added to the probability).

    Args:
      clusters: of each clustering (the paper: 30000, and 10000 of smaller networks).
      clusterings: how many (the code: 10).
      background_neighbors: so many entries of the bank, all of a smaller one (the paper: 4096).
      instance_epochs: epochs of instance discrimination before (the code: 10), up to the next
        clustering.
      kmeans_iterations: of each clustering (the code: 20).
      clustering_epochs: epochs from one to the next (the code: 1).
    """

    task = "local_aggregation"

    def __init__(
        self,
        backbone: tf.keras.Model,
        clusters: int = 30000,
        clusterings: int = 10,
        background_neighbors: int = 4096,
        instance_epochs: float = 10.0,
        kmeans_iterations: int = 20,
        clustering_epochs: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.instance_epochs, self.clustering_epochs = instance_epochs, clustering_epochs
        self.background_neighbors = min(background_neighbors, self.num_images)
        # Without labels, which is before the first clustering, each image is its own cluster.
        self.clusterings = Clusterings(self.num_images, clusters, clusterings, kmeans_iterations)

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        found = self.aggregate(batch, outputs["z"][:, 0])
        loss = found.loss
        if self.instance_epochs:  # one compiled step for both stages
            instance = self.discriminate(batch, outputs["z"][:, 0]).loss
            loss = tf.where(self._aggregates(), loss, instance)
        return loss, {"accuracy": found.accuracy, **self.clusterings.health(loss)}

    def _every(self) -> int:
        """Steps from one clustering to the next."""
        return every(self.clustering_epochs, self.epoch_steps)

    def _start(self) -> int:
        """The step from which on it aggregates: that of the first clustering."""
        return math.ceil(self.instance_epochs / self.clustering_epochs) * self._every()

    def _aggregates(self) -> tf.Tensor:
        step = self.optimizer.iterations if getattr(self, "optimizer", None) else 0
        return tf.cast(step, tf.int64) >= self._start()

    def aggregate(self, batch: Batch, z: tf.Tensor) -> contrastive.Contrast:
        """`Contrast` of embeddings [N, E]: close neighbors among background neighbors; accuracy is
        how often the image's own entry is the nearest of all."""
        index = batch["index"] % self.num_images
        v, own = contrastive.l2_normalize(z), tf.cast(index, tf.int32)
        logits = tf.matmul(v, self.bank.entries, transpose_b=True) / self.temperature  # Nximages
        is_own = tf.range(self.num_images) == own[:, None]
        ranked = tf.where(is_own, tf.cast(1e9, logits.dtype), tf.stop_gradient(logits))
        _, neighbors = tf.math.top_k(ranked, self.background_neighbors, sorted=False)  # NxB
        logits_of = tf.gather(logits, neighbors, axis=1, batch_dims=1)
        labels = self.clusterings.of(index)[:, :, None]  # HxNx1
        theirs = tf.reshape(
            self.clusterings.of(tf.reshape(tf.cast(neighbors, tf.int64), [-1])),
            [-1, *neighbors.shape],
        )  # HxNxB
        close = tf.reduce_any((labels == theirs) & (labels >= 0), 0) | (neighbors == own[:, None])
        never = tf.cast(contrastive.NEVER, logits.dtype)
        near = tf.reduce_logsumexp(tf.where(close, logits_of, never), 1)
        right = tf.equal(tf.argmax(logits, 1, tf.int32), own)
        loss = tf.reduce_logsumexp(logits_of, 1) - near
        return contrastive.Contrast(loss, tf.cast(right, logits.dtype))

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        super().after_step(batch, outputs)
        self.clusterings.see(batch)

    def phases(self) -> list[Phase]:
        flops = self.clusterings.flops(self.bank.entries.shape[1])
        return [Phase(self._every(), self.cluster, flops)]

    def cluster(self, context: Context) -> dict[str, float]:
        """The phase, once instance discrimination is over: labels by k-means on the bank."""
        if context.step < self._start():
            return {}
        rows = tf.convert_to_tensor(self.bank.entries)
        return self.clusterings.compute(context, [rows], np.ones(self.num_images, bool))[1]

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        collapsed = (
            parts.alarm(measured, self.clusterings.clusters) if measured["perplexity"] else None
        )
        return super().alarm(measured) or collapsed

    def chance(self) -> dict[str, float]:
        """Of the second stage, with each image its own cluster: larger clusters have a lower
        loss."""
        return {
            **super().chance(),
            "loss": float(np.log(self.background_neighbors)),
            "accuracy": 1 / self.num_images,
            **parts.chance(),
        }

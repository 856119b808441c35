"""SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", NeurIPS 2020 (arXiv 2006.09882)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.losses import contrastive, replicas
from tfssl.losses.sinkhorn import sinkhorn
from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Queue
from tfssl.pretext.parts.multi_crop import MultiCrop
from tfssl.pretext.task import Batch, Measured


class SwAV(MultiCrop):
    """Each view is to predict, from its similarity to a set of prototypes, the code of another view
    of the image. Codes are assigned to a batch at once, such that all prototypes are used alike.
    Two large views have codes; all views, the small ones too, predict them.

    Args:
      temperature: what similarities are divided by to predict a code (the paper: 0.1).
      projection_hidden: hidden units of the projection (the paper: 2048).
      projection_size: its outputs (the paper: 128).
      prototypes: how many (the paper: 3000).
      sinkhorn_epsilon: smoothness of the codes (the paper: 0.05; 0.03 where they collapse).
      sinkhorn_iterations: of their assignment (the paper: 3).
      queue_size: embeddings of earlier steps, of each large view, that codes are assigned along
        with: 0, or 3840 for batches of 256.
      queue_start_epoch: the queue is used from this epoch on (the paper: 15).
      freeze_prototypes_steps: the prototypes do not learn before this step (the paper: 313, its
        first epoch; 5005 for batches of 256).
    """

    task = "swav"

    def __init__(
        self,
        backbone: tf.keras.Model,
        temperature: float = 0.1,
        projection_hidden: int = 2048,
        projection_size: int = 128,
        prototypes: int = 3000,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_size: int = 0,
        queue_start_epoch: float = 15.0,
        freeze_prototypes_steps: int = 313,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.temperature, self.queue_start_epoch = temperature, queue_start_epoch
        self.sinkhorn_epsilon, self.sinkhorn_iterations = sinkhorn_epsilon, sinkhorn_iterations
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.projection = MLP(
            "projection", [projection_hidden, projection_size], norm=self.head_norm
        )
        self.prototypes = self.add_weight(
            "prototypes",
            [prototypes, projection_size],
            initializer="random_normal",
            experimental_autocast=False,
        )
        self.queues = (
            [Queue(queue_size, projection_size, filled=False) for _ in range(2)]
            if queue_size
            else []
        )

    def start(self) -> None:
        for queue in self.queues:
            queue.check_step(self.batch_size)
        self._normalize_prototypes()

    def _normalize_prototypes(self) -> None:
        self.prototypes.assign(contrastive.l2_normalize(self.prototypes))

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = self.embed(batch["image"], {"z": self.projection}, training)
        z = contrastive.l2_normalize(outputs["z"])  # NxVxE
        # One matrix for the gradient of the prototypes, not one for each image as tf.matmul's.
        scores = tf.tensordot(z, self.prototypes, [[2], [1]])
        return {**outputs, "z": z[:, :2], "scores": scores}  # Nx2xE, NxVxK

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        z, scores = outputs["z"], outputs["scores"]
        guesses = tf.nn.log_softmax(scores / self.temperature)  # NxVxK
        views, losses, hits = guesses.shape[1], [], []
        for large in (0, 1):
            codes = self._codes(batch, z[:, large], scores[:, large], large)  # NxK
            others = tf.stack([guesses[:, v] for v in range(views) if v != large], 1)  # Nx(V-1)xK
            losses.append(-tf.reduce_mean(tf.reduce_sum(codes[:, None] * others, 2), 1))
            hits.append(tf.equal(tf.argmax(guesses[:, 1 - large], 1), tf.argmax(codes, 1)))
        accuracy = tf.reduce_mean(tf.cast(hits, guesses.dtype), 0)
        return tf.add_n(losses) / 2, {"accuracy": accuracy}

    def _codes(self, batch: Batch, z: tf.Tensor, scores: tf.Tensor, large: int) -> tf.Tensor:
        """The codes of this replica's views, assigned along with the other replicas' and the
        queue's."""
        active = batch["weight"] > 0
        if self.queues:
            queue = self.queues[large]
            # One compiled step for all epochs: a queue that is not used yet, or not full, takes no
            # part.
            rows = replicas.share(queue.rows)
            used = tf.fill([rows.shape[0]], (queue.count >= queue.size) & self._queue_is_on())
            scores = tf.concat([scores, tf.matmul(rows, self.prototypes, transpose_b=True)], 0)
            active = tf.concat([active, used], 0)
        return sinkhorn(
            scores, self.sinkhorn_epsilon, self.sinkhorn_iterations, active, own=z.shape[0]
        )

    def _queue_is_on(self) -> tf.Tensor:
        step = self.optimizer.iterations if getattr(self, "optimizer", None) else 0
        return tf.cast(step, tf.float32) >= self.queue_start_epoch * self.epoch_steps

    def groups(self) -> list[Group]:
        """Prototypes are frozen by a rate of 0, as DINO's."""

        def learns(step: tf.Tensor) -> tf.Tensor:
            return tf.cast(step >= self.freeze_prototypes_steps, tf.float32)

        return apart(super().groups(), Group([self.prototypes], rate=learns, decay=0.0))

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        for large, queue in enumerate(self.queues):
            queue.push(outputs["z"][:, large])
        self._normalize_prototypes()

    def chance(self) -> dict[str, float]:
        """A loss that stays at that of a uniform guess is the known way in which this method
        fails."""
        count = self.prototypes.shape[0]
        return {**super().chance(), "loss": math.log(count), "accuracy": 1 / count}

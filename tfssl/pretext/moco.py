"""MoCo: He et al., "Momentum Contrast", CVPR 2020 (arXiv 1911.05722), and its second version, Chen
et al. (arXiv 2003.04297)."""

import math
from typing import Any

import tensorflow as tf
from absl import logging

from tfssl.backbones.norm import set_statistics
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.losses import contrastive, replicas
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Queue
from tfssl.pretext.parts.target import MomentumNetwork
from tfssl.pretext.parts.views import Views, to_bytes
from tfssl.pretext.task import Batch, Measured, image_major


class MoCo(Views):
    """Identifies a query, the embedding of one view, among the keys of earlier steps and its own
    key: the other view's embedding by a momentum encoder.

    A query and a key that are normalized with the same images share their batch statistics, and
    could be matched by these alone. So the batch is normalized in groups, as on the papers' 8 GPUs,
    and keys are computed in a random order of the global batch ("shuffling BN", Section 3.3): each
    replica computes the keys of rows from all replicas. Synchronized statistics are no substitute:
    those of the current batch tell its keys from the queue's (github.com/facebookresearch/moco,
    issue 46).

    The defaults are version 2's; version 1: projection_layers=1, temperature=0.07,
    augmentation=moco_v1.

    Args:
      augmentation: policy of the views.
      temperature: what cosines are divided by (version 2: 0.2; version 1: 0.07).
      projection_layers: 2, with a hidden layer as wide as the features (version 2); 1 is linear
        (version 1).
      projection_size: outputs of the projection (the papers: 128).
      queue_size: how many keys of earlier steps are kept (the papers: 65536).
      key_momentum: EMA decay of the momentum encoder per step (the papers: 0.999).
      symmetric: each view is query and key in turn; the papers compute one of the two.
      split_batch_norm: groups that the global batch is normalized in (the papers: 8, of 32 images
        each), at least one for each part that a replica computes at once; not used where statistics
        are synchronized or grouped already.
    """

    task = "moco"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "moco_v2",
        temperature: float = 0.2,
        projection_layers: int = 2,
        projection_size: int = 128,
        queue_size: int = 65536,
        key_momentum: float = 0.999,
        symmetric: bool = False,
        split_batch_norm: int = 8,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        self.split_batch_norm = split_batch_norm if self.backbone.norm_policy.plain else 0
        self.temperature, self.key_momentum, self.symmetric = temperature, key_momentum, symmetric
        self.projection = MLP("projection", [0] * (projection_layers - 1) + [projection_size])
        self.keys = MomentumNetwork(self.backbone, self.projection)
        self.queue = Queue(queue_size, projection_size)
        self._bytes = True  # whether images came as bytes

    def compile(self, *args: Any, **keras: Any) -> None:
        super().compile(*args, **keras)
        if self.backbone.norm_policy.sync:
            logging.warning(
                "--task=%s with --sync_batch_norm: the statistics of a batch tell its keys from "
                "the queue's, which may be all that is "
                "learned; leave it out, and --split_batch_norm takes its place",
                self.task,
            )

    def start(self) -> None:
        self.keys.copy()
        computed_at_once = replicas.count() * self._accumulate_steps
        if self.split_batch_norm:
            for network in (self.backbone, self.keys.twins[0]):
                set_statistics(network, groups=max(1, self.split_batch_norm // computed_at_once))
        rows, groups = self.batch_size // computed_at_once, self.backbone.norm_policy.groups
        if rows % groups:
            raise UserError(
                f"the {rows} images that are computed at once cannot be normalized in {groups} "
                "equal groups: take another batch_size or "
                "split_batch_norm"
            )
        self.queue.check_step(self.batch_size * (1 + self.symmetric))

    def to_float(self, batch: Batch) -> Batch:
        images = tf.nest.flatten(batch["image"])
        self._bytes = all(x.dtype == tf.uint8 for x in images)  # of a trace; not of full depth
        return super().to_float(batch)

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        """Adds "keys", the views [N, P, S, S, 3] whose keys this replica computes, rows of the
        global batch in a random order; and "place" [N], where among all replicas' the keys of this
        replica's own rows are. "image" keeps the queries' views."""
        views, *others = batch["image"]
        first_key = 1 - self.symmetric
        order = draws.permutation(view=1)  # RN, the same on every replica
        theirs, place = tf.gather(order, draws.row), tf.gather(tf.argsort(order), draws.row)  # N
        keys = views[:, first_key:]
        if draws.replicas > 1 and self._bytes:
            keys = tf.cast(replicas.gather_bytes(to_bytes(keys)), views.dtype) / 255
        elif draws.replicas > 1:
            keys = replicas.gather(keys)
        keys = tf.gather(keys, theirs)
        if self.augment_on == "device":
            keys = self._policed(keys, draws.of(theirs), first_key)
        queries = super().augment(
            {**batch, "image": (views[:, : 1 + self.symmetric], *others)}, draws
        )
        return {**queries, "keys": keys[:, ::-1], "place": place}

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        views, pairs = batch["image"][0], 1 + self.symmetric
        found = [
            self.embed(views[:, i : i + 1], {"z": self.projection}, training) for i in range(pairs)
        ]
        keys = batch.get(
            "keys", views[:, ::-1]
        )  # evaluation computes them in the order of the queries
        keys = [self.keys(self.normalize(keys[:, i]), training) for i in range(pairs)]
        outputs = {
            name: tf.concat([outputs[name] for outputs in found], 1) for name in found[0]
        }  # NxPxE, P pairs
        return {**outputs, "keys": contrastive.l2_normalize(tf.stack(keys, 1))}  # NxPxE

    def own_keys(self, batch: Batch, outputs: dict[str, Any]) -> tf.Tensor:
        """The keys [N, P, E] of this replica's own rows, out of those that all replicas
        computed."""
        keys = tf.stop_gradient(outputs["keys"])
        return tf.gather(replicas.gather(keys), batch["place"]) if "place" in batch else keys

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        found = self.among_keys(outputs["z"], self.own_keys(batch, outputs))
        return found.loss, {"accuracy": found.accuracy}

    def among_keys(self, queries: tf.Tensor, keys: tf.Tensor) -> contrastive.Contrast:
        """`Contrast` of queries with their keys among those of the queue, both [N, P, E]: the mean
        over P."""
        found = [
            contrastive.info_nce(queries[:, i], keys[:, i], self.queue.rows, self.temperature)
            for i in range(keys.shape[1])
        ]
        return contrastive.Contrast(*(tf.add_n(values) / len(found) for values in zip(*found)))

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        self.queue.push(tf.reshape(outputs["keys"], [-1, outputs["keys"].shape[-1]]))
        self.keys.follow(self.key_momentum)

    def preview(self, batch: dict) -> tf.Tensor:
        """Queries, each beside its key's view."""
        images = batch["image"][0]
        if "keys" in batch:
            images = tf.concat([images[:, :1], tf.gather(batch["keys"], batch["place"])[:, :1]], 1)
        return image_major(images)

    def chance(self) -> dict[str, float]:
        return {
            **super().chance(),
            "loss": math.log(1 + self.queue.size),
            "accuracy": 1 / (1 + self.queue.size),
        }

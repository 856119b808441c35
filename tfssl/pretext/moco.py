"""MoCo: He et al., "Momentum Contrast", CVPR 2020 (arXiv 1911.05722), and its second version, Chen et al. (arXiv 2003.04297)."""

import math

import tensorflow as tf

from tfssl.backbones.norm import set_groups
from tfssl.errors import UserError
from tfssl.losses import contrastive, replicas
from tfssl.pretext.heads import MLP
from tfssl.pretext.memory import Queue
from tfssl.pretext.momentum import MomentumNetwork
from tfssl.pretext.views import Views


class MoCo(Views):
    """A query, one view, is to be told which key is its own: the other view's embedding by a slower network, among the keys of earlier
    steps.

    Within a batch that is normalised as one, a query and its key know each other by the batch's statistics. So the batch is cut into
    groups, each normalised by itself, and keys are computed in another order than queries. Statistics of all replicas (bn_sync) do as well.

    The defaults are version 2's; version 1: projection_layers=1, temperature=0.07, augmentation=moco_v1.

    Args:
      augmentation: policy of the views.
      temperature: what cosines are divided by (version 2: 0.2; version 1: 0.07).
      projection_layers: 2, with a hidden layer as wide as the features (version 2); 1 is linear (version 1).
      projection_size: outputs of the projection (the papers: 128).
      queue_size: how many keys of earlier steps are kept (the papers: 65536).
      key_momentum: share of the slower network that a step keeps (the papers: 0.999).
      symmetric: each view is query and key in turn; the papers compute one of the two.
      split_batch_norm: groups that a batch is normalised in, on all replicas together (on each at least 2), where statistics are neither
        synchronised nor grouped already.
    """

    task = "moco"

    def __init__(
        self,
        backbone,
        augmentation="moco_v2",
        temperature=0.2,
        projection_layers=2,
        projection_size=128,
        queue_size=65536,
        key_momentum=0.999,
        symmetric=False,
        split_batch_norm=8,
        **common,
    ):
        super().__init__(backbone, augmentation=augmentation, **common)
        if not self.backbone.bn_sync and self.backbone.bn_groups == 1:
            set_groups(self.backbone, max(2, split_batch_norm // replicas.count()))
        self.temperature, self.key_momentum, self.symmetric = temperature, key_momentum, symmetric
        self.projection = MLP("projection", [0] * (projection_layers - 1) + [projection_size])
        self.keys = MomentumNetwork(self.backbone, self.projection)
        self.queue = Queue(queue_size, projection_size)

    def start(self):
        self.keys.copy()
        rows, groups = self.batch_size // (replicas.count() * self._accumulate_steps), self.backbone.bn_groups
        if rows % groups:
            raise UserError(
                f"the {rows} images that are computed at once cannot be normalised in {groups} equal groups: take another batch_size or "
                "split_batch_norm"
            )
        if self.batch_size * (1 + self.symmetric) > self.queue.size:
            raise UserError(
                f"queue_size={self.queue.size} does not hold the {self.batch_size * (1 + self.symmetric)} keys of one step"
            )

    def augment(self, batch, draws):
        return {**super().augment(batch, draws), "place": draws.uniform(view=1)}

    def call(self, batch, training=False):
        first, second = batch["image"][0][:, :1], batch["image"][0][:, 1:]
        pairs = [(first, second), (second, first)][: 1 + self.symmetric]
        found = [self.embed(query, {"z": self.projection}, training) for query, _ in pairs]
        keys = [self._shuffled(batch, self.normalise(key[:, 0]), training) for _, key in pairs]
        outputs = {name: tf.concat([outputs[name] for outputs in found], 1) for name in found[0]}  # NxPxE, P pairs
        return {**outputs, "keys": contrastive.normalise(tf.stack(keys, 1))}  # NxPxE

    def _shuffled(self, batch, images, training):
        """The keys of images, computed in a random order."""
        if not training:
            return self.keys(images)
        order = tf.argsort(batch["place"])
        keys = self.keys(tf.gather(images, order), training)
        return tf.gather(keys, tf.argsort(order))

    def contrast(self, batch, outputs):
        found = self.among_keys(outputs["z"], outputs["keys"])
        return found.loss, {"accuracy": found.accuracy}

    def among_keys(self, queries, keys):
        """`Contrast` of queries with their keys among those of the queue, both [N, P, E]: the mean over P."""
        found = [
            contrastive.info_nce(queries[:, i], keys[:, i], self.queue.rows, self.temperature)
            for i in range(keys.shape[1])
        ]
        return contrastive.Contrast(*(tf.add_n(values) / len(found) for values in zip(*found)))  # noqa: B905 (Python 3.9)

    def after_step(self, batch, outputs):
        self.queue.push(tf.reshape(tf.transpose(outputs["keys"], [1, 0, 2]), [-1, outputs["keys"].shape[-1]]))
        self.keys.follow(self.key_momentum)

    def chance(self):
        return {**super().chance(), "loss": math.log(1 + self.queue.size), "accuracy": 1 / (1 + self.queue.size)}

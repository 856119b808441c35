"""A small task with phases: every few steps the images are clustered, and the network learns to
predict the clusters (as DeepCluster)."""

import numpy as np
import tensorflow as tf

from tfssl import optim
from tfssl.data.sources.subset import Ordered
from tfssl.losses.kmeans import lloyd
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.step.phases import Phase


class Clustering(InceptionImages):
    """Pseudo-labels of k-means on the pre-logits.

    Args:
      num_images: of the data set.
      clusters: how many.
      every: steps between clusterings.
    """

    task = "clustering"

    def __init__(self, backbone, num_images=0, clusters=3, every=2, **common):
        super().__init__(backbone, **common)
        self.num_images, self.clusters, self.every = num_images, clusters, every
        self.head = tf.keras.layers.Dense(clusters, name="head", dtype=tf.keras.backend.floatx())
        self.assigned = tf.Variable(
            -tf.ones([num_images], tf.int64),
            trainable=False,
            name="assigned",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def call(self, batch, training=False):
        return self.head(self.encode(batch["image"], training)["pre_logits"])

    def objective(self, batch, logits):
        labels = tf.gather(self.assigned, batch["index"] % self.num_images)
        known = tf.cast(labels >= 0, logits.dtype)
        labels = tf.maximum(labels, 0)
        loss = known * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return loss, {
            "accuracy": (tf.keras.metrics.sparse_categorical_accuracy(labels, logits), known)
        }

    def phases(self):
        return [Phase(self.every, self.cluster)]

    def cluster(self, context):
        print(f"clustering at step {context.step}", flush=True)
        rows, seen = context.embed(self.features)
        rng = np.random.default_rng(context.seeds)
        start = rows[rng.choice(np.flatnonzero(seen), self.clusters, replace=False)]
        found = context.run(self.lloyd, rows, start, seen)
        self.assigned.assign(tf.cast(found.labels, tf.int64))
        self.head.kernel.assign(rng.normal(0, 0.01, self.head.kernel.shape))
        self.head.bias.assign(tf.zeros_like(self.head.bias))
        optim.forget(self.optimizer, self.head.trainable_variables)
        return {"objective": float(found.objective)}

    def features(self, batch):
        return self.encode(batch["image"])["pre_logits"]

    def lloyd(self, rows, start, seen):
        return lloyd(rows, start, 4, weights=seen, chunk=16)

    def chance(self):
        return {"loss": float(np.log(self.clusters)), "accuracy": 1 / self.clusters}


class Balanced(Clustering):
    """The same, of which each cluster is shown as often as any other, however many images it has (as DeepCluster's sampler)."""

    def order(self, source):
        labels = self.assigned.numpy()
        clusters, counts = np.unique(labels[labels >= 0], return_counts=True)
        if not len(clusters):
            return source
        members = tf.constant(
            np.concatenate([np.flatnonzero(labels == cluster) for cluster in clusters])
        )
        begins, counts = tf.constant(np.cumsum(counts) - counts), tf.constant(counts)

        def block(seed):
            cluster, place = tf.unstack(
                tf.random.stateless_uniform([2, source.num_examples], seed, dtype=tf.float64)
            )
            cluster = tf.cast(cluster * len(clusters), tf.int64)
            place = place * tf.cast(tf.gather(counts, cluster), tf.float64)
            return tf.gather(members, tf.gather(begins, cluster) + tf.cast(place, tf.int64))

        return Ordered(source, block)


def register():
    """Make it a task of this process."""
    from tfssl import pretext
    from tfssl.registry import Registry

    known = {name: ":".join(pretext.TASKS.source(name)) for name in pretext.NAMES}
    pretext.TASKS = Registry("task", {**known, "clustering": "clustering:Clustering"})
    pretext.NAMES = pretext.TASKS.names

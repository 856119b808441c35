"""DeepCluster-v2: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", NeurIPS 2020 (arXiv 2006.09882), Appendix; and its published code."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tfssl.losses import contrastive
from tfssl.pretext.parts import clusterings as parts
from tfssl.pretext.parts.clusterings import Clusterings
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Bank
from tfssl.pretext.parts.multi_crop import MultiCrop
from tfssl.pretext.task import Batch, Measured, cross_entropy_chance
from tfssl.step.phases import Context, Phase, every


class DeepClusterV2(MultiCrop):
    """Every epoch, the embeddings that the last epoch left of all images are clustered by spherical
    k-means, several times; all views of an image are then classified as its clusters. The
    classifiers are the centroids, which do not learn.

    Two memory banks hold the last embedding of each of the two large views; clustering h is of bank
    h modulo 2. The banks are first filled by one pass over the images without augmentation, by
    crops of one place, with the moving statistics of batch normalization (the published code:
    augmented crops, in training mode). An empty cluster keeps its centroid.

    Args:
      num_images: images of the data set; 0 takes its number.
      temperature: softmax temperature (the paper: 0.1).
      projection_hidden: hidden units of the projection (the paper: 2048).
      projection_size: its outputs (the paper: 128).
      clusters: of each clustering (the paper: 3000).
      clusterings: how many (the paper: 3).
      kmeans_iterations: of each (the code: 10).
      clustering_epochs: epochs from one clustering to the next (the code: 1).
    """

    task = "deepcluster_v2"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_images: int = 0,
        temperature: float = 0.1,
        projection_hidden: int = 2048,
        projection_size: int = 128,
        clusters: int = 3000,
        clusterings: int = 3,
        kmeans_iterations: int = 10,
        clustering_epochs: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.num_images, self.temperature = num_images, temperature
        self.clustering_epochs = clustering_epochs
        self.clusterings = Clusterings(
            num_images, clusters, clusterings, kmeans_iterations, spherical=True, split=False
        )
        self.projection = MLP(
            "projection", [projection_hidden, projection_size], norm=self.head_norm
        )
        self.banks = [Bank(num_images, projection_size, momentum=0.0) for _ in range(2)]
        self.prototypes = self.add_weight(
            "prototypes",
            [clusterings, clusters, projection_size],
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = self.embed(batch["image"], {"z": self.projection}, training)
        z = contrastive.l2_normalize(outputs["z"])  # NxVxE
        scores = tf.einsum("nve,hke->hnvk", z, self.prototypes)
        return {**outputs, "z": z[:, :2], "scores": tf.transpose(scores, [1, 0, 2, 3])}  # NxHxVxK

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        logits = outputs["scores"] / self.temperature  # NxHxVxK
        labels = tf.transpose(self.clusterings.of(batch["index"]))[:, :, None]  # NxHx1
        labels = tf.tile(labels, [1, 1, logits.shape[2]])  # NxHxV
        known = tf.cast(labels >= 0, logits.dtype)  # an image without a label costs nothing
        found = contrastive.classify(
            tf.reshape(logits, [-1, logits.shape[3]]), tf.reshape(tf.maximum(labels, 0), [-1])
        )
        loss, right = (known * tf.reshape(x, labels.shape) for x in found)
        loss, right, known = (tf.reduce_mean(x, [1, 2]) for x in (loss, right, known))
        accuracy = tf.math.divide_no_nan(right, known)
        return loss, {"accuracy": (accuracy, known), **self.clusterings.health(loss)}

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        for view, bank in enumerate(self.banks):
            bank.update(batch["index"], outputs["z"][:, view])
        self.clusterings.see(batch)

    def phases(self) -> list[Phase]:
        steps = every(self.clustering_epochs, self.epoch_steps)
        return [Phase(steps, self.cluster, self.clusterings.flops(self.prototypes.shape[2]))]

    def cluster(self, context: Context) -> dict[str, float]:
        """The phase: labels and prototypes by k-means on the banks, which are filled before step
        0."""
        if context.step == 0:
            embedded, seen = context.embed(self.large_views)  # Nx2xE
            for view, bank in enumerate(self.banks):
                bank.entries.assign(embedded[:, view] * seen[:, None])
        rows = [tf.convert_to_tensor(bank.entries) for bank in self.banks]
        known = np.linalg.norm(rows[0], axis=1) > 0.5  # zeros: images that cannot be read
        centroids, report = self.clusterings.compute(context, rows, known)
        self.prototypes.assign(centroids)
        return report

    def large_views(self, batch: Batch) -> tf.Tensor:
        """Embeddings of the two large views: [n, 2, E]."""
        z = self.embed(batch["image"][0], {"z": self.projection}, False)["z"]
        return contrastive.l2_normalize(z)

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        return super().alarm(measured) or parts.alarm(measured, self.clusterings.clusters)

    def chance(self) -> dict[str, float]:
        """Not the loss's level after a clustering, which is lower: the labels are made from what
        the network says."""
        return {
            **super().chance(),
            **cross_entropy_chance(self.clusterings.clusters),
            **parts.chance(),
        }

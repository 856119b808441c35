"""Pseudo-labels: clusterings of all images, computed in phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.losses import replicas
from tfssl.losses.kmeans import Clusters, lloyd
from tfssl.pretext.task import Batch
from tfssl.step.phases import Context


class Clusterings(tf.Module):
    """The pseudo-labels of all images by several clusterings, k-means of different starts: integers
    in [0, clusters), or -1 of an image that has none.

    Args:
      images: N, of the data set.
      clusters: K, of each clustering.
      count: H, how many clusterings.
      iterations: of k-means.
      spherical, split: see `losses.kmeans.lloyd`.

    Attributes:
      labels: int64 [H, N].
      perplexity: exp of the entropy of the labels' distribution, 1 to K, the mean over clusterings:
        as many clusters of equal size were as uncertain. 0 before the first clustering.
      nmi: normalized mutual information with the clusterings before, 0 to 1, the mean over
        clusterings; 0 before the second one.

    Raises:
      UserError: there are fewer images than clusters.
    """

    trainable_variables = ()

    def __init__(
        self,
        images: int,
        clusters: int,
        count: int = 1,
        iterations: int = 20,
        spherical: bool = False,
        split: bool = True,
    ) -> None:
        super().__init__(name="clusterings")
        if images < 1:
            raise UserError(
                "num_images is missing: pseudo-labels need to know how many images there are"
            )
        if images < clusters:
            raise UserError(
                f"clusters={clusters} need as many images at least, and the training split has "
                f"{images}: take fewer clusters"
            )
        self.clusters, self.count, self.iterations = clusters, count, iterations
        self.spherical, self.split = spherical, split
        floatx = tf.keras.backend.floatx()
        self.labels = _variable("labels", -np.ones([count, images]), tf.int64)
        # The labels of the data set, as far as training has seen them: only to measure by.
        self.classes = _variable("classes", -np.ones([images]), tf.int64)
        self.step = _variable("step", -1, tf.int64)  # of the last clustering
        self.perplexity = _variable("perplexity", 0, floatx)
        self.nmi = _variable("nmi", 0, floatx)

    @property
    def non_trainable_variables(self) -> tuple[tf.Variable, ...]:
        return (self.labels, self.classes, self.step, self.perplexity, self.nmi)

    def of(self, index: tf.Tensor) -> tf.Tensor:
        """Pseudo-labels of images [n]: int32 [H, n]. Those of other images than the training
        split's, in validation, are some image's: what is measured of them is chance."""
        return tf.cast(tf.gather(self.labels, index % self.labels.shape[1], axis=1), tf.int32)

    def health(self, like: tf.Tensor) -> dict[str, tf.Tensor]:
        """{"perplexity", "nmi"} as metrics of the rows of `like` [n]."""
        named = {"perplexity": self.perplexity, "nmi": self.nmi}
        return {name: tf.ones_like(like) * tf.cast(v, like.dtype) for name, v in named.items()}

    def see(self, batch: Batch) -> None:
        """Remember the labels that a training batch has, of all replicas: only to measure by."""
        index, labels = replicas.gather(batch["index"]), replicas.gather(batch["label"])
        self.classes.scatter_update(tf.IndexedSlices(labels, index))

    def compute(
        self, context: Context, banks: Sequence[tf.Tensor], known: np.ndarray
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Cluster anew, each time from rows that seed and step choose, and write the labels.

        Args:
          context: of the phase.
          banks: rows [N, D]; clustering h is of bank h modulo their number.
          known: bool [N]: the others have no row, and get the label -1.

        Returns:
          (Centroids [H, K, D], what to log: "perplexity"; "empty", the fraction of clusters without
          an image; "objective", the mean squared distance to the nearest centroid; "nmi"; and
          "nmi_labels" with the data set's labels where there are any).

        Raises:
          UserError: fewer rows than clusters.
        """
        if known.sum() < self.clusters:
            raise UserError(
                f"clusters={self.clusters} need as many images at least, and {known.sum()} can be "
                "read: take fewer clusters"
            )
        rng, weights, found = np.random.default_rng(context.seeds), tf.constant(known), []
        for h in range(self.count):
            rows = banks[h % len(banks)]
            start = rng.choice(np.flatnonzero(known), self.clusters, replace=False)
            found.append(context.run(self._lloyd, rows, tf.gather(rows, start), weights))
        labels = np.stack([clusters.labels for clusters in found])  # HxN
        report = self.write(labels, context.step)
        objective = np.mean([float(clusters.objective) for clusters in found]) / known.sum()
        return np.stack([clusters.centroids for clusters in found]), {
            **report,
            "objective": float(objective),
        }

    def flops(self, features: int) -> float:
        """Floating-point operations of `compute` on rows of so many features: the products of all
        rows with all centroids."""
        products = self.count * (self.iterations + 1)
        return 2.0 * products * self.labels.shape[1] * self.clusters * features

    def _lloyd(self, rows: tf.Tensor, start: tf.Tensor, weights: tf.Tensor) -> Clusters:
        return lloyd(
            rows, start, self.iterations, self.spherical, tf.cast(weights, rows.dtype), self.split
        )

    def write(self, labels: np.ndarray, step: int) -> dict[str, float]:
        """Keep pseudo-labels [H, N] that were found before a step; returns how healthy they are,
        see `compute`."""
        counts = np.stack(
            [np.bincount(row[row >= 0], minlength=self.clusters) for row in labels]
        )  # HxK
        if step != int(
            self.step.numpy()
        ):  # a phase that is done again compares with the same labels
            self.nmi.assign(_mutual_information(self.labels.numpy(), labels) or 0.0)
        self.perplexity.assign(np.mean([_perplexity(row) for row in counts]))
        self.labels.assign(labels.astype(np.int64))
        self.step.assign(step)
        report = {
            "perplexity": float(self.perplexity.numpy()),
            "empty": float((counts == 0).mean()),
            "nmi": float(self.nmi.numpy()),
        }
        classes = np.broadcast_to(self.classes.numpy(), labels.shape)
        with_classes = _mutual_information(classes, labels)
        return report if with_classes is None else {**report, "nmi_labels": with_classes}


def chance() -> dict[str, float]:
    """The levels of the metrics of `health`: of one cluster with all images, and of clusterings
    that have nothing in common."""
    return {"perplexity": 1.0, "nmi": 0.0}


def alarm(measured: Mapping[str, float], clusters: int) -> str | None:
    """A warning where hardly any clusters are in use, or none."""
    perplexity = measured["perplexity"]
    if perplexity == 0:
        return (
            "no image has a pseudo-label, and nothing is learned: the phases of the task have not "
            "been run (tfssl-train runs them)"
        )
    if clusters > 1 and perplexity < max(0.05 * clusters, 1.05):
        return (
            f"nearly all images are in {perplexity:.3g} of {clusters} clusters (perplexity): the "
            "features have collapsed, see docs/methods.md"
        )
    return None


def _variable(name: str, initial: np.ndarray | float, dtype: tf.DType | str) -> tf.Variable:
    return tf.Variable(
        tf.cast(initial, dtype),
        trainable=False,
        name=name,
    )


def _perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of counts [K]."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _mutual_information(labels: np.ndarray, others: np.ndarray) -> float | None:
    """Normalized mutual information of labels [H, N] with others, the mean over the rows; -1 is no
    label. None where no image has both."""
    from sklearn.metrics import normalized_mutual_info_score  # late: it takes a second

    both = (labels >= 0) & (others >= 0)
    if not both.any(1).all():
        return None
    scores = [
        normalized_mutual_info_score(x[known], y[known])
        for x, y, known in zip(labels, others, both)
    ]
    return float(np.mean(scores))

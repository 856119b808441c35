"""DeepCluster: Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV
2018 (arXiv 1807.05520); and its published code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl import optim
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import Ordered
from tfssl.errors import UserError, check_choice
from tfssl.losses import contrastive
from tfssl.losses.kmeans import whitening
from tfssl.optim.groups import inner
from tfssl.pretext.parts import clusterings as parts
from tfssl.pretext.parts.clusterings import Clusterings
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.task import Batch, Measured, cross_entropy_chance, imagenet_normalized
from tfssl.step.phases import Context, Phase, every


class DeepCluster(InceptionImages):
    """Every epoch, the features of all images are clustered by k-means, and the network learns to
    classify the images as their clusters, by a classifier that begins anew each time.

    The network sees the horizontal and vertical Sobel derivatives of the gray image: two channels,
    made within the published encoder, which takes RGB images like every other. k-means sees the
    pre-logits of the central crops after PCA with whitening, with norm 1 (the published code: the
    last hidden layer of AlexNet and VGG before its ReLU; here after it).

    Args:
      num_images: images of the data set; 0 takes its number.
      min_area: smallest area of the random crop, as a share of the image (the code: 0.08).
      color: vary brightness and saturation in training (the code does not).
      sobel: the network sees derivatives; False: the normalized RGB image.
      clusters: of k-means (the paper: 10000).
      kmeans_iterations: of each clustering (the code: 20).
      pca_size: features that k-means sees (the paper: 256); fewer where the pre-logits vary in
        fewer dimensions.
      clustering_epochs: epochs from one clustering to the next (the paper: 1).
      balance: sample (images are drawn uniformly over the clusters, as in the paper), weight (the
        loss of an image is divided by the size of its cluster, which is the same in expectation and
        suits data that is read in one order), or none.
      head_momentum: the optimizer's momentum acts on the classifier too (the code: it does not).
        False needs SGD.
    """

    needs = ("color",)
    task = "deepcluster"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_images: int = 0,
        min_area: float = 0.08,
        color: bool = False,
        sobel: bool = True,
        clusters: int = 10000,
        kmeans_iterations: int = 20,
        pca_size: int = 256,
        clustering_epochs: float = 1.0,
        balance: str = "sample",
        head_momentum: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, min_area=min_area, color=color, **common)
        check_choice("balance", balance, ("sample", "weight", "none"))
        self._autocast = False  # half precision has too few levels for derivatives
        self.num_images, self.sobel, self.pca_size = num_images, sobel, pca_size
        self.clustering_epochs, self.balance = clustering_epochs, balance
        self.head_momentum = head_momentum
        self.clusterings = Clusterings(num_images, clusters, iterations=kmeans_iterations)
        floatx = tf.keras.backend.floatx()
        self.head = tf.keras.layers.Dense(
            clusters,
            name="head",
            dtype=floatx,
            kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        )

    def compile(
        self, optimizer: tf.keras.optimizers.Optimizer, accumulate_steps: int = 1, **keras: Any
    ) -> None:
        """See `Pretext.compile`.

        Raises:
          UserError: the classifier is to learn without momentum, and the optimizer is not SGD.
        """
        own = inner(optimizer)
        if not self.head_momentum and (
            not isinstance(own, tf.keras.optimizers.SGD) or own.nesterov
        ):
            raise UserError(
                "the classifier learns without momentum, which this optimizer cannot leave out for "
                "some variables: take --optimizer=sgd, or --head_momentum"
            )
        super().compile(optimizer, accumulate_steps, **keras)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """RGB in [0, 1] [N, H, W, 3] -> Sobel derivatives of the mean of the normalized channels
        [N, H, W, 2], or the normalized image."""
        images = imagenet_normalized(images)
        return derivatives(tf.reduce_mean(images, 3, keepdims=True)) if self.sobel else images

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        return self.head(self.endpoints(batch["image"], training)["pre_logits"])  # NxK

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        labels = self.clusterings.of(batch["index"])[0]  # N
        known = tf.cast(labels >= 0, logits.dtype)  # an image without a label costs nothing
        found = contrastive.classify(logits, tf.maximum(labels, 0))
        weight = known * self._weights(labels, logits.dtype) if self.balance == "weight" else known
        return weight * found.loss, {
            "accuracy": (found.accuracy, known),
            **self.clusterings.health(found.loss),
        }

    def _weights(self, labels: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """N / (K' n) of images [n] whose cluster has n of the N images, with K' clusters in use:
        with these, the mean over the images is the expectation of drawing a cluster, and then an
        image of it."""
        every_label = self.clusterings.labels[0]
        counts = tf.math.unsorted_segment_sum(
            tf.ones_like(every_label, dtype), every_label, self.clusterings.clusters
        )  # K; the label -1 is dropped
        used = tf.reduce_sum(tf.cast(counts > 0, dtype))
        sizes = tf.gather(counts, tf.maximum(labels, 0))
        return tf.math.divide_no_nan(tf.reduce_sum(counts), used * sizes)

    def order(self, source: Source) -> Source:
        """As the published sampler: in each block of N examples, every cluster in use is drawn from
        N // K' + 1 times, with repetition if it has no more images than that; in random order, of
        which the first N are taken."""
        if self.balance != "sample":
            return source
        if not source.random_access:
            raise UserError(
                f"{source.spec} is read in one order, and balance=sample draws its images: take "
                "--balance=weight"
            )
        labels = self.clusterings.labels[0].numpy()
        members = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
        if not len(members):
            return source  # nothing is clustered yet
        _, group, sizes = np.unique(labels[members], return_inverse=True, return_counts=True)
        draws, count = source.num_examples // len(sizes) + 1, source.num_examples
        begins = np.cumsum(sizes) - sizes

        def block(seed: tf.Tensor) -> tf.Tensor:
            fractions = [
                tf.random.stateless_uniform([size], seed + [i << 32, 0], dtype=tf.float64)
                for i, size in enumerate((len(members), draws * len(sizes), draws * len(sizes)), 1)
            ]
            shuffled = tf.argsort(group.reshape(-1) + fractions[0], stable=True)  # in each cluster
            size, turn = np.repeat(sizes, draws), np.tile(np.arange(draws), len(sizes))
            repeated = tf.cast(fractions[1] * size, tf.int64)
            place = np.repeat(begins, draws) + tf.where(size > draws, turn, repeated)
            drawn = tf.gather(members, tf.gather(shuffled, place))
            return tf.gather(drawn, tf.argsort(fractions[2], stable=True)[:count])

        return Ordered(source, block)

    def after_step(self, batch: Batch, outputs: Any) -> None:
        self.clusterings.see(batch)
        if not self.head_momentum:
            self._forget_head()

    def _forget_head(self) -> None:
        optim.forget(self.optimizer, self.head.trainable_variables)

    def phases(self) -> list[Phase]:
        steps = every(self.clustering_epochs, self.epoch_steps)
        return [Phase(steps, self.cluster, self.clusterings.flops(self.pca_size), passes=1)]

    def cluster(self, context: Context) -> dict[str, float]:
        """The phase: labels by k-means, and a classifier that knows nothing."""
        rows, seen = context.embed(self.features)  # NxD
        report = self.clusterings.compute(context, [whitened(rows, seen, self.pca_size)], seen)[1]
        rng = np.random.default_rng([*context.seeds, 1])
        self.head.kernel.assign(rng.normal(0, 0.01, self.head.kernel.shape))
        self.head.bias.assign(tf.zeros_like(self.head.bias))
        self._forget_head()
        return report

    def features(self, batch: Batch) -> tf.Tensor:
        """What is clustered: [n, D]."""
        return self.encode(batch["image"])["pre_logits"]

    def alarm(self, measured: Mapping[str, float]) -> str | None:
        return super().alarm(measured) or parts.alarm(measured, self.clusterings.clusters)

    def chance(self) -> dict[str, float]:
        return {**cross_entropy_chance(self.clusterings.clusters), **parts.chance()}


def derivatives(gray: tf.Tensor) -> tf.Tensor:
    """Images [N, H, W, 1] -> their Sobel derivatives [N, H, W, 2]: to the left, signed, and
    upwards, as the published filters; zeros around the image."""
    x = tf.pad(gray, [[0, 0], [1, 1], [1, 1], [0, 0]])
    rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]  # NxHx(W+2), smooth downwards
    columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]  # Nx(H+2)xW
    return tf.concat([rows[:, :, :-2] - rows[:, :, 2:], columns[:, :-2] - columns[:, 2:]], 3)


def whitened(rows: np.ndarray, known: np.ndarray, dims: int, chunk: int = 65_536) -> np.ndarray:
    """Rows [N, D] after PCA with whitening, with norm 1: [N, dims], zeros where `known` [N] is
    False.

    Of rows that vary in fewer dimensions, the last of `dims` features are zeros. Mean and
    covariance are computed in float64, so many rows at a time.
    """
    parts_of = [slice(i, i + chunk) for i in range(0, len(rows), chunk)]
    count = known.sum()
    mean = sum(rows[part][known[part]].sum(0, dtype=np.float64) for part in parts_of) / count
    covariance = np.zeros([rows.shape[1]] * 2)
    for part in parts_of:
        centered = rows[part][known[part]] - mean
        covariance += centered.T @ centered / count
    values = np.linalg.eigvalsh(covariance)
    varying = max(1, int((values > 1e-10 * values[-1]).sum()))
    matrix = whitening(covariance, min(dims, varying))
    white = np.zeros([len(rows), dims], rows.dtype)
    for part in parts_of:
        projected = (rows[part] - mean) @ matrix
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        kept = known[part][:, None] & (norms > 0)
        white[part, : matrix.shape[1]] = np.where(kept, projected / np.where(kept, norms, 1), 0)
    return white

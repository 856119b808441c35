"""k-means by Lloyd's algorithm, in static shapes and deterministic, on one device or shared by
replicas; and whitening before it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.losses import replicas
from tfssl.precision import at_least_float32


class Clusters(NamedTuple):
    """Attributes:
    centroids: [K, D]; of norm 1 where they are spherical.
    labels: int32 [N], the nearest centroid of each row; -1 of rows without weight.
    objective: scalar, the weighted sum of squared distances to the nearest centroid.
    """

    centroids: tf.Tensor
    labels: tf.Tensor
    objective: tf.Tensor


def lloyd(
    rows: tf.Tensor,
    centroids: tf.Tensor,
    iterations: int,
    spherical: bool = False,
    weights: Optional[tf.Tensor] = None,
    split: bool = True,
    chunk: int = 4096,
) -> Clusters:
    """Lloyd's algorithm: so many times, rows go to their nearest centroids, and each centroid to
    the mean of its rows.

    Called on each replica of a strategy, with the same arguments, the replicas share the rows. A
    row as near to several centroids is the first one's. Without `split`, an empty cluster keeps its
    centroid.

    Args:
      rows: [N, D], N static and at least K.
      centroids: [K, D], where to start.
      iterations: a Python int.
      spherical: rows and centroids are brought to norm 1, so that the largest cosine decides
        (faiss: spherical).
      weights: [N], 0 for rows that are not there. Default: 1.
      split: before each of the following iterations an empty cluster takes half of a large one: see
        `split_empty`.
      chunk: rows that are compared with all centroids at once: memory for [chunk, K].

    Raises:
      UserError: fewer rows than centroids.
    """
    count, clusters = rows.shape[0], centroids.shape[0]
    if count < clusters:
        raise UserError(
            f"{clusters} clusters need as many images at least, and there are {count}: take fewer "
            "clusters"
        )
    rows, centroids = (
        at_least_float32(tf.convert_to_tensor(rows)),
        at_least_float32(tf.convert_to_tensor(centroids)),
    )
    weights = tf.ones([count], rows.dtype) if weights is None else tf.cast(weights, rows.dtype)
    if spherical:
        rows, centroids = tf.math.l2_normalize(rows, 1), tf.math.l2_normalize(centroids, 1)
    chunk = min(chunk, -(-count // replicas.count()))
    blank = -count % (chunk * replicas.count())
    rows, weights = tf.pad(rows, [[0, blank], [0, 0]]), tf.pad(weights, [[0, blank]])
    own_rows = tf.reshape(replicas.share(rows), [-1, chunk, rows.shape[1]])  # MxCxD
    own_weights = tf.reshape(replicas.share(weights), [-1, chunk])  # MxC
    for i in range(iterations):  # unrolled: replicas cannot meet within a loop
        sums, counts = _sums(own_rows, own_weights, centroids)
        means = tf.math.divide_no_nan(sums, counts[:, None])
        centroids = tf.where(counts[:, None] > 0, means, centroids)
        if split and i < iterations - 1:
            centroids, _ = split_empty(centroids, counts)
        if spherical:
            centroids = tf.math.l2_normalize(centroids, 1)
    labels, distances = _each(lambda x: _labels(x, centroids), own_rows, (tf.int32, rows.dtype))
    objective = _total(tf.reduce_sum(own_weights * distances))
    labels = tf.where(own_weights > 0, labels, -1)
    return Clusters(centroids, replicas.gather(tf.reshape(labels, [-1]))[:count], objective)


def _labels(x: tf.Tensor, centroids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(Nearest centroid int32 [C], squared distance to it [C]) of rows [C, D]."""
    nearest = _nearest(x, centroids)
    return nearest, tf.reduce_sum((x - tf.gather(centroids, nearest)) ** 2, 1)


def _nearest(x: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
    """Nearest centroid int32 [C] of rows [C, D]."""
    # |c|^2 - 2 x c of all pairs as one product, which is all that takes long
    ones, norms = tf.ones_like(x[:, :1]), tf.reduce_sum(centroids**2, 1, keepdims=True)
    distances = tf.matmul(
        tf.concat([x, ones], 1), tf.concat([-2 * centroids, norms], 1), transpose_b=True
    )  # CxK, less |x|^2
    return tf.argmin(distances, 1, output_type=tf.int32)


def _sums(rows: tf.Tensor, weights: tf.Tensor, centroids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(Sum of the rows of each cluster [K, D], sum of their weights [K]), over all replicas."""
    clusters, features = centroids.shape
    if _on_cpu():
        nearest = tf.reshape(_each(lambda x: _nearest(x, centroids), rows, tf.int32), [-1])
        own = tf.concat([rows * weights[..., None], weights[..., None]], 2)
        own = tf.reshape(own, [-1, features + 1])
        own = tf.math.unsorted_segment_sum(own, nearest, clusters)  # Kx(D+1)
        return _total(own[:, :-1]), _total(own[:, -1])

    # As products: accelerators add segments slowly, or in any order.
    def add(
        i: tf.Tensor, sums: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        nearest = _nearest(rows[i], centroids)
        members = tf.one_hot(nearest, clusters, dtype=rows.dtype) * weights[i][:, None]  # CxK
        return (
            i + 1,
            sums + tf.matmul(members, rows[i], transpose_a=True),
            counts + tf.reduce_sum(members, 0),
        )

    start = (0, tf.zeros([clusters, features], rows.dtype), tf.zeros([clusters], rows.dtype))
    _, sums, counts = tf.while_loop(
        lambda i, *_: i < rows.shape[0], add, start, parallel_iterations=1
    )
    return _total(sums), _total(counts)


def _each(function: Callable[[tf.Tensor], Any], rows: tf.Tensor, types: Any) -> Any:
    """What a function returns of each part of rows [M, C, D], one after the other."""
    return tf.map_fn(function, rows, fn_output_signature=types, parallel_iterations=1)


def _on_cpu() -> bool:
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def _total(x: tf.Tensor) -> tf.Tensor:
    return x if replicas.count() == 1 else tf.distribute.get_replica_context().all_reduce("SUM", x)


def split_empty(
    centroids: tf.Tensor, counts: tf.Tensor, epsilon: float = 1 / 1024
) -> tuple[tf.Tensor, tf.Tensor]:
    """Give each empty cluster half of the largest one: of a centroid become two, times 1 + epsilon
    and 1 - epsilon on alternating features.

    One after the other, each half counting half. As faiss does, which draws the one that is split,
    with chances that grow with its size (`ClusteringHelpers.cpp`): here nothing is drawn. Clusters
    of fewer than two rows are not split.

    Args:
      centroids: [K, D].
      counts: [K], rows (their weights) of each.

    Returns:
      (Centroids, counts) afterwards.
    """
    away = epsilon * tf.cast(1 - 2 * (tf.range(centroids.shape[1]) % 2), centroids.dtype)

    def split(centroids: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        empty, donor = (
            tf.argmin(counts, output_type=tf.int32),
            tf.argmax(counts, output_type=tf.int32),
        )
        pair, whole = tf.stack([empty, donor])[:, None], centroids[donor]
        halves = tf.stack([whole * (1 + away), whole * (1 - away)])
        return (
            tf.tensor_scatter_nd_update(centroids, pair, halves),
            tf.tensor_scatter_nd_update(counts, pair, tf.repeat(counts[donor] / 2, 2)),
        )

    def needed(centroids: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        return (tf.reduce_min(counts) <= 0) & (tf.reduce_max(counts) >= 2)

    return tf.while_loop(needed, split, (centroids, counts))


def whitening(covariance: np.ndarray, dims: int) -> np.ndarray:
    """A matrix [D, dims] that takes rows less their mean to `dims` uncorrelated ones of variance 1,
    of the largest variance first.

    Args:
      covariance: [D, D] of the rows.
      dims: at most D, and of no feature without variance.

    Computed in float64; an eigenvector's largest component is positive, so that the matrix does not
    depend on the library.

    Raises:
      UserError: the rows do not vary in so many dimensions.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    values, vectors = values[::-1][:dims], vectors[:, ::-1][:, :dims]
    if len(values) < dims or values[-1] <= 1e-12 * values[0]:
        varying = int((values > 1e-12 * values[0]).sum())
        raise UserError(
            f"{dims} whitened features are asked for, and the rows vary in {varying} dimensions: "
            "take fewer"
        )
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(dims)]) / np.sqrt(values)

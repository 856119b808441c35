"""Losses on the statistics of a batch's embeddings, over all replicas: Barlow Twins and VICReg. In
float32 at least.

Sums of features travel between replicas, [D] or [D, D], not rows. Every replica computes one and
the same loss from them, and the gradients of all replicas together are those of that loss.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfssl.losses import replicas
from tfssl.precision import at_least_float32


class BarlowTwins(NamedTuple):
    """Scalars: the loss; the mean of the cross-correlation's diagonal, 1 where views agree; the
    mean square of its other entries."""

    loss: tf.Tensor
    agreement: tf.Tensor
    redundancy: tf.Tensor


def barlow_twins(
    z1: tf.Tensor, z2: tf.Tensor, redundancy_weight: float = 0.0051, weight: tf.Tensor | None = None
) -> BarlowTwins:
    """The cross-correlation of two views' features, over the batch, is to be the identity (Zbontar
    et al., arXiv 2103.03230, Equation 1).

    Args:
      z1, z2: embeddings of two views of the same N images, [N, D].
      redundancy_weight: lambda, of the squares off the diagonal.
      weight: [N], 0 for rows that do not count. All count by default.
    """
    w, n = _weights(z1, weight)
    a, b = (_standardized(at_least_float32(z), w, n) for z in (z1, z2))
    correlation = replicas.total(tf.matmul(a, w * b, transpose_a=True)) / n  # DxD
    diagonal = tf.linalg.diag_part(correlation)
    off = tf.reduce_sum(tf.square(correlation)) - tf.reduce_sum(tf.square(diagonal))
    size = correlation.shape[0]
    loss = tf.reduce_sum(tf.square(diagonal - 1)) + redundancy_weight * off
    return BarlowTwins(loss, tf.reduce_mean(diagonal), off / max(1, size * (size - 1)))


class VICReg(NamedTuple):
    """The loss of each image [N], and its terms before their weights: the invariance of each
    image [N]; variance and covariance, scalars."""

    loss: tf.Tensor
    invariance: tf.Tensor
    variance: tf.Tensor
    covariance: tf.Tensor


def vicreg(
    z1: tf.Tensor,
    z2: tf.Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    weight: tf.Tensor | None = None,
) -> VICReg:
    """Views are to be near each other, each feature is to vary by 1 or more, and features are not
    to covary (Bardes et al., arXiv 2105.04906, Equations 1 to 6; the variance term is the mean over
    the two views, as in the published code, where the paper has the sum).

    Args:
      z1, z2: embeddings of two views of the same N images, [N, D]; not normalized: their scale is
        part of the loss.
      invariance_weight, variance_weight, covariance_weight: of the three terms: lambda, mu, nu.
      weight: [N], 0 for rows that do not count. All count by default.
    """
    w, n = _weights(z1, weight)
    z1, z2 = at_least_float32(z1), at_least_float32(z2)
    invariance = tf.reduce_mean(tf.square(z1 - z2), 1)
    variance, covariance = 0.0, 0.0
    for z in (z1, z2):
        z = _centered(z, w, n)
        matrix = replicas.total(tf.matmul(z, w * z, transpose_a=True))
        matrix /= tf.maximum(n - 1, 1)  # DxD, of zeros for a single image
        diagonal = tf.linalg.diag_part(matrix)
        variance += tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(diagonal + 1e-4))) / 2
        off = tf.reduce_sum(tf.square(matrix)) - tf.reduce_sum(tf.square(diagonal))
        covariance += off / matrix.shape[0]
    loss = (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )
    return VICReg(loss, invariance, variance, covariance)


def _weights(z: tf.Tensor, weight: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """[N, 1], and their sum over all replicas."""
    dtype = at_least_float32(z).dtype
    w = tf.ones([z.shape[0], 1], dtype) if weight is None else tf.cast(weight, dtype)[:, None]
    return w, replicas.total(tf.reduce_sum(w))


def _centered(z: tf.Tensor, w: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """Less the mean over all rows. Second moments are taken after it: a difference of large sums
    would lose the digits."""
    return z - replicas.total(tf.reduce_sum(w * z, 0)) / n


def _standardized(z: tf.Tensor, w: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """As a batch normalization without parameters has it: biased variance, epsilon 1e-5."""
    z = _centered(z, w, n)
    return z * tf.math.rsqrt(replicas.total(tf.reduce_sum(w * tf.square(z), 0)) / n + 1e-5)

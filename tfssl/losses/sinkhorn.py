"""Codes of equal use: the Sinkhorn-Knopp iterations of SwAV."""

from __future__ import annotations

import tensorflow as tf

from tfssl.losses import replicas
from tfssl.precision import at_least_float32


def sinkhorn(
    scores: tf.Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    active: tf.Tensor | None = None,
    own: int | None = None,
) -> tf.Tensor:
    """Assigns rows to prototypes so that all prototypes are used alike (Caron et al., arXiv
    2006.09882, Section 3.1).

    The rows of all replicas are assigned together; no gradient flows.

    Args:
      scores: [N, K] similarities of this replica's rows to the K prototypes; float32 at least.
      epsilon: smoothness; the larger, the more uniform the codes.
      iterations: how often prototypes, then rows, are normalized in turn; rows last, so that these
        sum to 1.
      active: bool [N]: rows that are False take no part (their codes are 0). So a queue can be
        empty at first, in one compiled step.
      own: how many of the first rows are wanted; all by default.

    Returns:
      [own, K] codes, each row (if active) a distribution over prototypes.
    """
    scores = tf.stop_gradient(at_least_float32(scores)) / epsilon
    # A common shift changes nothing in the end and keeps the exponential finite.
    largest = tf.reduce_max(
        scores if active is None else tf.where(active[:, None], scores, scores.dtype.min)
    )
    codes = tf.exp(scores - _largest(largest))
    if active is not None:
        codes = tf.where(active[:, None], codes, tf.zeros_like(codes))
    for _ in range(iterations):
        used = _sum(tf.reduce_sum(codes, 0))  # K
        codes = tf.math.divide_no_nan(codes, used)
        codes = tf.math.divide_no_nan(codes, tf.reduce_sum(codes, 1, keepdims=True))
    return codes[:own]


def _sum(x: tf.Tensor) -> tf.Tensor:
    if replicas.count() == 1:
        return x
    return tf.distribute.get_replica_context().all_reduce("SUM", x)


def _largest(x: tf.Tensor) -> tf.Tensor:
    """Over all replicas; of a scalar, by gathering, since a maximum is no reduction that every
    strategy offers."""
    return tf.reduce_max(replicas.gather(x[None]))

"""Losses that tell an image's own embedding from those of others. All compute in float32 at least,
and give one value per row.

Embeddings need not be normalized, for directions are compared; negatives of earlier steps are
expected to be, for they are many.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfssl.losses import replicas
from tfssl.precision import at_least_float32


class Contrast(NamedTuple):
    """Per row: the cross-entropy of telling the positive among all candidates, and whether it
    scored highest (0 or 1)."""

    loss: tf.Tensor
    accuracy: tf.Tensor


NEVER = -1e9  # a logit that takes no part in a softmax


def l2_normalize(x: tf.Tensor) -> tf.Tensor:
    """L2 norm 1 along the last axis, in float32 at least: [..., D]."""
    return tf.math.l2_normalize(at_least_float32(x), -1)


def nt_xent(
    z1: tf.Tensor,
    z2: tf.Tensor,
    temperature: float = 0.1,
    valid: tf.Tensor | None = None,
    keys: tf.Tensor | None = None,
    negatives: tf.Tensor | None = None,
    decoupled: bool = False,
    labels: tf.Tensor | None = None,
    groups: tf.Tensor | None = None,
) -> Contrast:
    """Normalized temperature-scaled cross-entropy, among the views of all replicas (Chen et al.,
    arXiv 2002.05709, Equation 1).

    Args:
      z1, z2: embeddings of two views of the same N images, [N, D]; each view's candidates are the 2
        * N * replicas - 1 others.
      temperature: what cosines are divided by.
      valid: bool [N]; rows that are False are nobody's candidates. All by default.
      keys: the views as candidates, [N, 2, D]: projections of the target network. z1 and z2
        themselves by default.
      negatives: [K, D] further candidates, of norm 1, such as a queue of earlier keys.
      decoupled: the positive is no part of the sum that it is compared with (Yeh et al., arXiv
        2110.06848, Equation 6): the loss may be negative, and small batches learn more.
      labels: int [N]; the positives are all views of images with the same label, and the loss is
        the mean over them (Khosla et al., arXiv 2004.11362, Equation 2). An image whose label is
        negative has its own other view alone.
      groups: int [N]; images of one number, such as frames of a sequence, are not each other's
        negatives; where `labels` are given, they are positives if these are the same.

    Returns:
      `Contrast`, each [N]: the mean over an image's two views. The paper's loss is the mean over
      the images.
    """
    rows = z1.shape[0]
    local = tf.stack([l2_normalize(z1), l2_normalize(z2)], 1)  # Nx2xD
    everyone = replicas.gather(local if keys is None else l2_normalize(keys))
    everyone = tf.reshape(
        everyone, [-1, local.shape[-1]]
    )  # 2RNxD, the two views of an image side by side
    local = tf.reshape(local, [2 * rows, -1])
    logits = tf.matmul(local, everyone, transpose_b=True)  # 2Nx2RN
    me = 2 * replicas.first_row(rows) + tf.range(2 * rows)
    other = me + 1 - 2 * (tf.range(2 * rows) % 2)
    candidates = tf.range(logits.shape[1])
    excluded = candidates == me[:, None]
    if valid is not None:
        excluded |= tf.repeat(replicas.gather(tf.cast(valid, tf.int32)), 2) == 0
    named = tf.zeros_like(logits, tf.bool)  # 2Nx2RN: whose labels are the same
    if labels is not None:
        theirs = tf.repeat(replicas.gather(tf.cast(labels, tf.int32)), 2)  # 2RN
        own = tf.repeat(tf.cast(labels, tf.int32), 2)[:, None]
        named = (own == theirs) & (own >= 0)
    if groups is not None:
        alike = tf.repeat(_same(groups), 2, 0)  # 2NxRN
        excluded |= tf.repeat(alike, 2, 1) & (candidates != other[:, None]) & ~named
    logits = tf.where(excluded, tf.cast(NEVER, logits.dtype), logits / temperature)
    if negatives is not None:
        logits = tf.concat(
            [logits, tf.matmul(local, negatives, transpose_b=True) / temperature], 1
        )  # 2Nx(2RN+K)
    if labels is None and not decoupled:
        found = classify(logits, other)
    else:
        positive = tf.range(logits.shape[1]) == other[:, None]
        if labels is not None:
            named &= ~excluded
            positive |= tf.pad(named, [[0, 0], [0, logits.shape[1] - named.shape[1]]])
        found = _among(logits, positive, decoupled)
    return Contrast(*(tf.reduce_mean(tf.reshape(value, [rows, 2]), 1) for value in found))


def _same(groups: tf.Tensor) -> tf.Tensor:
    """bool [N, R * N]: whether images of this replica and of all have the same number."""
    groups = tf.cast(groups, tf.int32)
    return groups[:, None] == replicas.gather(groups)


def _among(logits: tf.Tensor, positive: tf.Tensor, decoupled: bool) -> Contrast:
    """`Contrast` of logits [N, K] with the positives, bool [N, K], at least one in each row: the
    mean of their cross-entropies."""
    others = tf.where(positive, tf.cast(NEVER, logits.dtype), logits) if decoupled else logits
    share = tf.cast(positive, logits.dtype)
    share /= tf.reduce_sum(share, 1, keepdims=True)
    loss = tf.reduce_logsumexp(others, 1) - tf.reduce_sum(share * logits, 1)
    right = tf.gather(positive, tf.argmax(logits, 1), axis=1, batch_dims=1)
    return Contrast(loss, tf.cast(right, logits.dtype))


def in_batch(
    queries: tf.Tensor,
    keys: tf.Tensor,
    temperature: float = 0.1,
    valid: tf.Tensor | None = None,
    groups: tf.Tensor | None = None,
) -> Contrast:
    """Each query's own key among the keys of all replicas' images (NNCLR, MoCo v3).

    Args:
      queries, keys: [N, D]; row i of one belongs to row i of the other.
      temperature: what cosines are divided by.
      valid: bool [N]; rows that are False are nobody's candidates. All by default.
      groups: see `nt_xent`.

    Returns:
      `Contrast`, each [N].
    """
    rows = queries.shape[0]
    own = replicas.first_row(rows) + tf.range(rows)
    logits = (
        tf.matmul(l2_normalize(queries), replicas.gather(l2_normalize(keys)), transpose_b=True)
        / temperature
    )  # NxRN
    if valid is not None:
        candidate = replicas.gather(tf.cast(valid, tf.int32)) > 0
        logits = tf.where(candidate, logits, tf.cast(NEVER, logits.dtype))
    if groups is not None:
        others = _same(groups) & (tf.range(logits.shape[1]) != own[:, None])
        logits = tf.where(others, tf.cast(NEVER, logits.dtype), logits)
    return classify(logits, own)


def nearest(z: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
    """The rows of `memory` [K, D], of norm 1, that have the largest cosines with the rows of z
    [N, D]: [N, D], without gradient."""
    similarity = tf.matmul(l2_normalize(z), memory, transpose_b=True)
    return tf.stop_gradient(tf.gather(memory, tf.argmax(similarity, 1)))


def info_nce(
    queries: tf.Tensor, keys: tf.Tensor, negatives: tf.Tensor, temperature: float = 0.07
) -> Contrast:
    """Each query's own key among negatives that all share (van den Oord et al., arXiv 1807.03748;
    He et al., arXiv 1911.05722).

    Args:
      queries, keys: [N, D]; row i of one belongs to row i of the other.
      negatives: [K, D] of norm 1, such as a queue of earlier keys.
      temperature: what cosines are divided by.

    Returns:
      `Contrast`, each [N].
    """
    queries, keys = l2_normalize(queries), l2_normalize(keys)
    own = tf.reduce_sum(queries * keys, 1, keepdims=True)  # Nx1
    logits = (
        tf.concat([own, tf.matmul(queries, negatives, transpose_b=True)], 1) / temperature
    )  # Nx(1+K)
    return classify(logits, tf.zeros([logits.shape[0]], tf.int32))


def nce(
    positive: tf.Tensor, negative: tf.Tensor, noise: tf.Tensor | float, constant: tf.Tensor | float
) -> Contrast:
    """Noise-contrastive estimation with uniform noise (Gutmann and Hyvarinen; Wu et al., arXiv
    1805.01978, Equations 4 to 7).

    Args:
      positive: [N] scores (cosine / temperature) of each row's own entry.
      negative: [N, K] scores of K entries drawn from the noise.
      noise: K times the probability of each entry under the noise: K / entries.
      constant: the normalization Z, an estimate of the sum of exp(score) over all entries.

    Returns:
      `Contrast`, each [N]: the loss of N * (1 + K) two-way decisions, summed over the 1 + K of a
      row.
    """
    log_noise = tf.math.log(tf.cast(noise * constant, positive.dtype))
    loss = tf.nn.softplus(log_noise - positive) + tf.reduce_sum(
        tf.nn.softplus(negative - log_noise), 1
    )
    highest = tf.reduce_max(negative, 1) - 1e-6  # the noise may have drawn the positive itself
    return Contrast(loss, tf.cast(positive >= highest, loss.dtype))


def cosine_distance(predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Squared distance of the directions, 2 - 2 cos, of rows [N, D]: [N], from 0 to 4; no gradient
    flows to `targets` (Grill et al., arXiv 2006.07733, Equation 2)."""
    return 2 - 2 * tf.reduce_sum(
        l2_normalize(predictions) * l2_normalize(tf.stop_gradient(targets)), 1
    )


def embedding_std(z: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Standard deviation of the features of directions z [N, D] over all replicas' rows, times
    sqrt(D): near 1 where they are spread over the sphere, 0 where they have collapsed into one
    point (Chen and He, arXiv 2011.10566, Section 4.1). Rows of `weight` [N] 0 are left out. A
    scalar."""
    z = tf.stop_gradient(l2_normalize(z))
    weight = tf.cast(weight[:, None], z.dtype)  # Nx1

    def mean(x: tf.Tensor) -> tf.Tensor:
        return replicas.mean(tf.reduce_mean(weight * x, 0)) / replicas.mean(
            tf.reduce_mean(weight, 0)
        )

    return tf.reduce_mean(tf.sqrt(mean(tf.square(z - mean(z))))) * z.shape[1] ** 0.5


def classify(logits: tf.Tensor, labels: tf.Tensor) -> Contrast:
    """`Contrast` of logits [N, K] whose right column is `labels` [N]."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = tf.equal(tf.argmax(logits, 1, tf.int32), labels)
    return Contrast(loss, tf.cast(right, logits.dtype))

"""The triplet loss with semi-hard negatives: Schroff et al., "FaceNet", CVPR 2015, section 3.2,
over all positive pairs of a batch."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfssl.precision import at_least_float32


class Triplets(NamedTuple):
    """What became of each anchor, four times [n], in the precision of the distances."""

    loss: tf.Tensor  # summed over the anchor's positives
    pairs: tf.Tensor  # number of its positives
    losing: tf.Tensor  # number of those whose term is above zero
    auc: (
        tf.Tensor
    )  # share of (positive, negative) with the positive strictly nearer; 0 where there are none


def triplet_semihard(labels: tf.Tensor, embeddings: tf.Tensor, margin: float = 0.5) -> tf.Tensor:
    """The mean of max(0, margin + D(a,p) - D(a,n)) over all ordered pairs (a, p) of one label; D is
    the squared Euclidean distance.

    The negative n is the nearest of another label with D(a,n) > D(a,p); where there is none, the
    farthest. Value and gradient are those of
    `tensorflow_addons.losses.triplet_semihard_loss(distance_metric="squared-L2")`, in memory O(B^2)
    and time O(B^2 log B).

    Args:
      labels: integers [B].
      embeddings: [B, D], of L2 norm 1 as a rule.
      margin: in squared distance (0.5 in Kolesnikov et al., CVPR 2019).

    Returns:
      A scalar, in float32 at least; 0, with a gradient of 0, for a batch of one label or without
      any pair.
    """
    triplets = semihard_triplets(labels, embeddings, margin)
    return tf.math.divide_no_nan(tf.reduce_sum(triplets.loss), tf.reduce_sum(triplets.pairs))


def semihard_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    margin: float = 0.5,
    anchors: tf.Tensor | None = None,
    valid: tf.Tensor | None = None,
) -> Triplets:
    """The same, anchor by anchor.

    Args:
      labels: integers [B].
      embeddings: [B, D].
      margin: in squared distance.
      anchors: int32 [n], the rows that are anchors, e.g. those of one replica among the rows of
        all; None takes each.
      valid: bool [B], which rows take part; None lets all. An anchor that does not still gets a
        (meaningless) value.

    Returns:
      `Triplets`.
    """
    embeddings = at_least_float32(embeddings)  # BxD
    everyone = tf.range(embeddings.shape[0])
    anchors = everyone if anchors is None else anchors
    same = tf.gather(labels, anchors)[:, None] == labels  # nxB
    taking_part = tf.ones_like(same) if valid is None else tf.ones_like(same) & valid
    positive = taking_part & same & (anchors[:, None] != everyone)  # nxB
    negative = taking_part & ~same  # nxB

    # What is neither lies at distance zero: the last that is ever taken for a negative, and then
    # for one at the same distance.
    distances = _squared_distances(tf.gather(embeddings, anchors), embeddings)
    distances = tf.where(positive | negative, distances, tf.zeros_like(distances))  # nxB
    weights, auc = _choose(tf.stop_gradient(distances), positive, negative, margin)  # nxB

    # With the triplets chosen, the loss is linear in the distances.
    losing = tf.reduce_sum(tf.nn.relu(weights), 1)
    loss = tf.reduce_sum(weights * distances, 1) + margin * losing
    return Triplets(loss, _count(positive, loss.dtype), losing, auc)  # n


def _squared_distances(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """[n, D] and [m, D] -> [n, m]. Its gradient is finite everywhere."""
    squares = tf.reduce_sum(x * x, 1)[:, None] + tf.reduce_sum(y * y, 1)
    distances = squares - 2 * tf.matmul(x, y, transpose_b=True)
    return tf.where(distances <= 0, tf.zeros_like(distances), distances)  # rounding; a NaN stays


def _choose(
    distances: tf.Tensor, positive: tf.Tensor, negative: tf.Tensor, margin: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Which distances make the loss, and how often: +1 for the positive of a pair that loses, -1
    for its negative.

    One sort per row merges positives and negatives; the negative of a positive is then the last one
    before it.

    Returns:
      The weights [n, m]; and [n], the share of (positive, negative) in which the positive is
      strictly nearer.
    """
    columns = distances.shape[1]
    places = tf.range(columns)
    # Bits of floats that are not negative sort as the floats do, which leaves the lowest bit of a
    # key for telling the two kinds apart. At equal distance the positive is first, so that the
    # negative before it is strictly farther.
    integer = tf.int32 if distances.dtype.size == 4 else tf.int64
    half = tf.constant(1 << (8 * integer.size - 2), integer)
    keys = 2 * (tf.bitcast(distances, integer) - half) + tf.cast(positive, integer)
    keys, order = tf.math.top_k(keys, columns)  # farthest first
    odd = tf.bitwise.bitwise_and(keys, 1)
    distances = tf.bitcast(tf.bitwise.right_shift(keys, 1) + half, distances.dtype)
    is_positive = odd > 0

    # The place of the last negative so far; before the first one, the place of that, which is the
    # farthest.
    first = tf.reduce_min(tf.where(is_positive, columns - 1, places), 1, keepdims=True)  # nx1
    chosen = tf.maximum(_running_max(tf.where(is_positive, 0, places)), first)  # nxm
    wins = margin + distances <= tf.gather(distances, chosen, batch_dims=1)  # a NaN does not
    loses = is_positive & tf.reduce_any(negative, 1, keepdims=True) & ~wins
    loses = tf.cast(loses, distances.dtype)
    weights = _add_at(order, loses - _add_at(chosen, loses))

    # Mann and Whitney's statistic: of the places before a positive, those that do not hold another
    # positive hold a negative.
    pairs, others = _count(positive, distances.dtype), _count(negative, distances.dtype)
    nearer = (
        tf.reduce_sum(tf.where(is_positive, tf.cast(places, distances.dtype), 0), 1)
        - pairs * (pairs - 1) / 2
    )
    return weights, tf.math.divide_no_nan(nearer, pairs * others)


def _running_max(x: tf.Tensor) -> tf.Tensor:
    """Along the rows of [n, m], in log2(m) steps: compiled for a CPU, XLA's own cumulative
    operations take m^2."""
    step = 1
    while step < x.shape[1]:
        x = tf.maximum(x, tf.pad(x[:, :-step], [[0, 0], [step, 0]]))
        step *= 2
    return x


def _add_at(columns: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[n, m]: within each row, the sums of the values [n, m] that have the same column number
    [n, m]."""
    rows, size = values.shape
    flat = columns + size * tf.range(rows)[:, None]
    total = tf.math.unsorted_segment_sum(
        tf.reshape(values, [-1]), tf.reshape(flat, [-1]), rows * size
    )
    return tf.reshape(total, [rows, size])


def _count(mask: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, dtype), 1)

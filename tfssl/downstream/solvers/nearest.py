"""Nearest neighbors by cosine similarity, exact and in blocks. Ties go to the earlier row; ties in
votes to the lower class.

The replicas of a strategy share the queries, and compare each with all rows.
"""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tfssl.downstream.solvers.shares import Replicas
from tfssl.storage import mapped

# rows of a part of the queries and, at most, of a block of the training rows: 128 MB of
# similarities in float32; and values of features in either of them, at most: another 128 MB
_QUERIES, _BANK, _VALUES = 512, 65536, 1 << 25
# bytes of normalized queries that stay in memory; more are normalized again for each block
_RESIDENT = 1 << 30


def vote(
    features: np.ndarray,
    labels: np.ndarray,
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    temperature: float,
    chosen: Optional[np.ndarray] = None,
    replicas: Optional[Replicas] = None,
) -> np.ndarray:
    """The class of each query, by a vote of its nearest neighbors, weighted by exp(similarity /
    temperature).

    Args:
      features: float [N, D] of the training images, of any norm.
      labels: int [N].
      bank: int [n], the rows of `features` that vote.
      queries: float [M, D], of any norm.
      k: neighbors, at most n.
      temperature: of the votes.
      chosen: int [m], those rows of `queries` that are asked about; None: all, m = M.
      replicas: who shares them; None: one device.

    Memory: blocks, and what is returned; features and queries may be memory-mapped.

    Returns:
      int [m].
    """
    similarity, position = nearest(features, bank, queries, k, chosen, replicas)
    voters = labels[bank][position]  # MxK
    # relative to the nearest: no overflow
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    predicted = np.zeros(len(voters), int)
    for low in range(0, len(voters), _BANK):
        part = slice(low, low + _BANK)
        votes = np.zeros((len(voters[part]), int(labels.max()) + 1))
        for column in range(k):
            votes[np.arange(len(votes)), voters[part, column]] += weights[part, column]
        predicted[part] = votes.argmax(1)
    return predicted


def nearest(
    features: np.ndarray,
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    chosen: Optional[np.ndarray] = None,
    replicas: Optional[Replicas] = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of highest cosine similarity for each query; arguments as for `vote`.

    Returns:
      (float [m, k], similarities, highest first; int [m, k], positions in `bank`).
    """
    chosen = np.arange(len(queries)) if chosen is None else chosen
    replicas = replicas or Replicas()
    dims = features.shape[1]
    rows = min(_BANK, max(_VALUES // dims, 1))
    share = max(min(_QUERIES * _BANK // rows, _VALUES // dims), 1)
    share = max(min(share, -(-len(chosen) // replicas.count)), 1)  # queries of a replica
    step = share * replicas.count
    parts = [chosen[i : i + step] for i in range(0, len(chosen), step)]

    def shared(part: np.ndarray) -> Any:
        x = replicas.share(queries[part], size=share)
        mapped.release(queries)
        return replicas.map(_unit, x)

    units: Sequence[Any] = [None] * len(parts)
    if len(chosen) * dims * max(queries.dtype.itemsize, 4) <= _RESIDENT:
        units = [shared(part) for part in parts]
    none = np.float64 if features.dtype == np.float64 else np.float32, np.int32
    best = [
        [replicas.share(np.zeros((len(part), 0), dtype), size=share) for dtype in none]
        for part in parts
    ]

    def compare(*arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        *others, low = arguments
        return _nearest(*others, tf.constant(k), low)  # to a graph of replicas a constant

    for low in range(0, len(bank), rows):
        block = _unit(tf.constant(features[bank[low : low + rows]]))  # BxD
        mapped.release(features)
        best = [
            replicas.map(
                compare, shared(part) if unit is None else unit, block, *found, tf.constant(low)
            )
            for part, unit, found in zip(parts, units, best)
        ]
    similarity, position = (
        np.concatenate(
            [replicas.joined(found[j], len(part)) for found, part in zip(best, parts)]
            or [np.zeros((0, k))]
        )
        for j in (0, 1)
    )
    return similarity.astype(np.float64), position.astype(int)


def _unit(x: tf.Tensor) -> tf.Tensor:
    """L2-normalized rows, at least float32; a row of zeros stays zero."""
    x = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    # or the squares might overflow
    x = tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), 1, keepdims=True))
    return tf.math.divide_no_nan(x, tf.norm(x, axis=1, keepdims=True))


@tf.function(reduce_retracing=True, autograph=False)
def _nearest(
    queries: tf.Tensor,
    block: tf.Tensor,
    similarity: tf.Tensor,
    position: tf.Tensor,
    k: tf.Tensor,
    low: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The nearest k so far, (similarities, positions) QxK, after a block that begins at `low`."""
    found = tf.linalg.matmul(queries, tf.cast(block, queries.dtype), transpose_b=True)  # QxB
    # Among equals the lower index comes first: that of the earlier row, here and within `found`.
    found, index = tf.math.top_k(found, tf.minimum(k, tf.shape(block)[0]))
    similarity = tf.concat([similarity, tf.cast(found, similarity.dtype)], 1)
    position = tf.concat([position, low + index], 1)
    similarity, order = tf.math.top_k(similarity, tf.minimum(k, tf.shape(similarity)[1]))
    return similarity, tf.gather(position, order, batch_dims=1)

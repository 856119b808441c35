"""Nearest neighbors by cosine similarity, exact and in blocks. Ties go to the earlier row; ties in
votes to the lower class."""

import numpy as np
import tensorflow as tf

# test and training rows of one block of similarities: 128 MB of float32
_QUERIES, _BANK = 512, 65536


def vote(
    features: np.ndarray,
    labels: np.ndarray,
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    temperature: float,
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

    Returns:
      int [M].
    """
    similarity, position = nearest(features, bank, queries, k)
    voters = labels[bank][position]  # MxK
    # relative to the nearest: no overflow
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(queries), int(labels.max()) + 1))
    for column in range(k):
        votes[np.arange(len(queries)), voters[:, column]] += weights[:, column]
    return votes.argmax(1)


def nearest(
    features: np.ndarray, bank: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of highest cosine similarity for each query; arguments as for `vote`.

    Returns:
      (float [M, k], similarities, highest first; int [M, k], positions in `bank`).
    """
    best = np.zeros((len(queries), 0)), np.zeros((len(queries), 0), int)
    for low in range(0, len(bank), _BANK):
        block = _unit(features[bank[low : low + _BANK]])  # BxD
        parts = [
            _nearest(_unit(queries[i : i + _QUERIES]), block, tf.constant(min(k, len(block))))
            for i in range(0, len(queries), _QUERIES)
        ]
        similarity, position = (np.concatenate([p[j].numpy() for p in parts]) for j in range(2))
        # Earlier blocks stand first and the sort is stable: among equals the earlier row wins, as
        # within a block.
        similarity, position = (
            np.concatenate([best[0], similarity], 1),
            np.concatenate([best[1], position + low], 1),
        )
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(similarity, order, 1), np.take_along_axis(position, order, 1)
    return best


def _unit(x: np.ndarray) -> tf.Tensor:
    """L2-normalized rows, at least float32; a row of zeros stays zero."""
    x = tf.constant(x if x.dtype == np.float64 else x.astype(np.float32))
    # or the squares might overflow
    x = tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), 1, keepdims=True))
    return tf.math.divide_no_nan(x, tf.norm(x, axis=1, keepdims=True))


@tf.function(reduce_retracing=True, autograph=False)
def _nearest(queries: tf.Tensor, block: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    similarity = tf.linalg.matmul(queries, block, transpose_b=True)  # QxB
    return tf.math.top_k(similarity, k)  # among equals the lower index comes first

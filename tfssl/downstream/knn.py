"""Weighted nearest neighbours on frozen features, by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

A test image's k nearest training images vote for their classes with weight exp(similarity / temperature). k = 20 and
temperature = 0.07 are solo-learn's and DINO's settings; lightly's CIFAR-10 tables use 200 and 0.1. Ties in similarity
go to the earlier training row, ties in votes to the lower class.
"""

import time

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.downstream import splits
from tfssl.errors import UserError

_QUERIES, _BANK = 512, 65536  # test and training rows of one block of similarities: 128 MB of float32


def run(train, test, val=None, endpoints=None, k=20, temperature=0.07, train_labels="all", val_fraction=0.2, seed=0):
    """Test accuracy of nearest neighbours on each endpoint.

    Args:
      train, test: `Features`; the training rows are the neighbours.
      val: `Features` of a validation split for "val_value"; None: a part of `train`.
      endpoints: names; all by default.
      k: neighbours. If there are fewer training rows, all of them vote; a notice says so, and the result has the k that
        was used.
      temperature: above 0; small: the nearest decides, large: all k count alike.
      train_labels, val_fraction, seed: which rows are the neighbours; see `splits`. The validation part only gives
        "val_value", from the remaining training rows.

    Returns:
      a list of results.
    """
    check(k, temperature)
    part = splits.split(train, test, train_labels, val_fraction, seed, val)
    if k > len(part.rows):
        logging.warning("k=%d is more than there are training images: all %d vote", k, len(part.rows))
        k = len(part.rows)
    results = []
    for endpoint in splits.endpoints([train, test, val], endpoints):
        start, features, held = time.time(), train.endpoints[endpoint], part.held.endpoints[endpoint]

        def accuracy(bank, queries, labels, features=features):
            predicted = classify(features, train.labels, bank, queries, min(k, len(bank)), temperature)
            return float(np.mean(predicted == labels))

        results.append(
            {
                "protocol": "knn",
                "endpoint": endpoint,
                "metric": "accuracy",
                "value": accuracy(part.rows, test.endpoints[endpoint], test.labels),
                "val_value": accuracy(part.fit, held[part.val], part.held.labels[part.val]) if len(part.val) else None,
                "train_labels": len(part.rows),
                "features": features.shape[1],
                "k": k,
                "temperature": temperature,
                "seconds": time.time() - start,
            }
        )
    return results


def check(k, temperature):
    """Raise UserError unless k >= 1 and temperature > 0."""
    if k < 1:
        raise UserError(f"k={k}: give a number of neighbours, at least 1")
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: give a number above 0")


def classify(features, labels, bank, queries, k, temperature):
    """The class of each query.

    Args:
      features: float [N, D] of the training images, of any length; [M, D] queries likewise.
      labels: int [N].
      bank: int [n], the rows of `features` that may vote.
      queries: float [M, D].
      k: neighbours, at most n.
      temperature: of the votes.

    Returns:
      int [M].
    """
    similarity, place = nearest(features, bank, queries, k)
    voters = labels[bank][place]  # MxK
    weights = np.exp((similarity - similarity[:, :1]) / temperature)  # relative to the nearest: no overflow
    votes = np.zeros((len(queries), int(labels.max()) + 1))
    for column in range(k):
        votes[np.arange(len(queries)), voters[:, column]] += weights[:, column]
    return votes.argmax(1)


def nearest(features, bank, queries, k):
    """The k rows of highest cosine similarity for each query; arguments as for `classify`.

    Returns:
      (float [M, k], similarities, the highest first; int [M, k], places in `bank`).
    """
    found = np.zeros((len(queries), 0)), np.zeros((len(queries), 0), int)
    for low in range(0, len(bank), _BANK):
        block = _unit(features[bank[low : low + _BANK]])  # BxD
        parts = [
            _nearest(_unit(queries[i : i + _QUERIES]), block, tf.constant(min(k, len(block))))
            for i in range(0, len(queries), _QUERIES)
        ]
        similarity, place = (np.concatenate([p[j].numpy() for p in parts]) for j in range(2))
        # Earlier blocks stand first and the sort is stable: among equals the earlier row wins, as within a block.
        similarity, place = np.concatenate([found[0], similarity], 1), np.concatenate([found[1], place + low], 1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(similarity, order, 1), np.take_along_axis(place, order, 1)
    return found


def _unit(x):
    """Rows scaled to length 1, at least float32; a row of zeros stays one, equally far from all."""
    x = tf.constant(x if x.dtype == np.float64 else x.astype(np.float32))
    x = tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), 1, keepdims=True))  # or the squares might leave the range
    return tf.math.divide_no_nan(x, tf.norm(x, axis=1, keepdims=True))


@tf.function(reduce_retracing=True, autograph=False)
def _nearest(queries, block, k):
    similarity = tf.linalg.matmul(queries, block, transpose_b=True)  # QxB
    return tf.math.top_k(similarity, k)  # among equals the lower index comes first

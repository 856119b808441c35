"""Weighted nearest neighbours on frozen features, by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

A test image's k nearest training images vote for their classes with weight exp(similarity / temperature). k = 20 and
temperature = 0.07 are solo-learn's and DINO's settings; lightly's CIFAR-10 tables use 200 and 0.1. Ties in similarity
go to the earlier training row, ties in votes to the lower class.
"""

import time

import numpy as np
from absl import logging

from tfssl.downstream import splits
from tfssl.downstream.solvers import nearest
from tfssl.errors import UserError


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
            predicted = nearest.vote(features, train.labels, bank, queries, min(k, len(bank)), temperature)
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

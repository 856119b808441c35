"""Weighted nearest neighbors on frozen features, by cosine similarity (Wu et al. 2018, arXiv
1805.01978, section 3.4).

A test image's k nearest training images vote for their classes with weight exp(similarity /
temperature). Ties in similarity go to the earlier training row, ties in votes to the lower class.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np
from absl import logging

from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.downstream.solvers import nearest
from tfssl.downstream.solvers.shares import Replicas
from tfssl.errors import UserError


class KNN(Protocol[Features]):
    """k nearest neighbors: cosine similarity, votes weighted by exp(similarity / temperature).

    The validation part only gives `val_value`, from the remaining training rows. Where there are
    fewer training rows than k, all of them vote; a notice says so, and the result has the k that
    was used.

    Args:
      k: Neighbors (solo-learn, DINO: 20; lightly's CIFAR-10 tables: 200).
      temperature: Softmax temperature of the votes, above 0: small, the nearest decides; large, all
        k count alike (solo-learn, DINO: 0.07; lightly's CIFAR-10 tables: 0.1).
    """

    name = "knn"
    flag_prefix = "knn_"
    exact = True  # to tell neighbors apart
    expense = 1
    quick = {"train_labels": 1000}

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        if k < 1:
            raise UserError(f"k={k}: give a number of neighbors, at least 1")
        if not temperature > 0:
            raise UserError(f"temperature={temperature}: give a number above 0")
        self.k, self.temperature = k, temperature

    def work(self, train: int, test: int, dims: int) -> float:
        return train * test * dims

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        part, train, test, k = data.split(), data.train, data.test, self.k
        if k > len(part.rows):
            logging.warning(
                "k=%d is more than there are training images: all %d vote", k, len(part.rows)
            )
            k = len(part.rows)
        replicas = Replicas(train.strategy)
        for endpoint in endpoints:
            start, features, held = (
                time.time(),
                train.endpoints[endpoint],
                part.held.endpoints[endpoint],
            )

            def accuracy(
                bank: np.ndarray,
                queries: np.ndarray,
                labels: np.ndarray,
                chosen: Optional[np.ndarray] = None,
                features: np.ndarray = features,
            ) -> float:
                neighbors = min(k, len(bank))
                votes = nearest.vote(
                    features,
                    train.labels,
                    bank,
                    queries,
                    neighbors,
                    self.temperature,
                    chosen,
                    replicas,
                )
                return float(np.mean(votes == labels))

            yield Result(
                protocol=self.name,
                endpoint=endpoint,
                metric=self.metric,
                value=accuracy(part.rows, test.endpoints[endpoint], test.labels),
                val_value=accuracy(part.fit, held, part.held.labels[part.val], part.val)
                if len(part.val)
                else None,
                train_labels=len(part.rows),
                details={"features": features.shape[1], "k": k, "temperature": self.temperature},
                seconds=time.time() - start,
            )

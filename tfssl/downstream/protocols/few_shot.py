"""Few-shot episodes: N-way k-shot classification by ridge regression in closed form (Bertinetto et
al. 2019, arXiv 1805.08136, use it within training; here it is an evaluation only).

An episode has some classes, k training images of each as the support set, and test images of these
classes as queries. The classifier is W, b minimizing sum_i ||W x_i + b - y_i||^2 + ridge * ||W||^2
for one-hot y_i; it predicts the class with the largest output. One singular value decomposition of
the centered features gives the solution for all ridges. Accuracy is averaged over episodes; its 95
% interval is 1.96 standard errors of that mean.

Features are L2-normalized. The ridge is chosen by accuracy on episodes whose queries are validation
images.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Union

import numpy as np
from threadpoolctl import threadpool_limits

from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.protocols.low_shot import check as check_shots
from tfssl.downstream.protocols.svm import unit
from tfssl.downstream.results import Result
from tfssl.downstream.solvers.lbfgs import in_chunks
from tfssl.errors import UserError
from tfssl.storage import mapped


class FewShot(Protocol[Features]):
    """Few-shot episodes: ridge regression on k images of each of a few classes, by accuracy.

    `value` is the mean accuracy over the episodes, "interval" half the width of its 95 % interval.

    Args:
      shots: Training images of each class, k, a comma list with a column of the table each.
      ways: Classes in an episode; 0, or more than there are: all.
      queries: Test images of each class in an episode, at most as many as there are; 0: all.
      episodes: Random episodes whose mean is reported; ridges are compared on a sixth as many.
      ridges: Penalties of squared weights to choose from, on validation; a comma list.
    """

    name = "few_shot"
    flag_prefix = "few_shot_"
    flag_names = {"shots": "few_shot_k"}
    order_independent = False  # episodes draw rows
    expense = 4
    quick = {"episodes": 100}
    trials = {"episodes": 6, "shots": (1,)}, {"episodes": 30, "shots": (1,)}

    def __init__(
        self,
        shots: Sequence[int] = (1, 5),
        ways: int = 5,
        queries: int = 15,
        episodes: int = 600,
        ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
    ) -> None:
        self.shots, self.ridges = check_shots(shots), check_ridges(ridges)
        if ways < 0 or ways == 1 or queries < 0 or episodes < 1:
            raise UserError(
                f"ways={ways}, queries={queries}, episodes={episodes}: give 2 classes or more (0: "
                "all), 1 question to each or "
                "more (0: all), and 1 episode or more"
            )
        self.ways, self.queries, self.episodes = ways, queries, episodes

    def chooses(self) -> tuple[str, ...]:
        return ("ridges",) if len(self.ridges) > 1 else ()

    def passes(self) -> float:
        return self.episodes * len(self.shots)

    def work(self, train: int, test: int, dims: int) -> float:
        return dims  # the size of an episode is fixed

    def check(self, data: Data[Features]) -> None:
        self._prepare(data)

    def _prepare(self, data: Data[Features]) -> tuple[partition.Split, "Pool", "Pool", int]:
        """(rows; pool of the episodes on test; pool of those on validation; classes of an
        episode)."""
        train, test, part = data.train, data.test, data.split()
        classes = np.unique(train.labels[part.rows])
        learn, ask = (
            by_class(train, part.rows, classes),
            by_class(test, np.arange(len(test.labels)), classes),
        )
        try_on, ask_held = (
            by_class(train, part.fit, classes),
            by_class(part.held, part.val, classes),
        )
        usable = [c for c in range(len(classes)) if len(ask[c])]
        for c in usable:
            if min(len(learn[c]), len(try_on[c])) < max(self.shots):
                name = train.class_names[classes[c]] if train.class_names else classes[c]
                raise UserError(
                    f"shots={','.join(map(str, self.shots))}: class {name} has "
                    f"{min(len(learn[c]), len(try_on[c]))} images to "
                    f"learn from in {train.source}"
                )
        choosable = [c for c in usable if len(ask_held[c])]
        if len(choosable) < 2 and len(self.ridges) > 1:
            raise UserError(
                "few_shot: no validation images of two classes to choose the ridge on: give val, "
                "or one ridge"
            )
        ways = min(self.ways or len(usable), len(usable))
        if ways < 2:
            raise UserError(
                f"few_shot: {test.source} shows {ways} class that can be learned, and an episode "
                "has two or more"
            )
        return part, Pool(learn, ask, usable), Pool(try_on, ask_held, choosable), ways

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        part, on_test, held_out, ways = self._prepare(data)
        for endpoint in endpoints:
            start, features = time.time(), data.train.endpoints[endpoint]
            for k in self.shots:
                best, on_val = 0, None
                if len(held_out.classes) > 1:
                    few, fewer = max(1, self.episodes // 6), min(ways, len(held_out.classes))
                    drawn = Episodes(
                        held_out.classes, fewer, k, self.queries, few, (data.seed, 6, k)
                    )
                    held = part.held.endpoints[endpoint]
                    on_val = accuracies(
                        features, held_out.learn, held, held_out.ask, drawn, self.ridges
                    ).mean(0)
                    best = int(on_val.argmax())
                drawn = Episodes(
                    on_test.classes, ways, k, self.queries, self.episodes, (data.seed, 7, k)
                )
                ridge, queries = self.ridges[best], data.test.endpoints[endpoint]
                values = accuracies(features, on_test.learn, queries, on_test.ask, drawn, [ridge])[
                    :, 0
                ]
                yield Result(
                    protocol=self.name,
                    endpoint=endpoint,
                    metric=self.metric,
                    shots=k,
                    value=float(values.mean()),
                    val_value=None if on_val is None else float(on_val[best]),
                    train_labels=len(part.rows),
                    chance=1 / ways,
                    details={
                        "std": float(values.std()),
                        "interval": float(1.96 * values.std() / math.sqrt(len(values))),
                        "features": features.shape[1],
                        "ridge": ridge,
                        "ridges_tried": self.ridges,
                        "ways": ways,
                        "queries": self.queries,
                        "episodes": self.episodes,
                    },
                    seconds=time.time() - start,
                )


def check_ridges(ridges: Union[str, float, Sequence[float]]) -> list[float]:
    """The ridges as floats in increasing order; UserError for invalid ones."""
    try:
        given = [
            float(r)
            for r in (ridges.split(",") if isinstance(ridges, str) else np.atleast_1d(ridges))
        ]
    except (TypeError, ValueError):
        given = []
    if not given or not all(0 < r < math.inf for r in given):
        shown = ridges if isinstance(ridges, str) else ",".join(map(str, np.atleast_1d(ridges)))
        raise UserError(f"ridges={shown}: give numbers above 0, such as 0.01,1,100")
    return sorted(set(given))


class Pool(NamedTuple):
    """Images that episodes draw from.

    Attributes:
      learn, ask: for each class, int [n], rows of the training images and of the queries.
      classes: numbers of the classes that episodes draw from.
    """

    learn: list[np.ndarray]
    ask: list[np.ndarray]
    classes: list[int]


@dataclasses.dataclass
class Episodes:
    """Episodes: `ways` of the classes, `shots` images to learn and at most `queries` of each."""

    classes: list[int]
    ways: int
    shots: int
    queries: int
    episodes: int
    seed: tuple[int, ...]


def by_class(features: Features, rows: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """For each class, int [n]: the rows of that class."""
    return [rows[features.labels[rows] == c] for c in classes]


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products: more threads only wait
def accuracies(
    features: np.ndarray,
    learn: list[np.ndarray],
    query_features: np.ndarray,
    ask: list[np.ndarray],
    drawn: Episodes,
    ridges: Sequence[float],
) -> np.ndarray:
    """Accuracy for each episode and ridge: float64 [episodes, ridges].

    Args:
      features: [N, D], perhaps memory-mapped; learn: for each class the rows of its training
        images.
      query_features, ask: the same of the queries.

    Memory: the features of an episode's support, and of its queries by chunks.
    """
    correct = np.zeros((drawn.episodes, len(ridges)))
    for episode in range(drawn.episodes):
        rng = np.random.default_rng([*drawn.seed, episode])
        classes = rng.choice(drawn.classes, drawn.ways, replace=False)
        rows = [rng.choice(learn[c], drawn.shots, replace=False) for c in classes]
        queries = [
            rng.choice(ask[c], min(drawn.queries or len(ask[c]), len(ask[c])), replace=False)
            for c in classes
        ]
        y = np.repeat(np.arange(drawn.ways), drawn.shots)
        truth = np.repeat(np.arange(drawn.ways), [len(q) for q in queries])
        support, asked = unit(features[np.concatenate(rows)]), np.concatenate(queries)
        outputs = ridge_regression(support, np.eye(drawn.ways)[y], ridges)
        for part in in_chunks(np.arange(len(asked)), features.shape[1]):
            predicted = outputs(unit(query_features[asked[part]])).argmax(2)
            correct[episode] += (predicted == truth[part]).sum(1)
        correct[episode] /= len(asked)
        mapped.release(features)
        mapped.release(query_features)
    return correct


def ridge_regression(
    x: np.ndarray, y: np.ndarray, ridges: Sequence[float]
) -> Callable[[np.ndarray], np.ndarray]:
    """The function of queries [M, D] -> outputs [ridges, M, C] of W, b minimizing sum ||W x_i + b -
    y_i||^2 + ridge * ||W||^2.

    Args:
      x: [N, D]; y: [N, C].
    """
    center, offset = x.mean(0), y.mean(0)
    u, s, v = np.linalg.svd(x - center, full_matrices=False)
    inner = u.T @ (y - offset)

    def outputs(queries: np.ndarray) -> np.ndarray:
        outer = (queries - center) @ v.T
        return np.stack([(outer * (s / (s**2 + ridge))) @ inner + offset for ridge in ridges])

    return outputs

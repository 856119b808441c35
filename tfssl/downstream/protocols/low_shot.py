"""Low-shot classification by linear SVMs on k positives of each class (Goyal et al. 2019, arXiv
1905.01235).

For each k, five random samples with k positives of each class are drawn, and the SVMs of svm.py are
fitted to each; the result is mean and standard deviation over the samples. As published, the
negatives of a sample are (classes - 1) * k other images, drawn separately for each class where
images are multi-label (VOC07); with labels they are the k images of each other class (Places205).
Here draws come from a seed, and the sample of a smaller k lies within that of a larger one.

All classes and samples of a k share one C. As published (choose="test") it is the one with the best
mean on the test images, which is optimistic. By default it is the best on training images outside
of the sample: labels that are not available in a true low-shot setting, but independent of the test
images.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Optional, Union

import numpy as np

from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.metrics import average_precision
from tfssl.downstream.protocol import Data
from tfssl.downstream.protocols.svm import (
    Hinge,
    class_names,
    decide,
    in_groups,
    mean,
    signed,
    unit,
)
from tfssl.downstream.results import Result
from tfssl.downstream.solvers.squared_hinge import Rows
from tfssl.errors import UserError

_HELD = 10_000  # training images, at most, to choose C on


class LowShot(Hinge):
    """Low-shot SVMs on k positives of each class, for several k: mean average precision.

    `value` is the mean over random samples, with "std", "min" and "max"; `val_value` is the mean on
    validation.

    Args:
      shots: Positives of each class, k, a comma list with a column of the table each (Goyal et al.:
        1 to 96).
      samples: Random samples for each k; their mean is reported (Goyal et al.: 5).
      choose: Images to choose C on, one for all classes: the validation split, or else training
        images outside of the sample, at most 10,000; or the test images (Goyal et al.; optimistic).
    """

    name = "low_shot"
    flag_names = {"shots": "low_shot_k", "samples": "low_shot_samples", "choose": "low_shot_choose"}
    expense = 5
    per_class = True
    quick = {"samples": 2, "shots": (1, 4, 16, 64), "costs": "0.1,1,10,100"}
    trials = (
        {"samples": 1, "shots": (1,), "costs": "1"},
        {"samples": 1, "shots": (1,), "costs": "0.1,1,10"},
    )

    def __init__(
        self,
        shots: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 96),
        samples: int = 5,
        choose: Literal["validation", "test"] = "validation",
        **hinge: Any,
    ) -> None:
        super().__init__(**hinge)
        self.shots = check(shots, samples)
        if choose not in ("validation", "test"):
            raise UserError(
                f"choose={choose!r}: the cost is chosen on validation, or on test (as published; "
                "optimistic)"
            )
        self.samples, self.choose = samples, choose

    def passes(self) -> float:
        return self.samples * len(self.shots) * len(self.costs)

    def work(self, train: int, test: int, dims: int) -> float:
        return (min(train, _HELD) + test) * dims

    def check(self, data: Data[Features]) -> None:
        self._prepare(data)

    def _prepare(self, data: Data[Features]) -> partition.Targets:
        targets = data.one_vs_rest()
        of_train = targets.train[targets.rows]
        for name, positives in zip(
            class_names(data.train, of_train.shape[1]), (of_train > 0).sum(0)
        ):
            if positives < max(self.shots):
                shots = ",".join(map(str, self.shots))
                raise UserError(
                    f"shots={shots}: class {name} has {positives} images in {data.train.source}"
                )
        if not (targets.test > 0).any():
            raise UserError(f"{data.test.source}: no image of any class to test on")
        return targets

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        train, test, val, seed = data.train, data.test, data.val, data.seed
        rows, targets, test_targets, val_targets = self._prepare(data)
        targets = targets[rows]
        labels = None if train.targets is not None else train.labels[rows]
        ranks = [
            sample_ranks(targets, labels, train.index[rows], seed, sample)
            for sample in range(self.samples)
        ]
        drawn = np.flatnonzero(np.any([rank.min(1) < max(self.shots) for rank in ranks], 0))
        held = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_HELD])
        groups = in_groups(targets.shape[1], max(len(drawn), len(test.labels) * len(self.costs)))
        for endpoint in endpoints:
            features = train.endpoints[endpoint]
            svms = Rows(features, self.intercept_scaling, rows[drawn], unit)
            for k in self.shots:
                start, gaps = time.time(), []
                on_test, on_val = np.zeros((2, self.samples, len(self.costs)))
                for sample, rank in enumerate(ranks):
                    chosen_on: tuple[np.ndarray, np.ndarray, Optional[np.ndarray]]
                    if val is not None and val_targets is not None:
                        chosen_on = val.endpoints[endpoint], val_targets, None
                    else:
                        outside = np.where(rank[held] < k, 0, targets[held])
                        chosen_on = features, outside, rows[held]
                    precisions = np.zeros((2, targets.shape[1], len(self.costs)))
                    for group in groups:
                        some = np.ix_(drawn, group)
                        y, weights = signed(targets[some], self.positive_weight)
                        weights *= np.broadcast_to(rank, targets.shape)[some] < k
                        fits = list(svms.path(y, weights, self.costs))
                        gaps += [float(fit.gap.max()) for fit in fits]
                        solution = [np.concatenate(p, -1) for p in zip(*map(svms.weights, fits))]
                        reported_on = test.endpoints[endpoint], test_targets, None
                        for i, (part, answers, asked) in enumerate((reported_on, chosen_on)):
                            precisions[i, group] = self._of_costs(
                                solution, part, answers[:, group], asked
                            )
                    on_test[sample], on_val[sample] = (
                        [mean(of_cost) for of_cost in of_part.T] for of_part in precisions
                    )
                judged = on_test if self.choose == "test" else on_val
                if np.isnan(judged).any():
                    raise UserError(
                        f"low_shot: {self._chosen_on(data)}: no image of any class to choose the "
                        "cost on"
                    )
                best = int(judged.mean(0).argmax())
                values = on_test[:, best]
                yield Result(
                    protocol=self.name,
                    endpoint=endpoint,
                    metric=self.metric,
                    shots=k,
                    value=float(values.mean()),
                    val_value=float(on_val[:, best].mean()),
                    train_labels=len(rows),
                    chosen_on=self._chosen_on(data),
                    chance=average_precision.chance(test_targets),
                    details={
                        "std": float(values.std()),
                        "min": float(values.min()),
                        "max": float(values.max()),
                        "features": svms.dims,
                        "cost": self.costs[best],
                        "costs_tried": self.costs,
                        "samples": self.samples,
                        "ap": self.ap,
                        "positive_weight": self.positive_weight,
                        "intercept_scaling": self.intercept_scaling,
                        "gap": max(gaps),
                    },
                    seconds=time.time() - start,
                )

    def _of_costs(
        self,
        solution: Sequence[np.ndarray],
        features: np.ndarray,
        targets: np.ndarray,
        chosen: Optional[np.ndarray],
    ) -> np.ndarray:
        """Average precision of the SVMs of each class and C on some rows: [classes, costs]."""
        weights, bias = solution
        decisions = np.split(decide(features, weights, bias, chosen), len(self.costs), 1)
        return np.stack(
            [average_precision.each_class(targets, decision, self.ap) for decision in decisions], 1
        )

    def _chosen_on(self, data: Data[Features]) -> str:
        if self.choose == "test":
            return f"{data.test.source} (optimistic)"
        return (
            data.val.source
            if data.val is not None
            else f"{data.train.source} outside of each sample"
        )


def check(shots: Union[str, int, Sequence[int]], samples: int = 1) -> list[int]:
    """`shots` in increasing order; UserError unless all settings are at least 1."""
    try:
        given = sorted(
            {int(k) for k in (shots.split(",") if isinstance(shots, str) else np.atleast_1d(shots))}
        )
    except (TypeError, ValueError):
        given = []
    if not given or given[0] < 1:
        shown = shots if isinstance(shots, str) else ",".join(map(str, np.atleast_1d(shots)))
        raise UserError(f"shots={shown}: give numbers of images of each class, such as 1,2,4")
    if samples < 1:
        raise UserError(f"samples={samples}: give a number of random samples, at least 1")
    return given


def sample_ranks(
    targets: np.ndarray, labels: Optional[np.ndarray], index: np.ndarray, seed: int, sample: int
) -> np.ndarray:
    """The order in which a sample takes rows: those with a rank below k belong to the sample of k.

    Args:
      targets: int8 [N, C]; labels: int [N] where an image has one, else None.
      index: int [N], the images' positions in the split.
      seed, sample: of the draw.

    Returns:
      int [N, C], a ranking for each class; with labels [N, 1], one for all classes. Difficult
      images come last.
    """
    if labels is not None:
        return partition.rank_within_class(labels, partition.draws(index, seed, 3, sample))[:, None]
    classes = targets.shape[1]
    ranks = np.zeros(targets.shape, int)
    for c in range(classes):
        rank = partition.rank_within_class(
            targets[:, c].astype(int), partition.draws(index, seed, 3, sample, c)
        )
        ranks[:, c] = np.where(
            targets[:, c] > 0, rank, rank // max(classes - 1, 1)
        )  # (classes - 1) times as many negatives
    ranks[targets == 0] = np.iinfo(int).max
    return ranks

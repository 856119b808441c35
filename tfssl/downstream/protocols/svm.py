"""Linear SVMs on frozen features, one versus rest: VOC07 classification of Goyal et al. 2019 (arXiv
1905.01235), as in their code and VISSL.

Features are L2-normalized. Each class has a squared-hinge SVM (see squared_hinge.py) in which
positives have twice the weight of negatives; its C is chosen by average precision in 3-fold
cross-validation on the training images, on all of which the SVM is then fitted. Difficult images
are negatives in training, and are left out of average precision. The result is the mean average
precision on the test images.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Optional, Union

import numpy as np
from absl import logging

from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.metrics import average_precision
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.downstream.solvers.lbfgs import in_chunks
from tfssl.downstream.solvers.squared_hinge import Rows
from tfssl.errors import UserError
from tfssl.storage import mapped

# values of an array [rows, classes], at most: more classes are fitted in groups
_COLUMN_VALUES = 1 << 23
COSTS = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    "goyal": tuple(sorted([10.0**i for i in range(-7, 3)] + [0.5**i for i in range(4, 20)])),
}


class Hinge(Protocol[Features]):
    """Base of the protocols of squared-hinge SVMs.

    Args:
      costs: Values of C to choose from: vissl (11 from 0.01 to 1000, as in papers since 2020),
        goyal (26 from 1e-7 to 100, the 2019 paper's code), or a comma list.
      positive_weight: Weight of positives in the loss, where negatives have 1 (Goyal et al.: 2).
      intercept_scaling: The constant feature whose weight is the bias; the larger, the smaller the
        penalty of the bias (Goyal et al.: 1).
      ap: Average precision: area under the best precision at each recall or above (VOC since 2010,
        Goyal et al.), its mean at 11 recalls (VOC 2007), or area under the raw precision
        (scikit-learn).
    """

    metric = "mAP"
    needs = ("labels",)
    flag_prefix = "svm_"

    def __init__(
        self,
        costs: Union[str, Sequence[float]] = "vissl",
        positive_weight: float = 2.0,
        intercept_scaling: float = 1.0,
        ap: Literal["area", "11-point", "raw"] = "area",
    ) -> None:
        self.costs = check(
            costs, positive_weight=positive_weight, intercept_scaling=intercept_scaling
        )
        average_precision.check(ap)
        self.positive_weight, self.intercept_scaling, self.ap = (
            positive_weight,
            intercept_scaling,
            ap,
        )


class Classes(NamedTuple):
    """Classes and training targets of the SVMs.

    Attributes:
      names: of all C classes.
      learned: int [L], the classes with positives and negatives in training.
      tested: bool [C], whether a class has positives on test.
      targets: int8 [N, L], of the training rows for the classes learned.
    """

    names: list[str]
    learned: np.ndarray
    tested: np.ndarray
    targets: np.ndarray


class SVM(Hinge):
    """Linear SVMs, one versus rest, on L2-normalized features: mean average precision.

    `value` is the mean over the classes that occur in training and on test, `val_value` that in
    cross-validation, by ap=raw as published. "per_class" has {class: average precision on test},
    "costs" {class: C}. With labels, "accuracy" is that of the class with the largest decision
    value. A validation split replaces the folds.

    Args:
      folds: Parts of the stratified cross-validation that chooses C for each class (Goyal et al.:
        3). With a validation split there is none.
      shuffle_folds: Random folds, by the seed. Default: in the order of the images, as published.
    """

    name = "svm"
    order_independent = False  # folds are in the order of the images
    expense = 3
    per_class = True
    quick = {"train_labels": 1000, "costs": "0.1,1,10,100", "folds": 2}
    trials = {"costs": "1", "folds": 2}, {"costs": "0.1,1,10", "folds": 2}

    def __init__(self, folds: int = 3, shuffle_folds: bool = False, **hinge: Any) -> None:
        super().__init__(**hinge)
        if folds < 2:
            raise UserError(f"folds={folds}: cross-validation takes 2 or more")
        self.folds, self.shuffle_folds = folds, shuffle_folds

    def passes(self) -> float:
        return len(self.costs) * self.folds

    def work(self, train: int, test: int, dims: int) -> float:
        return train * min(train, dims)  # the Gram matrix, where rows are fewer than features

    def check(self, data: Data[Features]) -> None:
        self._prepare(data)

    def _prepare(self, data: Data[Features]) -> tuple[partition.Targets, Classes]:
        targets = data.one_vs_rest()
        of_train = targets.train[targets.rows]
        names = class_names(data.train, of_train.shape[1])
        learned = np.flatnonzero((of_train > 0).any(0) & (of_train <= 0).any(0))
        tested = (targets.test > 0).any(0)
        if not tested[learned].any():
            raise UserError(
                f"{data.test.source}: shows no class that has positives and negatives in "
                f"{data.train.source}"
            )
        of_train = of_train[:, learned]
        if data.val is None:
            positives = (of_train > 0).sum(0)
            check_folds(self.folds, np.maximum(positives, len(of_train) - positives))
        return targets, Classes(names, learned, tested, of_train)

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        train, test, val = data.train, data.test, data.val
        targets, (names, learned, tested, of_train) = self._prepare(data)
        missing = [name for c, name in enumerate(names) if c not in learned or not tested[c]]
        if missing:
            logging.warning(
                "left out, for want of positives or negatives in training or test: %s",
                ", ".join(missing),
            )
        groups = in_groups(len(learned), len(of_train))
        shuffled = data.seed if self.shuffle_folds else None
        for endpoint in endpoints:
            start, features = time.time(), train.endpoints[endpoint]
            svms = Rows(features, self.intercept_scaling, targets.rows, unit)
            scores = np.zeros((len(learned), len(self.costs)))
            for group in groups:
                y, weights = signed(of_train[:, group], self.positive_weight)
                if val is None or targets.val is None:
                    masks = fold_masks(y, self.folds, shuffled)
                    scores[group] = cross_validate(svms, y, weights, masks, self.costs)
                else:
                    held, of_val = val.endpoints[endpoint], targets.val[:, learned[group]]
                    scores[group] = validate(svms, y, weights, self.costs, held, of_val, self.ap)
            chosen = choose(scores)
            decision, gaps = np.zeros((len(test.labels), len(learned))), []
            for group in groups:
                y, weights = signed(of_train[:, group], self.positive_weight)
                (fit,) = svms.path(y, weights, [np.array(self.costs)[chosen[group]]])
                decision[:, group] = decide(test.endpoints[endpoint], *svms.weights(fit))
                gaps.append(float(fit.gap.max()))
            precisions = average_precision.each_class(targets.test[:, learned], decision, self.ap)
            details: dict[str, Any] = {
                "features": features.shape[1],
                "per_class": {names[c]: float(p) for c, p in zip(learned, precisions) if tested[c]},
                "costs": {names[c]: self.costs[i] for c, i in zip(learned, chosen)},
                "costs_tried": self.costs,
                "ap": self.ap,
                "positive_weight": self.positive_weight,
                "intercept_scaling": self.intercept_scaling,
                "gap": max(gaps),
            }
            if test.targets is None:
                details["accuracy"] = float(np.mean(learned[decision.argmax(1)] == test.labels))
            yield Result(
                protocol=self.name,
                endpoint=endpoint,
                metric=self.metric,
                value=mean(precisions),
                val_value=mean(scores[np.arange(len(learned)), chosen]),
                train_labels=len(targets.rows),
                chosen_on=val.source
                if val is not None
                else f"{self.folds} folds of {train.source}",
                chance=average_precision.chance(targets.test[:, learned]),
                details=details,
                seconds=time.time() - start,
            )


def check(
    costs: Union[str, Sequence[float]], positive_weight: float = 2.0, intercept_scaling: float = 1.0
) -> list[float]:
    """The costs as a rising list of floats; UserError for whatever cannot be meant."""
    given = COSTS.get(costs, costs) if isinstance(costs, str) else costs
    try:
        given = [
            float(c) for c in (given.split(",") if isinstance(given, str) else np.atleast_1d(given))
        ]
    except (TypeError, ValueError):
        given = []
    if not given or not all(0 < c <= 1e9 for c in given):
        raise UserError(
            f"costs={costs!r}: give {', '.join(COSTS)}, or numbers above 0 (and to 1e9) such as "
            "0.1,1,10"
        )
    for name, value in (
        ("positive_weight", positive_weight),
        ("intercept_scaling", intercept_scaling),
    ):
        if not 0 < value < math.inf:
            raise UserError(f"{name}={value}: give a number above 0")
    return sorted(set(given))


def unit(features: np.ndarray) -> np.ndarray:
    """L2-normalized rows (divided by the norm plus 1e-5, as published): float64."""
    features = features.astype(np.float64)
    # or its square might overflow
    large = np.maximum(np.abs(features).max(1, keepdims=True, initial=0), 1)
    features /= large
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-5 / large
    return features


def decide(
    features: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    chosen: Optional[np.ndarray] = None,
) -> np.ndarray:
    """Decision values for features of any norm, perhaps memory-mapped: float64 [n, P], of the rows
    `chosen` or of all."""
    rows, parts = np.arange(len(features)) if chosen is None else chosen, []
    for part in in_chunks(rows, features.shape[1]):
        parts.append(unit(features[part]) @ weights + bias)
        mapped.release(features)
    return np.concatenate(parts)


def signed(targets: np.ndarray, positive_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """(1 or -1, weight in the loss), float64 [N, P] each, of targets int8 [N, P]."""
    y = np.where(targets > 0, 1.0, -1.0)
    return y, np.where(y > 0, positive_weight, 1.0)


def in_groups(classes: int, rows: int) -> list[np.ndarray]:
    """Numbers of the classes in groups that are fitted together: all, where arrays [rows, classes]
    are small."""
    size = max(_COLUMN_VALUES // max(rows, 1), 1)
    return [np.arange(low, min(low + size, classes)) for low in range(0, classes, size)]


def class_names(features: Features, count: int) -> list[str]:
    """Names of all classes, or else their numbers."""
    return list(features.class_names) if features.class_names else [str(c) for c in range(count)]


def check_folds(folds: int, largest: np.ndarray) -> None:
    """Raise UserError where rows are too few; `largest`, int [C]: how many rows the larger side of
    each class has."""
    if largest.min() < folds:
        raise UserError(f"folds={folds}: {largest.min()} training images are too few")


def fold_masks(y: np.ndarray, folds: int, seed: Optional[int] = None) -> np.ndarray:
    """The held-out rows of each fold, for each class: bool [folds, N, C]; see `SVM`. Without a seed
    rows are not shuffled."""
    from sklearn.model_selection import StratifiedKFold

    masks = np.zeros((folds, *y.shape), bool)
    split = StratifiedKFold(folds, shuffle=seed is not None, random_state=seed)
    with warnings.catch_warnings():
        # of classes with fewer positives than folds: see `choose`
        warnings.simplefilter("ignore", UserWarning)
        for c in range(y.shape[1]):
            for fold, (_, held) in enumerate(split.split(y[:, c], y[:, c])):
                masks[fold, held, c] = True
    return masks


def cross_validate(
    svms: Rows, y: np.ndarray, weights: np.ndarray, masks: np.ndarray, costs: Sequence[float]
) -> np.ndarray:
    """Mean over the folds of average precision: float64 [C, costs]; NaN where no fold has positives
    on both sides."""
    scores = np.full((len(masks), y.shape[1], len(costs)), np.nan)
    for fold, held in enumerate(masks):
        both = ((y > 0) & held).any(0) & ((y > 0) & ~held).any(0) & ((y < 0) & ~held).any(0)
        if not both.any():
            continue
        fits = svms.path(y[:, both], np.where(held, 0, weights)[:, both], costs)
        for i, fit in enumerate(fits):
            judged = np.where(held, y, 0)[:, both]  # 0: left out of the ranking
            scores[fold, both, i] = average_precision.each_class(judged, fit.decision, "raw")
    seen = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(seen, scores, 0).sum(0) / seen.sum(0)


def validate(
    svms: Rows,
    y: np.ndarray,
    weights: np.ndarray,
    costs: Sequence[float],
    features: np.ndarray,
    targets: np.ndarray,
    ap: str,
) -> np.ndarray:
    """Average precision on the features of validation images: float64 [C, costs]; NaN where no
    image shows the class."""
    decisions = [decide(features, *svms.weights(fit)) for fit in svms.path(y, weights, costs)]
    return np.stack(
        [average_precision.each_class(targets, decision, ap) for decision in decisions], 1
    )


def choose(scores: np.ndarray) -> np.ndarray:
    """Index of the best C for each class, int [C]; for a class without scores the best for the
    others."""
    known = ~np.isnan(scores).any(1)
    if not known.any():
        raise UserError(
            "costs: no class has positives enough to choose on: two in training, or one in the "
            "validation split"
        )
    return np.where(
        known, np.where(known[:, None], scores, 0).argmax(1), scores[known].mean(0).argmax()
    )


def mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

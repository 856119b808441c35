"""Linear SVMs on frozen features, one for each class: VOC07 classification in Goyal et al. 2019 (arXiv 1905.01235), as its
code and VISSL have it.

Features are divided by their L2 norm. Each class has a squared-hinge SVM (see squared_hinge.py) in which positives weigh
twice; its cost is that of the best average precision in 3-fold cross-validation on the training images, on all of which
the SVM is then fitted. Difficult images count as negatives to learn from, and are left out where precision is measured.
What is reported is the mean average precision on the test images.
"""

import math
import time
import warnings

import numpy as np
from absl import logging

from tfssl.downstream import splits
from tfssl.downstream.metrics import average_precision
from tfssl.downstream.solvers.lbfgs import in_chunks
from tfssl.downstream.solvers.squared_hinge import Rows
from tfssl.errors import UserError

COSTS = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    "goyal": tuple(sorted([10.0**i for i in range(-7, 3)] + [0.5**i for i in range(4, 20)])),
}


def run(
    train,
    test,
    val=None,
    endpoints=None,
    costs="vissl",
    folds=3,
    shuffle_folds=False,
    positive_weight=2.0,
    intercept_scaling=1.0,
    ap="area",
    train_labels="all",
    val_fraction=0.2,
    seed=0,
):
    """Mean average precision of SVMs on each endpoint.

    Args:
      train, test: `Features`, with targets (images of several classes) or labels (then it is one class against the rest).
      val: `Features` of a validation split: costs are then chosen on it, without folds.
      endpoints: names; all by default.
      costs: "vissl" (11, as papers since 2020), "goyal" (the 26 of the paper's code), or numbers.
      folds: parts of cross-validation. Each has its share of a class's positives and negatives, in the order of the images
        as in scikit-learn's StratifiedKFold; with shuffle_folds in a random one.
      positive_weight: of positives in the loss; negatives have 1.
      intercept_scaling: the larger, the less biases are penalised (scikit-learn's).
      ap: rule of average precision on test and `val`; see average_precision.py. Folds are measured by "raw", as published.
      train_labels, seed: which rows are learned from; see `splits`. The seed is also that of shuffle_folds.
      val_fraction: not used: folds take its place.

    Returns:
      a list of results. "value" is the mean average precision on test, over the classes that occur there and in training;
      "val_value" that in cross-validation. "per_class" has {class: average precision on test}, "costs" {class: cost}. With
      labels, "accuracy" is that of the class with the highest decision.
    """
    costs = check(costs, folds, positive_weight, intercept_scaling)
    average_precision.check(ap)
    rows, targets, test_targets, val_targets = splits.one_vs_rest(train, test, val, train_labels, seed)
    targets = targets[rows]
    names = class_names(train, targets.shape[1])
    learned = np.flatnonzero((targets > 0).any(0) & (targets <= 0).any(0))
    tested = (test_targets > 0).any(0)
    if not tested[learned].any():
        raise UserError(f"{test.source}: shows no class that has positives and negatives in {train.source}")
    missing = [name for c, name in enumerate(names) if c not in learned or not tested[c]]
    if missing:
        logging.warning("left out, for want of positives or negatives in training or test: %s", ", ".join(missing))
    y = np.where(targets[:, learned] > 0, 1.0, -1.0)
    weights = np.where(y > 0, positive_weight, 1.0)
    masks = fold_masks(y, folds, seed if shuffle_folds else None) if val is None else None

    results = []
    for endpoint in splits.endpoints([train, test, val], endpoints):
        start, features = time.time(), train.endpoints[endpoint]
        svms = Rows(unit(features[rows]), intercept_scaling)
        if val is None:
            scores = cross_validate(svms, y, weights, masks, costs)  # classes x costs
        else:
            scores = validate(svms, y, weights, costs, val.endpoints[endpoint], val_targets[:, learned], ap)
        chosen = choose(scores)
        (fit,) = svms.path(y, weights, [np.array(costs)[chosen]])
        decision = decide(test.endpoints[endpoint], *svms.weights(fit))
        precisions = average_precision.each_class(test_targets[:, learned], decision, ap)
        result = {
            "protocol": "svm",
            "endpoint": endpoint,
            "metric": "mAP",
            "value": mean(precisions),
            "val_value": mean(scores[np.arange(len(learned)), chosen]),
            "chosen_on": val.source if val is not None else f"{folds} folds of {train.source}",
            "chance": average_precision.chance(test_targets[:, learned]),
            "train_labels": len(rows),
            "features": features.shape[1],
            "per_class": {names[c]: float(p) for c, p in zip(learned, precisions) if tested[c]},  # noqa: B905
            "costs": {names[c]: costs[i] for c, i in zip(learned, chosen)},  # noqa: B905
            "costs_tried": costs,
            "ap": ap,
            "positive_weight": positive_weight,
            "intercept_scaling": intercept_scaling,
            "gap": float(fit.gap.max()),
        }
        if test.targets is None:
            result["accuracy"] = float(np.mean(learned[decision.argmax(1)] == test.labels))
        results.append({**result, "seconds": time.time() - start})
    return results


def check(costs, folds=3, positive_weight=2.0, intercept_scaling=1.0):
    """The costs as a rising list of floats; UserError for whatever cannot be meant."""
    given = COSTS.get(costs, costs) if isinstance(costs, str) else costs
    try:
        given = [float(c) for c in (given.split(",") if isinstance(given, str) else np.atleast_1d(given))]
    except (TypeError, ValueError):
        given = []
    if not given or not all(0 < c <= 1e9 for c in given):
        raise UserError(f"costs={costs!r}: give {', '.join(COSTS)}, or numbers above 0 (and to 1e9) such as 0.1,1,10")
    if folds < 2:
        raise UserError(f"folds={folds}: cross-validation takes 2 or more")
    for name, value in (("positive_weight", positive_weight), ("intercept_scaling", intercept_scaling)):
        if not 0 < value < math.inf:
            raise UserError(f"{name}={value}: give a number above 0")
    return sorted(set(given))


def unit(features):
    """Rows divided by their L2 norm (plus 1e-5, as published): float64."""
    features = features.astype(np.float64)
    large = np.maximum(np.abs(features).max(1, keepdims=True, initial=0), 1)  # its square might leave the range
    features /= large
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-5 / large
    return features


def decide(features, weights, bias):
    """Decisions for features of any length, float64 [N, P]."""
    parts = in_chunks(np.arange(len(features)), features.shape[1])
    return np.concatenate([unit(features[part]) @ weights + bias for part in parts])


def class_names(features, count):
    """Names of all classes, or their numbers."""
    return list(features.class_names) if features.class_names else [str(c) for c in range(count)]


def fold_masks(y, folds, seed=None):
    """Which rows a fold tests on, for each class: bool [folds, N, C]; see `run`. Without a seed they are not shuffled."""
    from sklearn.model_selection import StratifiedKFold

    masks = np.zeros((folds, *y.shape), bool)
    split = StratifiedKFold(folds, shuffle=seed is not None, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer positives than folds: `choose` minds them
        for c in range(y.shape[1]):
            try:
                parts = [held for _, held in split.split(y[:, c], y[:, c])]
            except ValueError:
                raise UserError(f"folds={folds}: {len(y)} training images are too few") from None
            for fold, held in enumerate(parts):
                masks[fold, held, c] = True
    return masks


def cross_validate(svms, y, weights, masks, costs):
    """Mean average precision over the folds: float64 [C, costs]; NaN where no fold has positives on both sides."""
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


def validate(svms, y, weights, costs, features, targets, ap):
    """Average precision on the features of other images: float64 [C, costs]; NaN where none of them shows the class."""
    found = [decide(features, *svms.weights(fit)) for fit in svms.path(y, weights, costs)]
    return np.stack([average_precision.each_class(targets, decision, ap) for decision in found], 1)


def choose(scores):
    """The best of the costs for each class, int [C]; a class without scores takes what is best for the others."""
    known = ~np.isnan(scores).any(1)
    if not known.any():
        raise UserError(
            "costs: no class has positives enough to choose on: two in training, or one in the validation split"
        )
    return np.where(known, np.where(known[:, None], scores, 0).argmax(1), scores[known].mean(0).argmax())


def mean(values):
    """Over those that are known; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

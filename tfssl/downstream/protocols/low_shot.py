"""Linear SVMs that learn from few images of each class: low-shot classification in Goyal et al. 2019 (arXiv 1905.01235).

For each k, five random samples with k positives of each class are drawn, and the SVMs of svm.py are fitted to each; mean
and deviation over the samples are reported. As published, the negatives of a sample are (classes - 1) * k other images,
drawn for each class by itself where an image may show several (VOC07); with labels they are the other classes' k
(Places205). Here draws come from a seed, and the sample of a smaller k lies within that of a larger.

One cost serves all classes and samples of a k. As published (choose="test") it is the one with the best mean on the test
images, which is optimistic. By default it is the best on training images that the sample left out: labels that somebody
with k images would not have, but none that the result is measured by.
"""

import time

import numpy as np

from tfssl.downstream import splits
from tfssl.downstream.metrics import average_precision
from tfssl.downstream.protocols import svm
from tfssl.downstream.solvers.squared_hinge import Rows
from tfssl.errors import UserError

SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
_HELD = 10_000  # training images, at most, that a cost is chosen on


def run(
    train,
    test,
    val=None,
    endpoints=None,
    shots=SHOTS,
    samples=5,
    choose="validation",
    costs="vissl",
    positive_weight=2.0,
    intercept_scaling=1.0,
    ap="area",
    train_labels="all",
    val_fraction=0.2,
    seed=0,
):
    """Mean average precision of SVMs on each endpoint, for each number of positives.

    Args:
      train, test: `Features`, with targets (images of several classes) or labels (then it is one class against the rest).
      val: `Features` of a validation split to choose the cost on; None: the training images outside of each sample, or
        10,000 of them.
      endpoints: names; all by default.
      shots: numbers of positives of each class.
      samples: how many are drawn.
      choose: "validation", or "test" (optimistic): what the cost is chosen on.
      costs, positive_weight, intercept_scaling, ap: see `svm.run`.
      train_labels, seed: which rows samples are drawn from (see `splits`), and the seed of the samples too.
      val_fraction: not used.

    Returns:
      a list of results: of each endpoint one for each of `shots`. "value", "std", "min" and "max" are those of the mean
      average precision on test over the samples; "val_value" is its mean on validation.
    """
    costs = svm.check(costs, positive_weight=positive_weight, intercept_scaling=intercept_scaling)
    average_precision.check(ap)
    shots = check(shots, samples)
    if choose not in ("validation", "test"):
        raise UserError(f"choose={choose!r}: the cost is chosen on validation, or on test (as published; optimistic)")
    rows, targets, test_targets, val_targets = splits.one_vs_rest(train, test, val, train_labels, seed)
    targets = targets[rows]
    names = svm.class_names(train, targets.shape[1])
    for name, positives in zip(names, (targets > 0).sum(0)):  # noqa: B905 (Python 3.9)
        if positives < max(shots):
            raise UserError(f"shots={','.join(map(str, shots))}: class {name} has {positives} images in {train.source}")
    if not (test_targets > 0).any():
        raise UserError(f"{test.source}: no image of any class to test on")
    labels = None if train.targets is not None else train.labels[rows]
    places = [sample_places(targets, labels, train.index[rows], seed, sample) for sample in range(samples)]
    drawn = np.flatnonzero(np.any([place.min(1) < max(shots) for place in places], 0))
    y = np.where(targets[drawn] > 0, 1.0, -1.0)
    weights = np.where(y > 0, positive_weight, 1.0)
    held = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_HELD])

    results = []
    for endpoint in splits.endpoints([train, test, val], endpoints):
        svms = Rows(svm.unit(train.endpoints[endpoint][rows[drawn]]), intercept_scaling)
        for k in shots:
            start, gap = time.time(), 0.0
            on_test, on_val = np.zeros((2, samples, len(costs)))
            for sample, place in enumerate(places):
                fits = list(svms.path(y, weights * (place[drawn] < k), costs))
                gap = max(gap, max(fit.gap.max() for fit in fits))
                solution = [np.concatenate(part, -1) for part in zip(*map(svms.weights, fits))]  # noqa: B905

                def measure(features, targets, solution=solution):
                    decisions = np.split(svm.decide(features, *solution), len(costs), 1)
                    return [svm.mean(average_precision.each_class(targets, decision, ap)) for decision in decisions]

                on_test[sample] = measure(test.endpoints[endpoint], test_targets)
                if val is not None:
                    on_val[sample] = measure(val.endpoints[endpoint], val_targets)
                else:
                    left_out = np.where(place[held] < k, 0, targets[held])
                    on_val[sample] = measure(train.endpoints[endpoint][rows[held]], left_out)
            if np.isnan(on_test if choose == "test" else on_val).any():
                raise UserError(
                    f"low_shot: {chosen_on(choose, train, test, val)}: no image of any class to choose the cost on"
                )
            best = int((on_test if choose == "test" else on_val).mean(0).argmax())
            values = on_test[:, best]
            results.append(
                {
                    "protocol": "low_shot",
                    "endpoint": endpoint,
                    "metric": "mAP",
                    "shots": k,
                    "value": float(values.mean()),
                    "std": float(values.std()),
                    "min": float(values.min()),
                    "max": float(values.max()),
                    "val_value": float(on_val[:, best].mean()),
                    "chosen_on": chosen_on(choose, train, test, val),
                    "chance": average_precision.chance(test_targets),
                    "train_labels": len(rows),
                    "features": svms.dims,
                    "cost": costs[best],
                    "costs_tried": costs,
                    "samples": samples,
                    "ap": ap,
                    "positive_weight": positive_weight,
                    "intercept_scaling": intercept_scaling,
                    "gap": gap,
                    "seconds": time.time() - start,
                }
            )
    return results


def check(shots, samples=1):
    """`shots` as rising numbers; UserError unless all settings are at least 1."""
    try:
        given = sorted({int(k) for k in (shots.split(",") if isinstance(shots, str) else np.atleast_1d(shots))})
    except (TypeError, ValueError):
        given = []
    if not given or given[0] < 1:
        raise UserError(f"shots={shots!r}: give numbers of images of each class, such as 1,2,4")
    if samples < 1:
        raise UserError(f"samples={samples}: give a number of random samples, at least 1")
    return given


def sample_places(targets, labels, index, seed, sample):
    """In which order a sample takes rows: those with a place below k belong to the sample of k.

    Args:
      targets: int8 [N, C]; labels: int [N] where an image has one, else None.
      index: int [N], the images' places in the split.
      seed, sample: of the draw.

    Returns:
      int [N, C], for each class by itself; with labels [N, 1], one for all classes. Difficult images have no place.
    """
    if labels is not None:
        return splits.place_within_class(labels, splits.draws(index, seed, 3, sample))[:, None]
    classes = targets.shape[1]
    places = np.zeros(targets.shape, int)
    for c in range(classes):
        place = splits.place_within_class(targets[:, c].astype(int), splits.draws(index, seed, 3, sample, c))
        places[:, c] = np.where(targets[:, c] > 0, place, place // max(classes - 1, 1))  # of negatives as many more
    places[targets == 0] = np.iinfo(int).max
    return places


def chosen_on(choose, train, test, val):
    """For people: the images that the cost was chosen on."""
    if choose == "test":
        return f"{test.source} (optimistic)"
    return val.source if val is not None else f"{train.source} outside of each sample"

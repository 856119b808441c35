"""Ridge regression on a handful of images of each class, in closed form (Bertinetto et al. 2019, arXiv 1805.08136, use it
within training; here it only measures).

An episode takes some classes, k training images of each to learn from, and test images of these classes to answer for. The
classifier is W, b minimising sum_i ||W x_i + b - y_i||^2 + ridge * ||W||^2 for y_i = one-hot: the class with the highest
answer is the prediction. One singular value decomposition of the centred images gives it for all ridges. Accuracy is
averaged over episodes; its 95 % interval is 1.96 standard errors of that mean.

Features are divided by their L2 norm. The ridge is the one with the best accuracy on episodes whose questions are
validation images.
"""

import dataclasses
import math
import time

import numpy as np
from threadpoolctl import threadpool_limits

from tfssl.downstream import splits
from tfssl.downstream.protocols import low_shot
from tfssl.downstream.protocols.svm import unit
from tfssl.errors import UserError

RIDGES = tuple(10.0**i for i in range(-4, 3))


def run(
    train,
    test,
    val=None,
    endpoints=None,
    shots=(1, 5),
    ways=5,
    queries=15,
    episodes=600,
    ridges=RIDGES,
    train_labels="all",
    val_fraction=0.2,
    seed=0,
):
    """Accuracy of ridge regression on each endpoint, for each number of images per class.

    Args:
      train, test: `Features`, with one label for each image.
      val: `Features` of a validation split to choose the ridge on; None: a part of `train`, from which those episodes then
        take nothing to learn from.
      endpoints: names; all by default.
      shots: numbers of images of each class, k.
      ways: classes of an episode; 0, or more than there are: all.
      queries: test images of each class in an episode, at most as many as there are; 0: all.
      episodes: how many on test; on validation a sixth of them.
      ridges: numbers above 0.
      train_labels, val_fraction, seed: which rows are learned from (see `splits`), and the seed of the episodes too.

    Returns:
      a list of results: of each endpoint one for each of `shots`, with "interval", half the width of the 95 % interval.
    """
    shots, ridges = low_shot.check(shots, 1), check(ways, queries, episodes, ridges)
    part = splits.split(train, test, train_labels, val_fraction, seed, val)
    classes = np.unique(train.labels[part.rows])
    learn, ask = by_class(train, part.rows, classes), by_class(test, np.arange(len(test.labels)), classes)
    try_on, ask_held = by_class(train, part.fit, classes), by_class(part.held, part.val, classes)
    usable = [c for c in range(len(classes)) if len(ask[c])]
    for c in usable:
        if min(len(learn[c]), len(try_on[c])) < max(shots):
            name = train.class_names[classes[c]] if train.class_names else classes[c]
            raise UserError(
                f"shots={','.join(map(str, shots))}: class {name} has {min(len(learn[c]), len(try_on[c]))} images to learn "
                f"from in {train.source}"
            )
    choosable = [c for c in usable if len(ask_held[c])]
    if len(choosable) < 2 and len(ridges) > 1:
        raise UserError("few_shot: no validation images of two classes to choose the ridge on: give val, or one ridge")
    ways = min(ways or len(usable), len(usable))
    if ways < 2:
        raise UserError(
            f"few_shot: {test.source} shows {ways} class that can be learned, and an episode has two or more"
        )

    results = []
    for endpoint in splits.endpoints([train, test, val], endpoints):
        start, features = time.time(), train.endpoints[endpoint]
        for k in shots:
            best, on_val = 0, None
            if len(choosable) > 1:
                plan = Plan(choosable, min(ways, len(choosable)), k, queries, max(1, episodes // 6), (seed, 6, k))
                on_val = accuracies(features, try_on, part.held.endpoints[endpoint], ask_held, plan, ridges).mean(0)
                best = int(on_val.argmax())
            plan = Plan(usable, ways, k, queries, episodes, (seed, 7, k))
            values = accuracies(features, learn, test.endpoints[endpoint], ask, plan, ridges[best : best + 1])[:, 0]
            results.append(
                {
                    "protocol": "few_shot",
                    "endpoint": endpoint,
                    "metric": "accuracy",
                    "shots": k,
                    "value": float(values.mean()),
                    "std": float(values.std()),
                    "interval": float(1.96 * values.std() / math.sqrt(len(values))),
                    "val_value": None if on_val is None else float(on_val[best]),
                    "chance": 1 / ways,
                    "train_labels": len(part.rows),
                    "features": features.shape[1],
                    "ridge": ridges[best],
                    "ridges_tried": ridges,
                    "ways": ways,
                    "queries": queries,
                    "episodes": episodes,
                    "seconds": time.time() - start,
                }
            )
    return results


def check(ways, queries=15, episodes=600, ridges=RIDGES):
    """The ridges as a rising list of floats; UserError for whatever cannot be meant."""
    try:
        given = [float(r) for r in (ridges.split(",") if isinstance(ridges, str) else np.atleast_1d(ridges))]
    except (TypeError, ValueError):
        given = []
    if not given or not all(0 < r < math.inf for r in given):
        raise UserError(f"ridges={ridges!r}: give numbers above 0, such as 0.01,1,100")
    if ways < 0 or ways == 1 or queries < 0 or episodes < 1:
        raise UserError(
            f"ways={ways}, queries={queries}, episodes={episodes}: give 2 classes or more (0: all), 1 question to each or "
            "more (0: all), and 1 episode or more"
        )
    return sorted(set(given))


@dataclasses.dataclass
class Plan:
    """Which episodes are drawn: of `ways` of these classes, `shots` images and at most `queries` questions of each."""

    classes: list
    ways: int
    shots: int
    queries: int
    episodes: int
    seed: tuple


def by_class(features, rows, classes):
    """A list of int arrays: those of `rows` that are of each class."""
    return [rows[features.labels[rows] == c] for c in classes]


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products: threads would wait for one another
def accuracies(features, learn, asked, ask, plan, ridges):
    """Of each episode and ridge: float64 [episodes, ridges].

    Args:
      features: [N, D] to learn from, and learn: for each class the rows of its images; asked, ask: the questions likewise.
    """
    found = np.zeros((plan.episodes, len(ridges)))
    for episode in range(plan.episodes):
        rng = np.random.default_rng([*plan.seed, episode])
        classes = rng.choice(plan.classes, plan.ways, replace=False)
        rows = [rng.choice(learn[c], plan.shots, replace=False) for c in classes]
        questions = [rng.choice(ask[c], min(plan.queries or len(ask[c]), len(ask[c])), replace=False) for c in classes]
        y = np.repeat(np.arange(plan.ways), plan.shots)
        truth = np.repeat(np.arange(plan.ways), [len(q) for q in questions])
        x, queries = unit(features[np.concatenate(rows)]), unit(asked[np.concatenate(questions)])
        answers = ridge_regression(x, np.eye(plan.ways)[y], queries, ridges)
        found[episode] = (answers.argmax(2) == truth).mean(1)
    return found


def ridge_regression(x, y, queries, ridges):
    """Answers to `queries` [M, D] of W, b minimising sum ||W x_i + b - y_i||^2 + ridge * ||W||^2: [ridges, M, C].

    Args:
      x: [N, D]; y: [N, C].
    """
    centre, level = x.mean(0), y.mean(0)
    u, s, v = np.linalg.svd(x - centre, full_matrices=False)
    inner, outer = u.T @ (y - level), (queries - centre) @ v.T
    return np.stack([(outer * (s / (s**2 + ridge))) @ inner + level for ridge in ridges])

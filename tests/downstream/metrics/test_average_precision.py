import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tfssl.downstream.metrics.average_precision import (
    RULES,
    average_precision,
    chance,
    check,
    each_class,
)
from tfssl.errors import UserError


def ranking(seed, n=200, ties=False):
    rng = np.random.default_rng(seed)
    relevant = rng.random(n) < 0.2
    scores = relevant + rng.normal(size=n)
    return relevant, np.round(scores, 1) if ties else scores


def naive(relevant, scores, rule):
    """By the definition: precision and recall of everything at or above each score."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        points.append((relevant[taken].sum() / relevant.sum(), relevant[taken].mean()))
    if rule == "11-point":
        return np.mean(
            [max((p for r, p in points if r >= t / 10 - 1e-12), default=0) for t in range(11)]
        )
    total, last = 0.0, 0.0
    for i, (recall, precision) in enumerate(points):
        best = max(p for _, p in points[i:]) if rule == "area" else precision
        total, last = total + (recall - last) * best, recall
    return total


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ties", [False, True])
def test_follows_the_definition(rule, ties):
    for seed in range(5):
        relevant, scores = ranking(seed, ties=ties)
        assert average_precision(relevant, scores, rule) == pytest.approx(
            naive(relevant, scores, rule), rel=1e-12
        )


@pytest.mark.parametrize("ties", [False, True])
def test_raw_is_scikit_learns(ties):
    relevant, scores = ranking(7, ties=ties)
    reference = average_precision_score(relevant, scores)
    assert average_precision(relevant, scores, "raw") == pytest.approx(reference, rel=1e-12)


def test_by_hand():
    relevant, scores = (
        np.array([0, 1, 0, 1], bool),
        np.array([0.9, 0.8, 0.7, 0.6]),
    )  # precision 0, 1/2, 1/3, 1/2
    assert average_precision(relevant, scores, "raw") == pytest.approx(0.5 * 1 / 2 + 0.5 * 1 / 2)
    relevant = np.array([0, 1, 0, 0, 1, 1], bool)  # found at places 2, 5, 6: 1/2, 2/5, 1/2
    scores = np.arange(6)[::-1]
    assert average_precision(relevant, scores, "raw") == pytest.approx((1 / 2 + 2 / 5 + 1 / 2) / 3)
    assert average_precision(relevant, scores, "area") == pytest.approx(1 / 2)
    relevant = np.array([1, 0, 0, 1], bool)  # recall 1/2 at precision 1, recall 1 at 1/2
    scores = np.arange(4)[::-1]
    assert average_precision(relevant, scores, "11-point") == pytest.approx((6 * 1 + 5 * 0.5) / 11)
    assert average_precision(relevant, scores, "area") == pytest.approx(0.75)


@pytest.mark.parametrize("rule", RULES)
def test_extremes(rule):
    relevant = np.arange(10) < 3
    assert average_precision(relevant, -np.arange(10.0), rule) == 1.0
    assert average_precision(relevant, np.zeros(10), rule) == pytest.approx(
        0.3
    )  # one place: no order at all
    assert np.isnan(average_precision(np.zeros(10, bool), np.arange(10.0), rule))


def test_difficult_images_are_not_ranked():
    targets = np.array([[1, -1], [0, 1], [-1, 1], [1, 0]], np.int8)
    scores = np.array([[3.0, 1.0], [4.0, 2.0], [2.0, 3.0], [1.0, 9.0]])
    found = each_class(targets, scores, "raw")
    assert found == pytest.approx(
        [average_precision(np.array([1, 0, 1], bool), np.array([3.0, 2.0, 1.0]), "raw"), 1.0]
    )
    assert chance(targets) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_chance_is_what_random_rankings_get():
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((4000, 3)) < [0.1, 0.3, 0.6], 1, -1)
    found = np.mean([each_class(targets, rng.random((4000, 3))).mean() for _ in range(5)])
    assert found == pytest.approx(chance(targets), abs=0.03)


def test_unknown_rule():
    with pytest.raises(UserError, match="ap='best'.*area, 11-point, raw"):
        check("best")

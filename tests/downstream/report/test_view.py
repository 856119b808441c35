"""What reports read of results, computed once."""

import numpy as np
import pytest
from evaluations import RESULTS, result

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report.view import Cell, View, baselines
from tfssl.downstream.results import mark_chosen


def test_baselines():
    train = Features({}, np.array([0, 1, 1, 2]), np.arange(4), num_classes=3)
    test = Features({}, np.array([0, 1, 1, 1, 2]), np.arange(5), num_classes=3)
    assert baselines(train, test) == pytest.approx({"chance": 1 / 3, "majority class": 3 / 5})
    unlabeled = Features({}, np.full(4, -1), np.arange(4))
    assert baselines(unlabeled, unlabeled) == {} == baselines(train, unlabeled)
    partly = Features({}, np.array([-1, 1, 1, 2]), np.arange(4), num_classes=3)
    assert baselines(partly, partly)["majority class"] == pytest.approx(2 / 3)


def test_columns_and_rows():
    view = View.of(mark_chosen(RESULTS), {"chance": 0.1})
    knn, logistic = view.columns
    assert (
        view.headings == {knn: "knn@100", logistic: "logistic@1000"}
        and view.largest == view.columns
    )
    assert [[(row.module, row.endpoint) for row in group] for group in view.groups] == [
        [("rotation", "block1"), ("rotation", "block2")],
        [("x", "output")],
    ]
    assert view.groups[0][0].cells == {
        knn: Cell(0.512, True, "block1"),
        logistic: Cell(0.6, False, "block1"),
    }
    assert [(row.module, row.cells[knn].value) for row in view.others] == [
        ("pixels", 0.9),
        ("chance", 0.1),
    ]
    assert view.pixels[logistic].value == 0.25 and (view.modules, view.trained) == (
        ["rotation", "x"],
        ["rotation", "x"],
    )


def test_who_is_best_and_who_the_rival():
    results = mark_chosen(
        [*RESULTS, *(r.replace(module="random", value=0.2) for r in RESULTS if not r.of_pixels)]
    )
    view = View.of(results, {}, {"random": ["rotation"]})
    knn, logistic = view.columns
    assert (
        view.trained == ["rotation", "x"]
        and view.rival("rotation") == "random"
        and view.rival("x") is None
    )
    assert (
        view.best["rotation", knn].endpoint == "block1"
    )  # chosen on validation, though block2 is better on test
    assert view.best["x", logistic].endpoint == "output"  # nothing was chosen: the deepest
    assert view.rival_best("rotation", knn).value == 0.2 and view.rival_best("x", logistic) is None
    assert (
        view.starred("rotation") == "block1"
        and view.starred("x") is None
        and view.starred("nobody") is None
    )
    assert View.of(
        [r.replace(module="random") for r in results], {}, {"random": ["x"]}
    ).trained == ["random"]


def test_most_labels_and_largest_k():
    columns = [(10, 1), (10, 4), (200, 1), (200, 2)]
    results = [
        result("m", "e", 0.5, None, "low_shot", labels, shots=k, chance=0.3)
        for labels, k in columns
    ]
    view = View.of(
        [*results, result("m", "e", 0.5, None, "svm", 10, metric="mAP")], {"chance": 0.1}
    )
    assert view.largest == [("low_shot", 200, 2), ("svm", 10, None)]
    assert list(view.headings.values()) == [
        "low_shot@k=1 of 10", "low_shot@k=4", "low_shot@k=1 of 200", "low_shot@k=2", "svm@10",
    ]  # fmt: skip
    assert view.levels["low_shot", 10, 4] == {"chance": 0.3}  # its own, not that of accuracies
    assert view.levels["svm", 10, None] == {}  # baselines are accuracies


def test_records_of_results_json_are_read():
    view = View.of([dict(r) for r in mark_chosen(RESULTS)], {})
    assert [r.chosen for r in view.results] == [True, False, False, False, True, False, False]

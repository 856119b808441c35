import dataclasses

import numpy as np
import pytest
from photographs import NAMES, normed, photographs
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from tfssl import downstream
from tfssl.downstream.metrics import average_precision
from tfssl.downstream.protocols import svm
from tfssl.errors import UserError

COSTS = [0.1, 1.0, 10.0, 100.0]


def linear_svc(cost):
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-8, max_iter=10_000)


@pytest.mark.parametrize("several, n, dims", [(True, 150, 300), (True, 300, 30), (False, 150, 300)])
def test_the_whole_protocol_is_that_of_scikit_learn(several, n, dims):
    train, test = photographs(n, 0, dims, several), photographs(400, 1, dims, several)
    (result,) = downstream.run("svm", train, test, costs=COSTS)
    x, x_test = normed(train.endpoints["x"]), normed(test.endpoints["x"])
    precisions, decisions, cross_validated = [], [], []
    for c, name in enumerate(NAMES):
        positive = train.targets[:, c] > 0 if several else train.labels == c
        y = np.where(positive, 1, -1)  # difficult images are negatives here
        scores = [
            cross_val_score(linear_svc(k), x, y, cv=3, scoring="average_precision").mean()
            for k in COSTS
        ]
        assert result["costs"][name] == COSTS[int(np.argmax(scores))]
        cross_validated.append(max(scores))
        decisions.append(linear_svc(result["costs"][name]).fit(x, y).decision_function(x_test))
        marks = test.targets[:, c] if several else np.where(test.labels == c, 1, -1)
        kept = marks != 0  # and not ranked there
        precisions.append(
            average_precision.average_precision(marks[kept] > 0, decisions[-1][kept], "area")
        )
        assert result["per_class"][name] == pytest.approx(precisions[-1], abs=1e-3)
    assert result["value"] == pytest.approx(np.mean(precisions), abs=5e-4)
    assert result["val_value"] == pytest.approx(np.mean(cross_validated), abs=5e-4)
    if several:
        assert "accuracy" not in result
    else:
        assert result["accuracy"] == pytest.approx(
            np.mean(np.argmax(decisions, 0) == test.labels), abs=0.006
        )
    assert result["value"] > result["chance"] + 0.2
    assert result["gap"] <= 1e-8 and result["metric"] == "mAP"
    assert (result["chosen_on"], result["reported_on"]) == ("3 folds of set 0", "set 1")


def test_groups_of_classes_change_nothing(monkeypatch):
    train, test = photographs(150, 0, 300), photographs(100, 1, 300)
    val = photographs(80, 2, 300)
    for settings in ({}, {"val": val}, {"shuffle_folds": True}):
        whole, parts = [], []
        for values, found in ((1 << 23, whole), (150 * 3, parts)):  # four classes, or three and one
            monkeypatch.setattr(svm, "_COLUMN_VALUES", values)
            found += downstream.run("svm", train, test, costs=COSTS, **settings)
        assert whole[0]["costs"] == parts[0]["costs"]
        for key in ("value", "val_value"):
            assert whole[0][key] == pytest.approx(parts[0][key], abs=1e-3)
        assert whole[0]["per_class"] == pytest.approx(parts[0]["per_class"], abs=1e-3)


def test_cross_validation_scores_are_scikit_learns():
    train = photographs(150, 0, 300)
    x = normed(train.endpoints["x"])
    y = np.where(train.targets > 0, 1.0, -1.0)
    weights = np.where(y > 0, 2.0, 1.0)
    scores = svm.cross_validate(
        svm.Rows(svm.unit(train.endpoints["x"])), y, weights, svm.fold_masks(y, 3), COSTS
    )
    reference = [
        [
            cross_val_score(linear_svc(k), x, y[:, c], cv=3, scoring="average_precision").mean()
            for k in COSTS
        ]
        for c in range(4)
    ]
    np.testing.assert_allclose(scores, reference, atol=1e-3)


def test_rules_of_average_precision():
    train, test = photographs(150, 0), photographs(300, 1)
    found = {
        ap: downstream.run("svm", train, test, costs=[1.0], ap=ap)[0]
        for ap in average_precision.RULES
    }
    x, x_test = normed(train.endpoints["x"]), normed(test.endpoints["x"])
    for c, name in enumerate(NAMES):
        decision = (
            linear_svc(1.0)
            .fit(x, np.where(train.targets[:, c] > 0, 1, -1))
            .decision_function(x_test)
        )
        kept = test.targets[:, c] != 0
        reference = average_precision_score(test.targets[kept, c] > 0, decision[kept])
        assert found["raw"]["per_class"][name] == pytest.approx(reference, abs=1e-3)
    assert len({result["value"] for result in found.values()}) == 3


def test_positives_weigh_what_they_are_told():
    train, test = photographs(150, 0), photographs(100, 1)
    x, x_test = normed(train.endpoints["x"]), normed(test.endpoints["x"])
    y = np.where(train.targets[:, 0] > 0, 1, -1)
    for weight in (1.0, 7.0):
        rows = svm.Rows(x)
        (fit,) = rows.path(y[:, None], np.where(y > 0, weight, 1.0)[:, None], [3.0])
        reference = LinearSVC(
            C=3.0, class_weight={1: weight, -1: 1}, dual=False, tol=1e-10, max_iter=10_000
        ).fit(x, y)
        np.testing.assert_allclose(
            x_test @ rows.weights(fit)[0][:, 0] + rows.weights(fit)[1],
            reference.decision_function(x_test),
            atol=1e-3,
        )
    one, other = (
        downstream.run("svm", train, test, costs=[3.0], positive_weight=w)[0] for w in (1.0, 7.0)
    )
    assert one["value"] != other["value"]


def test_folds_are_stratified():
    y = np.where(photographs(151, 0).targets > 0, 1.0, -1.0)
    plain, shuffled = svm.fold_masks(y, 3), svm.fold_masks(y, 3, seed=5)
    for masks in (plain, shuffled):
        assert (masks.sum(0) == 1).all()  # each row is tested on once
        positives = (masks & (y > 0)).sum(1)
        assert (positives.max(0) - positives.min(0) <= 1).all()
    for c in range(4):
        for mask, (_, held) in zip(plain, StratifiedKFold(3).split(y, y[:, c])):
            np.testing.assert_array_equal(np.flatnonzero(mask[:, c]), held)
    np.testing.assert_array_equal(shuffled, svm.fold_masks(y, 3, seed=5))
    assert not np.array_equal(shuffled, svm.fold_masks(y, 3, seed=6)) and not np.array_equal(
        shuffled, plain
    )
    assert (
        downstream.run("svm", photographs(150, 0), photographs(90, 1), shuffle_folds=True, folds=5)[
            0
        ]["value"]
        > 0.3
    )


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("with_val", [True, False])
def test_nothing_is_chosen_on_test(several, with_val):
    train, test = photographs(120, 0, several=several), photographs(100, 1, several=several)
    val = photographs(80, 2, several=several) if with_val else None
    order = np.random.default_rng(0).permutation(100)
    other = dataclasses.replace(
        test, labels=test.labels[order], targets=test.targets[order] if several else None
    )  # the same images with other answers
    one, two = (downstream.run("svm", train, each, val=val)[0] for each in (test, other))
    assert (one["costs"], one["val_value"]) == (two["costs"], two["val_value"])
    assert one["value"] > two["value"] + 0.1
    assert len(set(one["costs"].values())) > 1  # there was something to choose


def test_a_validation_split_of_its_own():
    train, test, val = photographs(120, 0), photographs(100, 1), photographs(80, 2)
    (result,) = downstream.run("svm", train, test, val=val, costs=COSTS)
    each = [downstream.run("svm", train, val, costs=[cost])[0]["per_class"] for cost in COSTS]
    for name in NAMES:
        assert result["costs"][name] == COSTS[int(np.argmax([found[name] for found in each]))]
    assert result["val_value"] == pytest.approx(
        np.mean([max(f[n] for f in each) for n in NAMES]), abs=1e-6
    )
    assert result["chosen_on"] == "set 2"


def test_rare_classes(caplog):
    train, test = photographs(60, 0), photographs(100, 1)
    targets = train.targets.copy()
    targets[:, 0] = -1  # nothing to learn
    targets[:, 1] = np.where(
        np.arange(60) == 30, 1, -1
    )  # one positive: nothing to choose a cost on
    shown = test.targets.copy()
    shown[:, 2] = np.minimum(shown[:, 2], 0)  # nothing to test on
    train, test = (
        dataclasses.replace(train, targets=targets),
        dataclasses.replace(test, targets=shown),
    )
    with caplog.at_level("WARNING", logger="absl"):
        (result,) = downstream.run("svm", train, test, costs=[0.1, 10.0])
    assert "boat, dog" in caplog.text
    assert list(result["per_class"]) == ["cat", "owl"] and list(result["costs"]) == [
        "cat",
        "dog",
        "owl",
    ]
    assert result["value"] == pytest.approx(np.mean(list(result["per_class"].values())))
    with pytest.raises(UserError, match="set 1: shows no class"):
        downstream.run("svm", train, dataclasses.replace(test, targets=np.full_like(shown, -1)))


@pytest.mark.parametrize("several", [True, False])
def test_fewer_labels(several):
    train, test = photographs(300, 0, several=several), photographs(100, 1, several=several)
    few, same, more = (
        downstream.run("svm", train, test, costs=[1.0], train_labels=n)[0]
        for n in (60, "20%", "all")
    )
    assert (few["train_labels"], more["train_labels"]) == (60, 300)
    assert few["value"] == same["value"] < more["value"]


def test_costs():
    assert len(svm.COSTS["vissl"]) == 11 and len(svm.COSTS["goyal"]) == 26
    assert (
        svm.COSTS["goyal"][:2] == (1e-7, 1e-6)
        and 0.5**19 in svm.COSTS["goyal"]
        and svm.COSTS["goyal"][-1] == 100
    )
    assert svm.check("10,0.1,10") == [0.1, 10.0] == svm.check([10, 0.1]) and svm.check(3) == [3.0]
    assert svm.check("vissl") == list(svm.COSTS["vissl"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"costs": "cheap"}, "costs='cheap': give vissl, goyal, or numbers"),
        ({"costs": [0.0, 1.0]}, "costs="),
        ({"costs": []}, "costs="),
        ({"folds": 1}, "folds=1"),
        ({"folds": 200}, "folds=200"),
        ({"ap": "best"}, "ap='best'"),
        ({"positive_weight": 0}, "positive_weight=0"),
        ({"intercept_scaling": -1}, "intercept_scaling=-1"),
        ({"train_labels": 1000}, "train_labels=1000"),
        ({"endpoints": ["y"]}, "no features of endpoint y"),
        ({"standardize": True}, "no setting standardize"),
    ],
)
def test_bad_settings(settings, message):
    train, test = photographs(60, 0), photographs(50, 1)
    with pytest.raises(UserError, match=message) as error:
        downstream.run("svm", train, test, **settings)
    assert "\n" not in str(error.value)


def test_unlike_parts():
    several, single = photographs(60, 0), photographs(60, 1, several=False)
    for train, test in ((several, single), (single, several)):
        with pytest.raises(
            UserError, match="set 1: images have one label each, and in the other part several"
        ):
            downstream.run("svm", train, test)
    with pytest.raises(UserError, match="set 0 has 4 classes, and set 0 3"):
        downstream.run("svm", several, dataclasses.replace(several, targets=several.targets[:, :3]))
    with pytest.raises(UserError, match="different classes: cow, owl"):
        downstream.run(
            "svm", several, dataclasses.replace(several, class_names=[*NAMES[:3], "cow"])
        )
    unlabelled = dataclasses.replace(single, labels=np.full(60, -1))
    with pytest.raises(UserError, match="60 of 60 images have no label"):
        downstream.run("svm", single, unlabelled)


@pytest.mark.parametrize("protocol", ["logistic", "knn", "linear_sgd", "mlp", "few_shot"])
def test_protocols_of_single_labels_refuse_several(protocol):
    several = photographs(60, 0)
    with pytest.raises(
        UserError, match="set 0: an image may show several classes.*svm and low_shot take such data"
    ):
        downstream.run(protocol, several, several)

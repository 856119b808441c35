import dataclasses

import numpy as np
import pytest
from photographs import NAMES, normed, photographs
from sklearn.svm import LinearSVC

from tfssl import downstream
from tfssl.downstream.metrics.average_precision import average_precision
from tfssl.downstream.protocols import low_shot, svm
from tfssl.errors import UserError


def places(features, sample=0, seed=0):
    several = features.targets is not None
    targets = (
        features.targets if several else np.where(features.labels[:, None] == np.arange(4), 1, -1)
    )
    return low_shot.sample_ranks(
        targets, None if several else features.labels, features.index, seed, sample
    ), targets


def test_samples_of_images_with_several_classes():
    features = photographs(400, 0)
    found, targets = places(features)
    inner = np.zeros_like(targets, bool)
    for k in (1, 2, 4, 16):
        used = found < k
        assert (used & (targets > 0)).sum(0).tolist() == [k] * 4
        assert (used & (targets < 0)).sum(0).tolist() == [3 * k] * 4  # (classes - 1) * k
        assert not (used & (targets == 0)).any()
        assert (used >= inner).all()  # a smaller sample lies within
        inner = used
    negatives = [set(np.flatnonzero(inner[:, c] & (targets[:, c] < 0))) for c in range(4)]
    assert negatives[0] != negatives[1]  # drawn for each class by itself


def test_samples_of_images_with_a_label():
    features = photographs(400, 0, several=False)
    found, _ = places(features)
    inner = np.zeros(400, bool)
    for k in (1, 2, 4, 16):
        used = (found < k)[:, 0]
        assert np.bincount(features.labels[used]).tolist() == [k] * 4
        assert (used >= inner).all()
        inner = used


@pytest.mark.parametrize("several", [True, False])
def test_samples_follow_from_seed_and_number(several):
    features = photographs(400, 0, several=several)
    one = places(features)[0] < 4
    np.testing.assert_array_equal(one, places(features)[0] < 4)
    for other in (places(features, sample=1), places(features, seed=1)):
        overlap = (one & (other[0] < 4)).sum() / one.sum()
        assert overlap < 0.4
    # An image that could not be read does not change the lot of the others.
    lost = int(np.flatnonzero(~one.any(1))[0])
    kept = np.delete(np.arange(400), lost)
    part = dataclasses.replace(
        features,
        labels=features.labels[kept],
        index=kept,
        targets=features.targets[kept] if several else None,
    )
    np.testing.assert_array_equal(places(part)[0] < 4, one[kept])


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("choose", ["validation", "test"])
def test_the_whole_protocol_is_that_of_scikit_learn(several, choose):
    train, test = photographs(200, 0, several=several), photographs(300, 1, several=several)
    costs = [0.1, 1.0, 10.0]
    x, x_test = normed(train.endpoints["x"]), normed(test.endpoints["x"])
    for result in downstream.run(
        "low_shot", train, test, shots=[2, 8], samples=3, costs=costs, choose=choose
    ):
        on_test, on_rest = np.zeros((2, 3, 3))
        for sample in range(3):
            found, targets = places(train, sample)
            used = np.broadcast_to(found < result["shots"], targets.shape)
            answers = (
                test.targets if several else np.where(test.labels[:, None] == np.arange(4), 1, -1)
            )
            for i, cost in enumerate(costs):
                precisions = []
                for c in range(4):
                    rows = np.flatnonzero(used[:, c])
                    fit = LinearSVC(
                        C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-9, max_iter=10_000
                    )
                    fit.fit(x[rows], targets[rows, c])
                    rest = np.flatnonzero(~used[:, c] & (targets[:, c] != 0))
                    asked = np.flatnonzero(answers[:, c] != 0)
                    precisions.append(
                        [
                            average_precision(t[r, c] > 0, fit.decision_function(z[r]))
                            for t, z, r in ((answers, x_test, asked), (targets, x, rest))
                        ]
                    )
                on_test[sample, i], on_rest[sample, i] = np.mean(precisions, 0)
        best = (on_test if choose == "test" else on_rest).mean(0).argmax()
        assert result["cost"] == costs[best]
        values = on_test[:, best]
        for key, value in (
            ("value", values.mean()),
            ("std", values.std()),
            ("min", values.min()),
            ("max", values.max()),
        ):
            assert result[key] == pytest.approx(value, abs=1e-3)
        assert result["val_value"] == pytest.approx(on_rest[:, best].mean(), abs=1e-3)
        where = "set 1 (optimistic)" if choose == "test" else "set 0 outside of each sample"
        assert (result["chosen_on"], result["reported_on"]) == (where, "set 1")


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("with_val", [True, False])
def test_groups_of_classes_change_nothing(several, with_val, monkeypatch):
    train, test, val = (
        photographs(n, seed, several=several) for seed, n in enumerate([200, 90, 80])
    )
    found = []
    for values in (1 << 23, 1):  # four classes together, or each alone
        monkeypatch.setattr(svm, "_COLUMN_VALUES", values)
        found.append(
            downstream.run(
                "low_shot",
                train,
                test,
                val=val if with_val else None,
                shots=[2, 8],
                costs=[0.1, 10.0],
            )
        )
    for whole, parts in zip(*found):
        assert whole["cost"] == parts["cost"] and parts["gap"] <= 1e-8
        for key in ("value", "val_value", "std"):
            assert whole[key] == pytest.approx(parts[key], abs=1e-3)


@pytest.mark.parametrize("with_val", [True, False])
def test_nothing_is_chosen_on_test_unless_asked(with_val):
    train, test = photographs(200, 0), photographs(100, 1)
    val = photographs(80, 2) if with_val else None
    order = np.random.default_rng(0).permutation(100)
    other = dataclasses.replace(test, targets=test.targets[order])
    few = {"costs": [0.1, 1.0, 10.0, 100.0]}
    one, two = (
        downstream.run("low_shot", train, each, val=val, shots=[1, 16], **few)
        for each in (test, other)
    )
    assert [r["cost"] for r in one] == [r["cost"] for r in two]
    assert [r["val_value"] for r in one] == [r["val_value"] for r in two]
    assert one[-1]["value"] > two[-1]["value"] + 0.1
    published = downstream.run(
        "low_shot", train, test, val=val, shots=[1, 16], choose="test", **few
    )
    assert all(p["value"] >= r["value"] for p, r in zip(published, one))
    assert one[0]["chosen_on"] == ("set 2" if with_val else "set 0 outside of each sample")


def test_more_images_are_better():
    train, test = photographs(400, 0), photographs(300, 1)
    results = downstream.run("low_shot", train, test, shots="1,8,32", costs=[1.0])
    assert [r["shots"] for r in results] == [1, 8, 32] and results[0]["protocol"] == "low_shot"
    assert results[0]["chance"] < results[0]["value"] < results[1]["value"] < results[2]["value"]


def test_training_rows_may_be_few():
    train, test = photographs(400, 0), photographs(100, 1)
    (result,) = downstream.run("low_shot", train, test, shots=[4], samples=2, train_labels=120)
    assert result["train_labels"] == 120


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shots": [96]}, "shots=96: class boat has .* images in set 0"),
        ({"shots": []}, "shots="),
        ({"shots": "0,1"}, "shots=0,1: give"),
        ({"samples": 0}, "samples=0"),
        ({"choose": "train"}, "choose='train'.*optimistic"),
        ({"costs": "-1"}, "costs='-1'"),
        ({"ap": "12-point"}, "ap='12-point'"),
    ],
)
def test_bad_settings(settings, message):
    train, test = photographs(100, 0), photographs(50, 1)
    with pytest.raises(UserError, match=message) as error:
        downstream.run("low_shot", train, test, **{"shots": [1], **settings})
    assert "\n" not in str(error.value)


def test_nothing_left_to_choose_on():
    train = photographs(200, 0, several=False)
    rows = np.concatenate([np.flatnonzero(train.labels == c)[:8] for c in range(4)])
    train = dataclasses.replace(
        train,
        endpoints={"x": train.endpoints["x"][rows]},
        labels=train.labels[rows],
        index=np.arange(32),
    )
    test = photographs(50, 1, several=False)
    with pytest.raises(UserError, match="outside of each sample: no image of any class"):
        downstream.run("low_shot", train, test, shots=[8])
    assert (
        downstream.run("low_shot", train, test, shots=[8], val=photographs(50, 2, several=False))[
            0
        ]["value"]
        > 0.3
    )
    assert len(NAMES) == 4

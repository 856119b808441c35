import dataclasses

import numpy as np
import pytest
from photographs import photographs
from sklearn.linear_model import Ridge

from tfssl import downstream
from tfssl.downstream.protocols import few_shot
from tfssl.errors import UserError


@pytest.mark.parametrize("n, dims", [(10, 40), (40, 10), (1, 5)])
def test_one_decomposition_solves_all_ridges(n, dims):
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=[n, dims]) + 2, rng.normal(size=[7, dims])
    y = np.eye(3)[rng.integers(0, 3, n)]
    ridges = [1e-3, 0.1, 10.0]
    answers = few_shot.ridge_regression(x, y, ridges)(queries)
    for ridge, found in zip(ridges, answers):
        centred = x - x.mean(0)
        weights = np.linalg.solve(
            centred.T @ centred + ridge * np.eye(dims), centred.T @ (y - y.mean(0))
        )
        naive = (queries - x.mean(0)) @ weights + y.mean(0)
        np.testing.assert_allclose(found, naive, atol=1e-8)
        np.testing.assert_allclose(found, Ridge(ridge).fit(x, y).predict(queries), atol=1e-8)


def test_episodes_learn_and_ask_what_they_should(monkeypatch):
    train, test = photographs(300, 0, several=False), photographs(200, 1, several=False)
    seen = []

    def record(x, y, ridges):
        def answer(queries):
            seen.append((x, y, queries))
            return np.zeros((len(ridges), len(queries), y.shape[1]))

        return answer

    monkeypatch.setattr(few_shot, "ridge_regression", record)
    downstream.run("few_shot", train, test, shots=[3], ways=3, queries=5, episodes=12)
    of = {part.source: few_shot.unit(part.endpoints["x"]) for part in (train, test)}
    validation, rest = seen[:2], seen[2:]
    assert (len(validation), len(rest)) == (2, 12)
    questions = set()
    for i, (x, y, queries) in enumerate(seen):
        learned = [np.flatnonzero((of["set 0"] == row).all(1))[0] for row in x]
        asked_of = "set 0" if i < 2 else "set 1"
        asked = [np.flatnonzero((of[asked_of] == row).all(1))[0] for row in queries]
        assert len(set(learned)) == 9 and y.sum(0).tolist() == [3, 3, 3]
        assert len(set(asked)) == len(asked) == 15
        if i < 2:
            assert not set(learned) & set(asked)
        classes = train.labels[learned].reshape(3, 3)
        assert (classes == classes[:, :1]).all() and len(set(classes[:, 0])) == 3
        labels = (train if i < 2 else test).labels[asked]
        np.testing.assert_array_equal(labels, np.repeat(classes[:, 0], 5))
        questions.add(tuple(asked))
    assert len(questions) == 14  # no episode is another's copy


def test_accuracy_by_hand():
    """All classes, all questions: one ordinary classifier for each sample."""
    train, test = photographs(300, 0, several=False), photographs(200, 1, several=False)
    (result,) = downstream.run(
        "few_shot", train, test, shots=[8], ways=0, queries=0, episodes=6, ridges=[0.5]
    )
    values = []
    for episode in range(6):
        rng = np.random.default_rng([0, 7, 8, episode])
        classes = rng.choice(range(4), 4, replace=False)
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(train.labels == c), 8, replace=False) for c in classes]
        )
        fit = Ridge(0.5).fit(
            few_shot.unit(train.endpoints["x"][rows]), np.eye(4)[train.labels[rows]]
        )
        values.append(
            np.mean(fit.predict(few_shot.unit(test.endpoints["x"])).argmax(1) == test.labels)
        )
    assert result["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert result["interval"] == pytest.approx(1.96 * np.std(values) / np.sqrt(6))
    assert (result["ways"], result["chance"], result["metric"]) == (4, 0.25, "accuracy")


def test_more_images_and_fewer_classes_are_easier():
    train, test = photographs(400, 0, several=False), photographs(300, 1, several=False)
    settings = {"shots": [1, 5, 20], "episodes": 60}
    results = {
        ways: downstream.run("few_shot", train, test, ways=ways, **settings) for ways in (2, 0)
    }
    for found in results.values():
        assert found[0]["chance"] < found[0]["value"] < found[1]["value"] < found[2]["value"]
    assert all(two["value"] > all_["value"] for two, all_ in zip(*results.values()))


@pytest.mark.parametrize("with_val", [True, False])
def test_nothing_is_chosen_on_test(with_val):
    train, test = photographs(200, 0, several=False), photographs(100, 1, several=False)
    val = photographs(80, 2, several=False) if with_val else None
    order = np.random.default_rng(0).permutation(100)
    other = dataclasses.replace(test, labels=test.labels[order])
    one, two = (
        downstream.run("few_shot", train, each, val=val, episodes=60) for each in (test, other)
    )
    assert [(r["ridge"], r["val_value"]) for r in one] == [
        (r["ridge"], r["val_value"]) for r in two
    ]
    assert one[1]["value"] > two[1]["value"] + 0.1
    assert one[0]["chosen_on"] == ("set 2" if with_val else "val_fraction 0.2 of set 0")


def test_one_ridge_needs_no_choice():
    train, test = photographs(200, 0, several=False), photographs(100, 1, several=False)
    (result,) = downstream.run(
        "few_shot", train, test, shots=5, ridges=1.0, val_fraction=0, episodes=20
    )
    assert (result["val_value"], result["chosen_on"], result["ridge"]) == (None, None, 1.0)
    with pytest.raises(UserError, match="no validation images of two classes"):
        downstream.run("few_shot", train, test, val_fraction=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shots": [90]}, "shots=90: class boat has .* images to learn from in set 0"),
        ({"shots": "some"}, "shots=some: give"),
        ({"ways": 1}, "ways=1"),
        ({"queries": -1}, "queries=-1"),
        ({"episodes": 0}, "episodes=0"),
        ({"ridges": "0,1"}, "ridges=0,1: give"),
    ],
)
def test_bad_settings(settings, message):
    train, test = photographs(100, 0, several=False), photographs(50, 1, several=False)
    with pytest.raises(UserError, match=message) as error:
        downstream.run("few_shot", train, test, **{"episodes": 5, **settings})
    assert "\n" not in str(error.value)


def test_one_class_is_no_question():
    train, test = photographs(100, 0, several=False), photographs(50, 1, several=False)
    only = test.labels == 2
    test = dataclasses.replace(
        test,
        endpoints={"x": test.endpoints["x"][only]},
        labels=test.labels[only],
        index=np.arange(only.sum()),
    )
    with pytest.raises(UserError, match="set 1 shows 1 class"):
        downstream.run("few_shot", train, test, ridges=1.0)

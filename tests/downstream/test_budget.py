"""What fits into a time: estimates against protocols of a known price, and what is made of them."""

import time

import numpy as np
import pytest

from tfssl import downstream
from tfssl.downstream import budget
from tfssl.downstream import runner as measure
from tfssl.downstream.features.extract import Features


def test_prices_are_those_that_were_paid():
    """A protocol that sleeps: 20 ms for an endpoint, 0.1 ms for a row, 0.02 ms for a row in an epoch."""

    def run(rows):
        return lambda settings: time.sleep(0.02 + 1e-4 * rows + 2e-5 * rows * budget.passes("mlp", settings)), rows

    settings = {"epochs": 180, "l2": "select"}
    price = budget.measured("mlp", settings, [run(100), run(200)])
    assert price.once == pytest.approx(0.02, abs=0.015)
    assert price.row == pytest.approx(1e-4, rel=0.5) and price.each == pytest.approx(2e-5, rel=0.3)
    assert budget.passes("mlp", settings) == 180 * 5  # four l2 at once, and then one


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def test_what_is_decided(clock):
    said, notes = [], []
    asked = {
        "logistic": {"a": 1},
        "svm": {"costs": "vissl", "folds": 3},
        "mlp": {"epochs": 180},
        "knn": {"k": 20},
        "few_shot": {},
    }
    of = budget.Budget(10, 2, ["knn", "svm", "mlp", "few_shot"], kept=["few_shot"], tell=said.append, note=notes.append)

    def permit(protocol, full, quick, lasts):
        def estimate(settings):
            return quick if any(settings.get(k) != asked[protocol].get(k) for k in settings) else full

        found = of.permit(protocol, asked[protocol], lambda: estimate)
        clock.now += lasts
        return found

    assert permit("logistic", 1e9, 1e9, 1000) is asked["logistic"]  # named: never cut, and not counted
    assert (
        permit("knn", 100, 100, 60) is asked["knn"]
    )  # fits into a fourth of ten minutes: 2 modules of a minute are then gone
    svm = permit("svm", 500, 100, 120)  # more than a third of what is left
    assert svm == {**asked["svm"], **budget.QUICK["svm"]} and of.quick("svm", asked["svm"])["folds"] == 2
    assert permit("few_shot", 400, 1, 0) is None  # the user's own settings: as they are, or not
    assert permit("mlp", 1000, 250, 0) is None  # four minutes are left
    assert [note.partition(": ")[0] for note in notes] == ["quick settings", *["left out for lack of time"] * 2]
    assert (
        "svm: train_labels=1000" in notes[0]
        and "about 8.3 min in full, 1.7 min with quick settings; 8.0 min of --budget_minutes=10" in notes[0]
    )
    assert said == ["knn: 1.7 min estimated (full settings)", "svm: 1.7 min estimated (quick settings)"]
    # The second module: what was decided on the first.
    assert of.permit("svm", asked["svm"], None) is svm and of.permit("mlp", asked["mlp"], None) is None


def test_quick_settings_are_settings_of_the_protocols():
    import inspect

    for protocol, settings in budget.QUICK.items():
        function = getattr(downstream, protocol).run
        known = set(inspect.signature(function).parameters) | {"epochs", "train_labels"}
        assert set(settings) <= known, protocol


def test_protocols_in_a_budget_say_how_they_were_shortened(monkeypatch):
    """1,500 rows: where the time is short, the perceptron learns from 1,000 for 60 epochs, and its results say so."""
    monkeypatch.setattr(budget, "measured", lambda *_: budget.Price(0.1, 0.0, 1e-6))
    rng = np.random.default_rng(0)

    def features(n, seed):
        y = np.arange(n) % 3
        return Features({"x": rng.normal(size=[n, 4]).astype(np.float32) + y[:, None]}, y, np.arange(n), num_classes=3)

    notes = []
    settings = {
        "mlp": {"epochs": 400, "decay_epochs": (200,), "hidden": 8, "l2": "select", "batch_size": 64},
        "knn": {"k": 3},
    }
    time_for = budget.Budget(1e-3, 1, ["mlp"], note=notes.append)
    time_for.decided["other"] = {}  # not the first, which is measured in any case
    common = {"endpoints": ["x"], "val_fraction": 0.2, "seed": 0}
    results = list(
        measure.on_features(settings, features(1500, 0), features(300, 1), optional=["mlp"], budget=time_for, **common)
    )
    assert [r["protocol"] for r in results] == ["knn"] and "quick" not in results[0]
    assert notes[0].startswith("left out for lack of time: mlp: about ")
    time_for = budget.Budget(1e-3, 1, ["mlp"], note=notes.append)
    *_, result = measure.on_features(
        {"mlp": settings["mlp"]}, features(1500, 0), features(300, 1), optional=["mlp"], budget=time_for, **common
    )
    assert (result["train_labels"], result["epochs"], result["quick"]["epochs"]) == (1000, 60, 60)
    assert notes[1].startswith(
        "quick settings: mlp: train_labels=1000, epochs=60, decay_epochs=20,40, l2=0.0001: about "
    )

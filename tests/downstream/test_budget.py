"""What fits into a time: estimates against protocols of a known price, and what is made of them."""

import dataclasses

import numpy as np
import pytest
import tiny_modules

import tfssl
from tfssl.downstream import budget, runner
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.protocols.fcos import FCOS
from tfssl.downstream.protocols.few_shot import FewShot
from tfssl.downstream.protocols.knn import KNN
from tfssl.downstream.protocols.logistic import Logistic
from tfssl.downstream.protocols.low_shot import LowShot
from tfssl.downstream.protocols.mlp import MLP
from tfssl.downstream.protocols.segmentation import Segmentation
from tfssl.downstream.protocols.svm import SVM
from tfssl.errors import UserError
from tfssl.hub import load as modules


def raise_user_error():
    raise UserError("the sample is too small")


def test_passes():
    assert MLP().passes() == 180 * 5  # four l2 at once, and then one
    assert MLP(l2=0.1, epochs=10, decay_epochs=()).passes() == 20
    assert SVM(costs="1,2", folds=5).passes() == 10
    assert LowShot(shots=(1, 2, 4), samples=2, costs="vissl").passes() == 66
    assert (
        FewShot(episodes=30).passes() == 60
        and KNN().passes() == 1
        and Segmentation().passes() == 60
    )


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


def test_prices_are_those_that_were_paid(clock):
    """A protocol that takes 20 ms for an endpoint, 0.1 ms for a row, 0.02 ms for a row in an
    epoch."""

    def run(rows):
        def spend(protocol):
            clock.now += 0.02 + 1e-4 * rows + 2e-5 * rows * protocol.passes()

        return spend, rows

    price = budget.measured(MLP(), [run(100), run(200)])
    assert (price.once, price.row, price.each) == pytest.approx((0.02, 1e-4, 2e-5), rel=1e-6)


def test_what_is_decided(clock, monkeypatch):
    said, notes = [], []
    asked = {p.name: p for p in (Logistic(), SVM(), MLP(), KNN(), FewShot())}
    may = [asked[name] for name in ("knn", "svm", "mlp", "few_shot")]
    of = budget.Budget(10, 2, may, kept=["few_shot"], tell=said.append, note=notes.append)

    def permit(name, full, quick, lasts):
        estimate = lambda extent: quick if extent.quick else full  # noqa: E731
        monkeypatch.setattr(of, "estimate", lambda *_: estimate)
        extent = of.permit(asked[name], None, ["x"])
        clock.now += lasts
        return extent

    assert (
        permit("logistic", 1e9, 1e9, 1000).protocol is asked["logistic"]
    )  # named: never cut, and not counted
    # It fits into a fourth of ten minutes: 2 modules of a minute are then gone.
    assert permit("knn", 100, 100, 60) == budget.Extent(asked["knn"])
    svm = permit("svm", 500, 100, 120)  # more than a third of what is left
    assert svm.protocol.settings == asked["svm"].replace(costs="0.1,1,10,100", folds=2).settings
    assert (svm.labels, svm.quick) == (1000, SVM.quick)
    assert permit("few_shot", 400, 1, 0) is None  # the user's own settings: as they are, or not
    assert permit("mlp", 1000, 250, 0) is None  # four minutes are left
    assert [note.partition(": ")[0] for note in notes] == [
        "quick settings",
        *["left out for lack of time"] * 2,
    ]
    assert (
        "svm: train_labels=1000" in notes[0]
        and "about 8.3 min in full, 1.7 min with quick settings; 8.0 min of --budget_minutes=10"
        in notes[0]
    )
    assert said == [
        "knn: 1.7 min estimated (full settings)",
        "svm: 1.7 min estimated (quick settings)",
    ]
    # The second module: what was decided on the first.
    assert (
        of.permit(asked["svm"], None, ["x"]) is svm and of.permit(asked["mlp"], None, ["x"]) is None
    )


def test_quick_settings_that_were_asked_for_are_not_told():
    extent = budget.Extent.quickly(LowShot(samples=2, shots=(1, 2)))
    assert set(extent.quick) == {"shots", "costs"} and extent.labels is None
    assert extent.protocol.shots == [1, 4, 16, 64]


def test_protocols_in_a_budget_say_how_they_were_shortened(monkeypatch):
    """1,500 rows: where the time is short, the perceptron learns from 1,000 for 60 epochs, and its
    results say so."""
    monkeypatch.setattr(budget, "measured", lambda *_: budget.Price(0.1, 0.0, 1e-6))
    rng = np.random.default_rng(0)

    def features(n, seed):
        y = np.arange(n) % 3
        return Features(
            {"x": rng.normal(size=[n, 4]).astype(np.float32) + y[:, None]},
            y,
            np.arange(n),
            num_classes=3,
        )

    notes = []
    mlp, knn = MLP(epochs=400, decay_epochs=(200,), hidden=8, batch_size=64), KNN(k=3)
    data = Data(features(1500, 0), features(300, 1))
    time_for = budget.Budget(1e-3, 1, [mlp], note=notes.append)
    time_for.decided["other"] = {}  # not the first, which is measured in any case
    results = list(runner.measure([mlp, knn], data, optional=["mlp"], budget=time_for))
    assert [r.protocol for r in results] == ["knn"] and "quick" not in results[0]
    assert notes[0].startswith("left out for lack of time: mlp: about ")
    time_for = budget.Budget(1e-3, 1, [mlp], note=notes.append)
    (result,) = runner.measure([mlp], data, optional=["mlp"], budget=time_for)
    assert (result["train_labels"], result["epochs"], result["quick"]["epochs"]) == (1000, 60, 60)
    assert notes[1].startswith(
        "quick settings: mlp: train_labels=1000, epochs=60, decay_epochs=20,40, l2=0.0001: about "
    )


def test_estimates_are_made_by_trials_on_samples(tmp_path, monkeypatch):
    """Of features on at most 1,000 rows, of maps on at most eight images; of all modules, but
    pixels once."""
    rng, seen = np.random.default_rng(0), []

    def features(n):
        y = np.arange(n) % 3
        return Features(
            {"x": rng.normal(size=[n, 4]).astype(np.float32) + y[:, None]},
            y,
            np.arange(n),
            num_classes=3,
        )

    measure = Protocol.measure
    record = lambda self, data, *names: seen.append(data.train) or measure(self, data, *names)  # noqa: E731
    monkeypatch.setattr(Protocol, "measure", record)
    svm, data = SVM(costs="1,10,100", folds=2), Data(features(3000), features(600))
    of = budget.Budget(5, 2, [svm], tell=lambda text: None)
    seconds = of.estimate(svm, data, ["x"], ["all"])
    assert max(len(train.labels) for train in seen) == 1000
    assert 0 < seconds(budget.Extent(svm.replace(costs="1"))) <= seconds(budget.Extent(svm)) < 600
    assert of.permit(svm, data, ["x"]).protocol is svm

    # of many classes a part, with rows enough of each to be chosen on, and a price for all
    seen.clear()
    many = Features(
        {"x": rng.normal(size=[6000, 4]).astype(np.float32)},
        np.arange(6000) % 300,
        np.arange(6000),
        num_classes=300,
    )
    for protocol in (Logistic(), FewShot(episodes=2), svm):
        seconds = of.estimate(protocol, Data(many, many), ["x"], ["all"])
        assert 0 < seconds(budget.Extent(protocol)) < 1e4, protocol
    kept = [np.unique(train.labels, return_counts=True) for train in seen]
    assert all(len(labels) == 25 and counts.min() >= 20 for labels, counts in kept)
    assert budget._of_features(svm, Data(many, many), ["x"], ["all"]).classes == 12

    # what cannot be tried is not free
    monkeypatch.setattr(budget, "measured", lambda *_: raise_user_error())
    seconds = of.estimate(svm, Data(many, many), ["x"], ["all"])
    assert seconds(budget.Extent(svm)) == np.inf and budget._clock(np.inf) == "an unknown time"
    assert seconds(budget.Extent.quickly(svm)) == 0
    one = dataclasses.replace(many, labels=np.zeros(6000, int), num_classes=1)
    assert of.estimate(svm, Data(one, one), ["x"], ["all"])(budget.Extent(svm)) == 0
    monkeypatch.undo()
    monkeypatch.setattr(Protocol, "measure", record)

    seen.clear()
    module = modules.load(tiny_modules.save_ours(tmp_path))
    train, test = tfssl.open_source("glyphs", "train[:30]"), tfssl.open_source("glyphs", "test[:9]")
    dense, data = Segmentation(epochs=2), Data(train, test, module=module)
    seconds = of.estimate(dense, data, ["stem", "pixels"], ["all"])
    assert max(train.num_examples for train in seen) == 8
    assert 0 < seconds(budget.Extent(dense)) < 600
    monkeypatch.setattr(budget, "measured", lambda *_: budget.Price(1.0, 0.0, 0.0))
    assert of.estimate(dense, data, ["stem", "pixels"], ["all"])(budget.Extent(dense)) == 2 + 1

    # an endpoint of several maps has as many values as they have together
    fcos = FCOS(epochs=2)
    (joined,) = fcos.endpoints(data)
    assert joined == "stem+block"
    dims = budget._of_maps(fcos, data, [joined]).dims[joined]
    assert dims == sum(budget._of_maps(dense, data, ["stem", "block"]).dims.values())

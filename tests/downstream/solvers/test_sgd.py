import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocols.linear_sgd import Linear
from tfssl.downstream.solvers import sgd
from tfssl.errors import UserError


def test_every_epoch_takes_every_row_once():
    rows = np.array([3, 5, 8, 9, 11, 20, 21])
    batches = sgd.shuffled(rows, 3, seed=1)
    order = np.concatenate(
        [next(batches) for _ in range(7)]
    )  # three epochs, which batches run across
    for epoch in range(3):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(rows)
    assert not np.array_equal(order[:7], order[7:14])
    again = sgd.shuffled(rows, 3, seed=1)
    assert np.array_equal(order, np.concatenate([next(again) for _ in range(7)]))
    other = sgd.shuffled(rows, 3, seed=2)
    assert not np.array_equal(order, np.concatenate([next(other) for _ in range(7)]))


def test_features_stay_on_disk(tmp_path):
    """A batch gathers its own rows of a memory map and no others."""

    class Watched(np.memmap):
        def __getitem__(self, key):
            read.append(np.size(key))
            return np.asarray(super().__getitem__(key))

    read = []
    values = np.random.default_rng(0).normal(size=[1000, 4]).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r").view(Watched)
    batches = sgd.feature_batches(
        Features({"x": mapped}, np.zeros(1000, int), np.arange(1000)), ["x"], np.arange(1000), 8, 0
    )
    for _ in range(3):
        inputs, rows = next(batches)
        np.testing.assert_array_equal(inputs["x"], values[rows])
    assert read == [8, 8, 8]


def test_weights_are_glorots_and_their_own():
    one, two = Linear("a", 300, 50, seed=3), Linear("b", 300, 50, seed=3)
    limit = np.sqrt(6 / 350)
    kernel = one.kernel.numpy()
    assert abs(kernel).max() <= limit and kernel.std() == pytest.approx(
        limit / np.sqrt(3), rel=0.02
    )
    assert not one.bias.numpy().any()
    assert abs(np.corrcoef(kernel.ravel(), two.kernel.numpy().ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(kernel, Linear("a", 300, 50, seed=3).kernel)


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_accuracies(monkeypatch, resident):
    monkeypatch.setattr(sgd, "_RESIDENT", resident)
    monkeypatch.setattr(
        "tfssl.downstream.solvers.lbfgs._CHUNK_VALUES", 3 * 7
    )  # chunks of seven rows
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=[50, 3]), np.array([2, 4, 9])
    features = Features({"a": x, "b": -x}, classes[rng.integers(0, 3, 50)], np.arange(50))
    heads = [Linear(name, 3, 3, dtype="float64") for name in ("a", "b", "a")]
    heads[2].kernel.assign(-heads[0].kernel)
    rows = np.array([*range(10, 30), 44, 49])
    expected = [
        np.mean(
            classes[(features.endpoints[h.endpoint][rows] @ h.kernel.numpy()).argmax(1)]
            == features.labels[rows]
        )
        for h in heads
    ]
    assert sgd.Held(features, rows, ["a", "b"], classes).accuracies(heads) == pytest.approx(
        expected
    )
    assert sgd.Held(features, rows[:0], ["a", "b"], classes).accuracies(heads) == [None] * 3


def test_best_and_last_epoch():
    curve = [[1, 0.5, 0.1], [2, 0.7, 0.2], [3, 0.7, 0.3], [4, 0.6, 0.9]]
    last, best = sgd.reported(curve, "last"), sgd.reported(curve, "best")
    assert (last["epoch"], last["val_value"], last["value"]) == (4, 0.6, 0.9)
    assert (best["epoch"], best["val_value"], best["value"]) == (
        2,
        0.7,
        0.2,
    )  # the first of equals; test has no say


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"decay_epochs": (5, 3)}, "decay_epochs=5,3: they have to rise"),
        ({"decay_epochs": (5, 10)}, "within the 10 epochs"),
        ({"decay_epochs": ["half"]}, "give numbers of epochs"),
    ],
)
def test_bad_plans(settings, message):
    with pytest.raises(UserError, match=message):
        sgd.check(
            "mlp",
            **{
                "epochs": 10,
                "decay_epochs": (3, 5),
                "batch_size": 8,
                "learning_rate": 0.1,
                **settings,
            },
        )
    assert sgd.check("mlp", 10, ["2.5", "5"], 8, 0.1) == (2.5, 5.0)


def test_progress_says_rate_and_time_left(monkeypatch, capsys):
    clock = iter(np.arange(0, 1e6, 60.0))
    monkeypatch.setattr(sgd.time, "time", lambda: next(clock))
    progress = sgd.Progress("heads", sgd.SGDSettings(10, (), 600, 0.1), 10)
    for _ in range(3):
        progress.step(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(
        line.startswith("heads: epoch 1 of 10, ")
        and " images/s, " in line
        and line.endswith(" left")
        for line in lines
    )


def test_the_rate_falls_after_the_epochs_of_decay():
    """One weight with a gradient of one half: the steps are the rates, summed up by the
    momentum."""
    x = np.ones([4, 1])
    head = Linear("x", 1, 2, dtype="float64")
    head.kernel.assign([[0.0, 0.0]])
    plan = sgd.SGDSettings(
        4, (2.0, 3.0), 4, 1e-9, momentum=0.0
    )  # so small that the gradient stays what it is
    seen = []
    batches = sgd.feature_batches(
        Features({"x": x}, np.zeros(4, int), np.arange(4)), ["x"], np.arange(4), 4, 0
    )
    sgd.train(
        [head],
        batches,
        lambda v: v,
        np.zeros(4, int),
        np.ones(4, bool),
        plan,
        4,
        lambda: [seen.append(head.kernel.numpy()[0, 0])],
    )
    steps = np.diff([0.0, *seen]) / 1e-9
    np.testing.assert_allclose(
        steps, [0.5, 0.5, 0.5, 0.05], rtol=1e-5
    )  # step 2 is still the first rate, as in TensorFlow


def test_a_network_that_diverges_says_so():
    class Exploding(Linear):
        def penalty(self):
            return -1e3 * tf.exp(tf.reduce_sum(self.kernel**2))

    head = Exploding("x", 2, 2)
    features = Features({"x": np.ones([4, 2], np.float32)}, np.array([0, 1, 0, 1]), np.arange(4))
    batches = sgd.feature_batches(features, ["x"], np.arange(4), 4, 0)
    _, losses, _ = sgd.train(
        [head],
        batches,
        lambda v: v,
        features.labels,
        np.ones(4, bool),
        sgd.SGDSettings(5, (), 4, 1.0),
        4,
        lambda: [],
    )
    assert losses == [None]

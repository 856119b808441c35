import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from tfssl import downstream
from tfssl.data.ops.draws import Draws
from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocols import mlp
from tfssl.downstream.solvers import sgd
from tfssl.errors import UserError

SMALL = {"hidden": 12, "epochs": 5, "decay_epochs": (2, 4), "batch_size": 16, "learning_rate": 0.1}


def xor(n, seed, dtype=np.float32):
    """Two classes that no line separates: the signs of two features agree, or not."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[n, 2])
    x += 0.3 * np.sign(x)
    return Features({"x": x.astype(dtype)}, (x[:, 0] * x[:, 1] > 0).astype(int), np.arange(n))


def naive(x, y, weights, l2, masks, batches, rates):
    """Back-propagation written out: weights = [V, a, W, b]."""
    velocity = [np.zeros_like(w) for w in weights]
    for rows, rate, mask in zip(batches, rates, masks):
        V, a, W, b = weights
        before = x[rows] @ V + a
        hidden = np.maximum(before, 0) * mask / 0.5
        logits = hidden @ W + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        p /= len(rows)
        back = p @ W.T * mask / 0.5 * (before > 0)
        gradients = [
            x[rows].T @ back + 2 * l2 * V,
            back.sum(0),
            hidden.T @ p + 2 * l2 * W,
            p.sum(0),
        ]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients)]
        weights = [w - rate * v for w, v in zip(weights, velocity)]
    return weights


def test_equals_back_propagation_by_hand(monkeypatch):
    made, build = [], mlp.Perceptron
    monkeypatch.setattr(mlp, "Perceptron", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    train = xor(60, 0, np.float64)
    (result,) = downstream.run("mlp", train, train, l2=0.01, seed=3, **SMALL)
    start = build("x", 2, 2, hidden=12, seed=3, dtype="float64")
    part = partition.split(train, train, seed=3)
    assert len(made) == 2  # without the validation part, and with it
    for network, rows in zip(made, (part.fit, part.rows)):
        steps, generator = len(rows) // 16, sgd.shuffled(rows, 16, 3)
        batches = [next(generator) for _ in range(5 * steps)]
        rates = [
            0.1 * (1 if s <= 2 * steps else 0.1 if s <= 4 * steps else 0.01)
            for s in range(5 * steps)
        ]
        masks = []
        for s in range(5 * steps):
            number = tf.range(16 * s, 16 * (s + 1), dtype=tf.int64)
            masks.append(
                Draws({"number": number, "seed": tf.fill([16], tf.constant(3, tf.int64))})
                .keep(0.5, (12,))
                .numpy()
            )
        assert 0.4 < np.mean(masks) < 0.6 and not np.array_equal(masks[0], masks[1])
        weights = [v.numpy() for v in (start.hidden, start.hidden_bias, start.kernel, start.bias)]
        weights = naive(train.endpoints["x"], train.labels, weights, 0.01, masks, batches, rates)
        for ours, theirs in zip(
            (network.hidden, network.hidden_bias, network.kernel, network.bias), weights
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)  # the rate is float32
    V, a, W, b = weights
    predicted = (np.maximum(train.endpoints["x"] @ V + a, 0) @ W + b).argmax(
        1
    )  # no dropout, no factor
    assert result["value"] == pytest.approx(np.mean(predicted == train.labels))


def test_it_solves_what_no_linear_classifier_does():
    train, test = xor(400, 0), xor(1000, 1)
    (linear,) = downstream.run("logistic", train, test)
    settings = {
        "hidden": 100,
        "epochs": 40,
        "decay_epochs": (30,),
        "batch_size": 64,
        "learning_rate": 0.1,
    }
    (result,) = downstream.run("mlp", train, test, **settings)
    assert linear["value"] < 0.6 and result["value"] > 0.95 and result["val_value"] > 0.9
    assert result["l2"] in mlp.L2 and result["l2_rule"] == "select"
    assert len(result["curve"]) == 40 and result["curve"][-1] == [
        40,
        result["val_value"],
        result["value"],
    ]
    (again,) = downstream.run("mlp", train, test, **settings)
    assert (
        again["curve"] == result["curve"] and again["loss"] == result["loss"]
    )  # the seed says all


def test_published_l2():
    train = xor(60, 0)
    train.num_classes = 5  # of which two occur
    (result,) = downstream.run("mlp", train, train, l2="published", **SMALL)
    assert result["l2"] == pytest.approx(100 / (2 * 5)) and result["l2_rule"] == "published"


@pytest.mark.parametrize("own", [False, True])
def test_l2_is_selected_on_validation(own, monkeypatch):
    monkeypatch.setattr(mlp, "L2", (1.0, 1e-2, 1e-4))
    train, test, val = xor(80, 0), xor(100, 1), xor(70, 2)
    settings = {**SMALL, "hidden": 40, "val": val if own else None}
    (result,) = downstream.run("mlp", train, test, **settings)
    singles = {l2: downstream.run("mlp", train, test, l2=l2, **settings)[0] for l2 in mlp.L2}
    assert result["val_value"] == max(r["val_value"] for r in singles.values())
    assert result["curve"] == singles[result["l2"]]["curve"]  # company changed nothing
    other = Features({"x": -2 * test.endpoints["x"]}, 1 - test.labels, test.index)
    (changed,) = downstream.run("mlp", train, other, **settings)
    assert (changed["l2"], changed["val_value"]) == (result["l2"], result["val_value"])


def test_standardize():
    train, test = xor(100, 0), xor(100, 1)
    big = [Features({"x": 1000 * f.endpoints["x"] + 500}, f.labels, f.index) for f in (train, test)]
    (plain,) = downstream.run("mlp", train, test, l2=1e-3, standardize=True, **SMALL)
    (scaled,) = downstream.run("mlp", *big, l2=1e-3, standardize=True, **SMALL)
    assert scaled["value"] == pytest.approx(plain["value"], abs=0.02)
    assert scaled["loss"] == pytest.approx(plain["loss"], rel=1e-3)


@pytest.mark.parametrize("protocol", ["mlp", "linear_sgd"])
def test_replicas_give_the_networks_of_one_device(protocol, replicas, monkeypatch):
    """In double precision, of batches that they share. Run again with four devices by
    tests/test_four_replicas.py."""
    made = []
    layer = sgd.Readout.layer
    monkeypatch.setattr(
        sgd.Readout, "layer", lambda self, *a: made.append(layer(self, *a)) or made[-1]
    )
    settings = {**SMALL, "l2": 1e-3} if protocol == "mlp" else {"augment": False, "epochs": 5}
    settings |= {"decay_epochs": (2, 4), "batch_size": 16}
    train, test = xor(100, 0, np.float64), xor(80, 1, np.float64)
    (alone,) = downstream.run(protocol, train, test, **settings)
    with replicas.scope():
        (together,) = downstream.run(protocol, train, test, **settings)
        with pytest.raises(UserError, match="does not divide over .* replicas"):
            downstream.run(protocol, train, test, **{**settings, "batch_size": 15})
    assert together["curve"] == alone["curve"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-9)
    ones, others = made[: len(made) // 2], made[len(made) // 2 :]
    assert len(ones) == (4 if protocol == "mlp" else 2)  # with the validation part, and without
    for one, other in zip(ones, others):
        for v, w in zip(one, other):
            np.testing.assert_allclose(w.numpy(), v.numpy(), rtol=1e-9, atol=1e-12)


def test_the_cores_of_a_tpu_share_a_batch_where_it_divides(replicas, monkeypatch):
    """By the strategy of the features, of which the current one is none."""
    train, test = xor(100, 0, np.float64), xor(80, 1, np.float64)
    alone = downstream.run("mlp", train, test, l2=1e-3, **SMALL)[0]
    train = dataclasses.replace(train, images=types.SimpleNamespace(strategy=replicas))
    assert sgd.strategy_for(train, 16) is tf.distribute.get_strategy()  # devices that are no TPU
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type(replicas))
    assert sgd.strategy_for(train, 16) is replicas
    assert sgd.strategy_for(train, 15) is tf.distribute.get_strategy()
    together = downstream.run("mlp", train, test, l2=1e-3, **SMALL)[0]
    assert together["curve"] == alone["curve"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-9)


def test_half_precision_on_disk(tmp_path):
    train, test = xor(200, 0), xor(200, 1)
    np.save(tmp_path / "x.npy", train.endpoints["x"].astype(np.float16))
    mapped = Features({"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, train.labels, train.index)
    full, half = (downstream.run("mlp", f, test, l2=1e-3, **SMALL)[0] for f in (train, mapped))
    assert half["loss"] == pytest.approx(full["loss"], rel=1e-2)


def test_bad_settings():
    train = xor(60, 0)
    for settings, message in [
        ({"l2": "strong"}, "l2='strong'"),
        ({"hidden": 0}, "hidden=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"val_fraction": 0}, "l2=select needs labels to choose on, and val_fraction=0"),
        ({"train_labels": 2}, "l2=select.*2 labels are too few"),
        ({"decay_epochs": (200,)}, "within the 180 epochs"),
    ]:
        with pytest.raises(UserError, match=message):
            downstream.run("mlp", train, train, **settings)

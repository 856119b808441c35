import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import downstream
from tfssl.downstream import partition
from tfssl.downstream.features import extract as extraction
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocols import linear_sgd
from tfssl.downstream.solvers import resume as state
from tfssl.downstream.solvers import sgd
from tfssl.errors import UserError
from tfssl.hub import load as modules

SHORT = {"epochs": 6, "decay_epochs": (3, 5), "batch_size": 16}


def blobs(n, seed, classes=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=[classes, 5])
    x = centres[labels] + rng.normal(size=[n, 5])
    return Features(
        {"a": x.astype(dtype), "b": (x**2)[:, :3].astype(dtype)},
        labels,
        np.arange(n),
        num_classes=classes,
    )


def naive(x, y, kernel, bias, batches, rates, weight_decay=0.0, fit=None):
    """SGD with momentum, gradients written out by hand."""
    vw, vb = np.zeros_like(kernel), np.zeros_like(bias)
    for rows, rate in zip(batches, rates):
        rows = rows if fit is None else rows[np.isin(rows, fit)]
        logits = x[rows] @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        vw = 0.9 * vw + x[rows].T @ p / len(rows) + weight_decay * kernel
        vb = 0.9 * vb + p.mean(0)
        kernel, bias = kernel - rate * vw, bias - rate * vb
    return kernel, bias


@pytest.mark.parametrize("weight_decay, standardize", [(0.0, False), (0.1, False), (0.0, True)])
def test_equals_sgd_by_hand(weight_decay, standardize):
    train, test = blobs(60, 0), blobs(200, 1)
    (result, _) = downstream.run(
        "linear_sgd",
        train,
        test,
        augment=False,
        weight_decay=weight_decay,
        standardize=standardize,
        **SHORT,
    )
    part = partition.split(train, test)
    x, y, x2 = train.endpoints["a"], train.labels, test.endpoints["a"]
    if standardize:
        x, x2 = (x - x.mean(0)) / x.std(0), (x2 - x.mean(0)) / x.std(0)
    generator = sgd.shuffled(part.rows, 16, 0)
    batches = [next(generator) for _ in range(6 * 3)]
    rates = [0.1 * 16 / 256 * (1 if s <= 9 else 0.1 if s <= 15 else 0.01) for s in range(18)]
    kernel = linear_sgd.Linear("a", 5, 3, dtype="float64").kernel.numpy()
    assert result["learning_rate"] == pytest.approx(0.1 * 16 / 256)
    for fit, rows_of, key in (
        (None, (x2, test.labels), "value"),
        (part.fit, (x[part.val], y[part.val]), "val_value"),
    ):
        w, b = naive(x, y, kernel, np.zeros(3), batches, rates, weight_decay, fit)
        assert result[key] == pytest.approx(np.mean((rows_of[0] @ w + b).argmax(1) == rows_of[1]))
    assert [point[0] for point in result["curve"]] == [1, 2, 3, 4, 5, 6]
    assert result["curve"][-1][1:] == [result["val_value"], result["value"]]


def test_weights_equal_those_by_hand(monkeypatch):
    made, build = [], linear_sgd.Linear
    monkeypatch.setattr(
        linear_sgd, "Linear", lambda *a, **k: made.append(build(*a, **k)) or made[-1]
    )
    train = blobs(60, 0)
    downstream.run(
        "linear_sgd", train, train, endpoints=["a"], augment=False, lr_scaling=0, **SHORT
    )
    part, generator = partition.split(train, train), sgd.shuffled(np.arange(60), 16, 0)
    batches = [next(generator) for _ in range(18)]
    rates = [0.1 * (1 if s <= 9 else 0.1 if s <= 15 else 0.01) for s in range(18)]
    kernel = build("a", 5, 3, dtype="float64").kernel.numpy()
    for head, fit in zip(made, (None, part.fit)):
        w, b = naive(
            train.endpoints["a"], train.labels, kernel, np.zeros(3), batches, rates, fit=fit
        )
        np.testing.assert_allclose(head.kernel, w, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(head.bias, b, rtol=1e-5, atol=1e-8)


def naive_with_batch_norm(x, y, kernel, batches, rates, fit=None, weight_decay=0.1, epsilon=1e-5):
    """Batch normalization with a scale and a shift, Nesterov's momentum; every gradient written
    out. Returns a predictor."""
    w, b = kernel, np.zeros(kernel.shape[1])
    scale, shift = np.ones(x.shape[1]), np.zeros(x.shape[1])
    velocities, seen = [0, 0, 0, 0], []
    for rows, rate in zip(batches, rates):
        rows = rows if fit is None else rows[np.isin(rows, fit)]
        seen.append(x[rows])
        normal = (x[rows] - x[rows].mean(0)) / np.sqrt(x[rows].var(0) + epsilon)
        logits = (normal * scale + shift) @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        p /= len(rows)
        back = p @ w.T
        gradients = [
            (normal * scale + shift).T @ p + weight_decay * w,
            p.sum(0),
            (back * normal).sum(0),
            back.sum(0),
        ]
        velocities = [0.9 * v + g for v, g in zip(velocities, gradients)]
        steps = [rate * (g + 0.9 * v) for g, v in zip(gradients, velocities)]
        w, b, scale, shift = (value - step for value, step in zip((w, b, scale, shift), steps))
    seen = np.concatenate(seen)
    mean, deviation = seen.mean(0), np.sqrt(seen.var(0) + epsilon)
    return w, lambda x: ((x - mean) / deviation * scale + shift) @ w + b


def test_batch_norm_and_nesterov_by_hand(monkeypatch):
    made, build = [], linear_sgd.Linear
    monkeypatch.setattr(
        linear_sgd, "Linear", lambda *a, **k: made.append(build(*a, **k)) or made[-1]
    )
    train, test = blobs(60, 0), blobs(200, 1)
    settings = {
        "nesterov": True,
        "batch_norm": "learned",
        "init_std": 0.01,
        "weight_decay": 0.1,
        "lr_scaling": 0,
    }
    (result,) = downstream.run(
        "linear_sgd", train, test, endpoints=["a"], augment=False, **settings, **SHORT
    )
    part, generator = partition.split(train, test), sgd.shuffled(np.arange(60), 16, 0)
    batches = [next(generator) for _ in range(18)]
    rates = [0.1 * (1 if s <= 9 else 0.1 if s <= 15 else 0.01) for s in range(18)]
    kernel = build("a", 5, 3, init_std=0.01, dtype="float64").kernel.numpy()
    x, y = train.endpoints["a"], train.labels
    for head, fit in zip(made, (None, part.fit)):
        w, predict = naive_with_batch_norm(x, y, kernel, batches, rates, fit)
        np.testing.assert_allclose(head.kernel, w, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(
            head(test.endpoints["a"]), predict(test.endpoints["a"]), rtol=1e-5, atol=1e-8
        )
        held = (test.endpoints["a"], test.labels) if fit is None else (x[part.val], y[part.val])
        value = np.mean(predict(held[0]).argmax(1) == held[1])
        assert result["value" if fit is None else "val_value"] == pytest.approx(value)


def test_normal_weights():
    kernel = linear_sgd.Linear("a", 300, 50, init_std=0.01).kernel.numpy()
    assert kernel.std() == pytest.approx(0.01, rel=0.02) and abs(kernel).max() > 0.03


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_mends_scales(dtype):
    """Features of wild means and scales, which plain SGD diverges or stands still on."""
    train, test = blobs(300, 0, dtype=dtype), blobs(200, 1, dtype=dtype)
    for part in (train, test):
        part.endpoints = {
            "a": part.endpoints["a"] * dtype([1e3, 1, 1e-3, 1, 10]) + dtype([5e3, 0, 1, 0, -100])
        }
    settings = {
        "augment": False,
        "lr_scaling": 0,
        "epochs": 20,
        "decay_epochs": (10,),
        "batch_size": 16,
    }
    values = {
        kind: downstream.run("linear_sgd", train, test, batch_norm=kind, **settings)[0]["value"]
        for kind in ("none", "fixed")
    }
    centred = downstream.run("linear_sgd", train, test, standardize=True, **settings)[0]["value"]
    assert (
        values["fixed"] == pytest.approx(centred, abs=0.03)
        and values["fixed"] > values["none"] + 0.1
    )


def timeless(results):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in results
    ]


def test_together_is_as_alone():
    train, test = blobs(60, 0), blobs(200, 1)
    together = downstream.run("linear_sgd", train, test, augment=False, **SHORT)
    alone = [
        downstream.run("linear_sgd", train, test, endpoints=[e], augment=False, **SHORT)[0]
        for e in ("a", "b")
    ]
    assert timeless(together) == timeless(alone)
    assert timeless(
        downstream.run("linear_sgd", train, test, augment=False, seed=1, **SHORT)
    ) != timeless(together)


def test_the_test_split_decides_nothing():
    train, test = blobs(60, 0), blobs(200, 1)
    other = Features(
        {k: -v for k, v in test.endpoints.items()}, (test.labels + 1) % 3, test.index, num_classes=3
    )
    one, two = (
        downstream.run("linear_sgd", train, t, augment=False, epoch="best", **SHORT)
        for t in (test, other)
    )
    assert [(r["epoch"], r["val_value"], r["loss"]) for r in one] == [
        (r["epoch"], r["val_value"], r["loss"]) for r in two
    ]
    assert one[0]["value"] != two[0]["value"]


def test_a_validation_split_of_its_own():
    train, test, val = blobs(60, 0), blobs(200, 1), blobs(90, 2)
    val.source = "the other images"
    (result, _) = downstream.run(
        "linear_sgd", train, test, val=val, augment=False, epoch="best", **SHORT
    )
    whole = downstream.run("linear_sgd", train, test, val_fraction=0, augment=False, **SHORT)[0]
    assert [point[2] for point in result["curve"]] == [
        point[2] for point in whole["curve"]
    ]  # it learned from all
    assert (
        result["chosen_on"] == "the other images"
        and whole["chosen_on"] is None
        and whole["val_value"] is None
    )
    reference = downstream.run("linear_sgd", train, val, val_fraction=0, augment=False, **SHORT)[0]
    assert [point[1] for point in result["curve"]] == [point[2] for point in reference["curve"]]
    assert result["val_value"] == max(point[1] for point in result["curve"])


def test_few_labels_and_small_batches():
    train, test = blobs(300, 0), blobs(200, 1)
    (result, _) = downstream.run(
        "linear_sgd",
        train,
        test,
        augment=False,
        train_labels=12,
        epochs=40,
        decay_epochs=(30,),
        batch_size=2048,
    )
    assert result["train_labels"] == result["batch_size"] == 12 and len(result["curve"]) == 40
    assert result["learning_rate"] == pytest.approx(0.1 * 12 / 256)


def test_bad_settings():
    train = blobs(60, 0)
    with pytest.raises(UserError, match="no images behind these features.*augment=False"):
        downstream.run("linear_sgd", train, train)
    with pytest.raises(UserError, match="epoch=first: choose one of last, best"):
        downstream.run("linear_sgd", train, train, augment=False, epoch="first")
    with pytest.raises(UserError, match="epoch=best needs a validation part"):
        downstream.run("linear_sgd", train, train, augment=False, epoch="best", val_fraction=0)
    with pytest.raises(UserError, match="batch_norm='yes': there is none, fixed, learned"):
        downstream.run("linear_sgd", train, train, augment=False, batch_norm="yes")
    with pytest.raises(UserError, match="crops='all': there is random, "):
        downstream.run("linear_sgd", train, train, augment=False, crops="all")
    with pytest.raises(UserError, match="init_std=-1"):
        downstream.run("linear_sgd", train, train, augment=False, init_std=-1)
    with pytest.raises(UserError, match="no features of endpoint c"):
        downstream.run("linear_sgd", train, train, augment=False, endpoints=["c"])


class TestImages:
    @pytest.fixture
    def module(self, modules_dir):
        return modules.load(modules_dir / "ours" / "1")

    @pytest.fixture
    def parts(self, module, pictures):
        source = tfssl.open_source(f"folder:{pictures[0]}")
        return extraction.extract(module, source, ["block", "pre_logits", "pixels"]), source

    def test_heads_see_crops_through_the_module(self, parts, pictures, module):
        found, source = parts
        for rows in (np.arange(11), np.array([1, 4, 5, 9])):  # all, and a subset of labels
            batches = iter(linear_sgd._crops(found, rows, 4, seed=0))
            encode = found.images.large_batch_encoder(["block", "pixels"], 4)
            seen, offsets = [], set()
            for _ in range(len(rows)):
                images, chosen = next(batches)
                features = encode(images)
                maps = module.endpoints(tf.cast(images, tf.float32) / 255)
                np.testing.assert_allclose(
                    features["block"], np.reshape(maps["block"], [4, -1]), rtol=1e-4, atol=1e-5
                )
                for image, row in zip(images.numpy(), chosen.numpy()):
                    whole = pictures[1][source.name(int(found.index[row]))]
                    offsets |= {
                        (y, x)
                        for y in range(5)
                        for x in range(5)
                        if np.array_equal(whole[y : y + 16, x : x + 16], image)
                    }
                    seen.append(row)
            assert sorted(seen) == sorted(np.tile(rows, 4))  # in four epochs each image four times
            assert len(offsets) > 10  # of 25

    def test_results(self, parts):
        found, _ = parts
        settings = {"epochs": 3, "decay_epochs": (2,), "batch_size": 4}
        together = downstream.run("linear_sgd", found, found, **settings)
        assert [r["endpoint"] for r in together] == ["block", "pre_logits", "pixels"]
        assert timeless(downstream.run("linear_sgd", found, found, **settings)) == timeless(
            together
        )
        alone = downstream.run("linear_sgd", found, found, endpoints=["pre_logits"], **settings)[0]
        assert alone["curve"] == together[1]["curve"]
        assert alone["loss"] == pytest.approx(together[1]["loss"], rel=1e-4)
        fixed = downstream.run("linear_sgd", found, found, augment=False, **settings)
        assert fixed[0]["loss"] != pytest.approx(together[0]["loss"], rel=1e-3)

    def test_without_any_margin_crops_are_the_features(self, module, pictures, caplog):
        source = tfssl.open_source(f"folder:{pictures[0]}")
        found = extraction.extract(module, source, ["pixels"], image_size=16, resize=16)
        settings = {"epochs": 2, "decay_epochs": (1,), "batch_size": 11, "lr_scaling": 0}
        crops, fixed = (
            downstream.run("linear_sgd", found, found, augment=a, **settings)[0]
            for a in (True, False)
        )
        # A batch is an epoch, so that its order does not matter.
        assert (
            crops["loss"] == pytest.approx(fixed["loss"], rel=1e-5)
            and crops["curve"] == fixed["curve"]
        )
        assert "square images have one crop" in caplog.text

    def test_no_features_of_the_training_images_are_needed(self, module, pictures):
        source = tfssl.open_source(f"folder:{pictures[0]}")
        labels = extraction.extract(module, source, [])
        whole = extraction.extract(module, source, ["block"])
        assert labels.endpoints == {} and labels.dropped == []
        np.testing.assert_array_equal(labels.labels, whole.labels)
        np.testing.assert_array_equal(labels.index, whole.index)
        settings = {"epochs": 2, "decay_epochs": (1,), "batch_size": 4, "val": whole}
        assert timeless(downstream.run("linear_sgd", labels, whole, **settings)) == timeless(
            downstream.run("linear_sgd", whole, whole, **settings)
        )
        del settings["val"]
        (blind,) = downstream.run("linear_sgd", labels, whole, val_fraction=0, **settings)
        assert [point[1] for point in blind["curve"]] == [None, None]
        for needs in ({"standardize": True}, {"val_fraction": 0.2}, {"augment": False}):
            with pytest.raises(UserError, match="no features of endpoint block"):
                downstream.run(
                    "linear_sgd", labels, whole, **{"val_fraction": 0, **settings, **needs}
                )

    @pytest.mark.parametrize("augment", [False, True])
    def test_killed_and_resumed(self, parts, tmp_path, monkeypatch, augment):
        found, _ = parts
        settings = {
            "endpoints": ["block", "pixels"], "epochs": 5, "decay_epochs": (3,), "batch_size": 4, "augment": augment,
            "batch_norm": "learned", "nesterov": True, "crops": "resized_flip",
        }  # fmt: skip
        whole = downstream.run("linear_sgd", found, found, **settings)
        settings["state_dir"] = str(tmp_path)
        monkeypatch.setattr(state, "_EVERY", 0)
        assert timeless(downstream.run("linear_sgd", found, found, **settings)) == timeless(whole)
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size < 2000  # of a finished run the weights are not kept
        file.unlink()

        measured = []

        def killed(held, heads):
            measured.append(heads)
            if len(measured) == 6:  # on test, in the third epoch
                raise KeyboardInterrupt
            return accuracies(held, heads)

        accuracies = sgd.Held.accuracies
        monkeypatch.setattr(sgd.Held, "accuracies", killed)
        with pytest.raises(KeyboardInterrupt):
            downstream.run("linear_sgd", found, found, **settings)
        resumed = downstream.run("linear_sgd", found, found, **settings)
        assert len(measured) == 6 + 2 * 3  # epochs 3 to 5
        assert timeless(resumed) == timeless(whole)
        assert (
            timeless(downstream.run("linear_sgd", found, found, **settings)) == timeless(whole)
            and len(measured) == 12
        )  # nothing to do
        downstream.run("linear_sgd", found, found, **{**settings, "seed": 1})
        assert len(measured) == 12 + 2 * 5 and len(list(tmp_path.iterdir())) == 2  # another run

    @pytest.mark.parametrize("augment", [False, True])
    def test_a_finished_run_is_of_the_features_own_type(self, parts, module, tmp_path, augment):
        """A run on features of 16 bits answers for none on those of 32, nor the other way around."""
        whole, source = parts
        half = extraction.extract(module, source, ["block"], dtype="float16")
        settings = {"endpoints": ["block"], "augment": augment, **SHORT, "batch_size": 4}
        expected = [timeless(downstream.run("linear_sgd", x, x, **settings)) for x in (half, whole)]
        for _ in ("first", "again"):
            found = [
                timeless(downstream.run("linear_sgd", x, x, **settings, state_dir=str(tmp_path)))
                for x in (half, whole)
            ]
            assert found == expected and len(list(tmp_path.iterdir())) == 2

    def test_maps_share_statistics_over_places(self, parts, monkeypatch):
        made, build = [], linear_sgd.Linear
        monkeypatch.setattr(
            linear_sgd, "Linear", lambda *a, **k: made.append(build(*a, **k)) or made[-1]
        )
        found, _ = parts
        endpoints = ["block", "pre_logits", "pixels"]
        downstream.run(
            "linear_sgd",
            found,
            found,
            endpoints=endpoints,
            batch_norm="fixed",
            epochs=1,
            decay_epochs=(),
            augment=False,
        )
        maps = {
            name: x.shape[1:]
            for name, x in found.images.module.endpoints(tf.zeros([1, 16, 16, 3])).items()
        }
        for head, name in zip(made, endpoints):
            channels = {"pixels": 3, **{n: shape[-1] for n, shape in maps.items()}}[name]
            x = (
                found.endpoints[name].reshape(-1, channels).astype(np.float64)
            )  # a batch is all images
            mean, square = (head.norm.sums / head.norm.count).numpy()
            np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(square - mean**2, x.var(0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm, val_fraction", [("none", 0.2), ("learned", 0.0)])
def test_replicas_give_the_heads_of_one_device(
    modules_dir, pictures, replicas, monkeypatch, norm, val_fraction
):
    """In double precision, of crops that each device encodes in micro-batches of one size. Run
    again with four devices by tests/test_four_replicas.py."""
    made, build = [], linear_sgd.Linear
    monkeypatch.setattr(
        linear_sgd, "Linear", lambda *args, **kw: made.append(build(*args, **kw)) or made[-1]
    )
    source = tfssl.open_source(f"folder:{pictures[0]}")
    settings = {"epochs": 3, "decay_epochs": (2,), "batch_size": 8, "nesterov": True}
    settings |= {"weight_decay": 0.01, "batch_norm": norm, "crops": "resized_flip"}

    def trained():
        module = modules.load(modules_dir / "ours" / "1")
        found = extraction.extract(module, source, ["block", "pre_logits"], batch_size=2)
        double = {name: values.astype(np.float64) for name, values in found.endpoints.items()}
        return dataclasses.replace(found, endpoints=double)

    alone = trained()
    with replicas.scope():
        together = trained()
    results = [
        downstream.run("linear_sgd", part, part, val_fraction=val_fraction, **settings)
        for part in (alone, together)
    ]
    ones, others = made[: len(made) // 2], made[len(made) // 2 :]
    assert len(ones) == len(others) == (4 if val_fraction else 2)
    for one, other in zip(ones, others):
        assert [v.shape for v in one.variables] == [v.shape for v in other.variables]
        for v, w in zip(one.variables, other.variables):
            np.testing.assert_allclose(w.numpy(), v.numpy(), rtol=1e-9, atol=1e-9)
    for one, other in zip(*results):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-9)
        assert other["curve"] == one["curve"]


def test_a_batch_that_replicas_cannot_share_is_refused(modules_dir, pictures, replicas):
    source = tfssl.open_source(f"folder:{pictures[0]}")
    with replicas.scope():
        found = extraction.extract(modules.load(modules_dir / "ours" / "1"), source, ["block"])
    with pytest.raises(UserError, match="batch_size=7 of 11 images does not divide over"):
        downstream.run("linear_sgd", found, found, batch_size=7, val_fraction=0)

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from tfssl import downstream
from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocols import logistic
from tfssl.downstream.solvers.lbfgs import Problem, Rows, moments
from tfssl.downstream.solvers.shares import Replicas
from tfssl.errors import UserError


def blobs(n, seed, dims=12, classes=3, dtype=np.float64):
    """Overlapping classes; features with a large mean and with scales from 0.03 to 30, such as
    networks have."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=[classes, dims])
    mixing = np.linalg.qr(np.random.default_rng(98).normal(size=[dims, dims]))[0] * np.logspace(
        -1.5, 1.5, dims
    )
    return ((centres[labels] + rng.normal(size=[n, dims])) @ mixing.T + 5).astype(dtype), labels


def features(x, y, **kwargs):
    return Features({"x": x}, y, np.arange(len(y)), **kwargs)


def problem(x, y, precondition=True):
    return Problem([Rows(x, y, np.arange(len(y)))], int(y.max()) + 1, precondition)


def naive_loss(x, y, weights, bias, l2):
    logits = x @ weights + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.mean([np.log(p[i, y[i]]) for i in range(len(y))]) + l2 * np.sum(weights**2)


def test_objective_and_gradient():
    x, y = blobs(50, 0, dims=4)
    rng = np.random.default_rng(1)
    weights, bias, l2 = rng.normal(size=[4, 3]) / 10, rng.normal(size=3), 0.3
    loss, dw, db = problem(x, y).objective(weights, bias, l2)
    assert loss == pytest.approx(naive_loss(x, y, weights, bias, l2), rel=1e-12)
    step = 1e-6
    for i in np.ndindex(4, 3):
        shift = np.zeros([4, 3])
        shift[i] = step
        slope = naive_loss(x, y, weights + shift, bias, l2) - naive_loss(
            x, y, weights - shift, bias, l2
        )
        assert dw[i] == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-7)
    for c in range(3):
        shift = step * np.eye(3)[c]
        slope = naive_loss(x, y, weights, bias + shift, l2) - naive_loss(
            x, y, weights, bias - shift, l2
        )
        assert db[c] == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-7)


# 12 dimensions are fewer than the components that the preconditioner treats one by one, 150 are
# more.
@pytest.mark.parametrize("dims, l2", [(12, 1.0), (12, 1e-3), (12, 1e-6), (150, 1.0), (150, 1e-2)])
def test_optimum_is_scikit_learns(dims, l2):
    x, y = blobs(400, 0, dims=dims)
    fit = problem(x, y).fit(l2, 5000, ftol=1e-15, gtol=1e-9)
    # It minimizes C * sum(cross-entropy) + 0.5 * ||W||^2; here by another algorithm, on centerd
    # features.
    centre = x.mean(0)
    reference = LogisticRegression(
        C=1 / (2 * l2 * len(y)), tol=1e-10, max_iter=1000, solver="newton-cg"
    )
    reference.fit(x - centre, y)
    np.testing.assert_allclose(
        fit.weights, reference.coef_.T, rtol=1e-3, atol=1e-4 * np.abs(reference.coef_).max()
    )
    bias = reference.intercept_ - reference.coef_ @ centre
    np.testing.assert_allclose(fit.bias - fit.bias.mean(), bias - bias.mean(), rtol=1e-3, atol=1e-3)
    optimum = naive_loss(x - centre, y, reference.coef_.T, reference.intercept_, l2)
    assert fit.loss <= optimum * (1 + 1e-7)


def test_preconditioning_changes_the_way_and_not_the_goal():
    x, y = blobs(200, 0)
    scaled = (x - x.mean(0)) / x.std(0)  # well conditioned: both arrive
    plain, better = (problem(scaled, y, p).fit(1e-2, ftol=1e-15, gtol=1e-9) for p in (False, True))
    assert better.loss == pytest.approx(plain.loss, rel=1e-10)
    np.testing.assert_allclose(better.weights, plain.weights, atol=1e-6)
    plain, better = (problem(x, y, p).fit(1e-4, 200) for p in (False, True))
    assert (plain.converged, plain.iterations) == (False, 200)
    assert better.converged and better.iterations < 50 and better.loss < plain.loss


def test_warm_start_is_the_same_point():
    x, y = blobs(100, 0)
    p = problem(x, y)
    first = p.fit(1e-3)
    again = p.fit(1e-3, start=first, maxfun=1)
    np.testing.assert_allclose(again.weights, first.weights, rtol=1e-8)
    np.testing.assert_allclose(again.bias, first.bias, rtol=1e-8)
    assert p.fit(1e-3, start=first).iterations <= 3


def test_float32_reaches_the_optimum_too():
    x, y = blobs(400, 0)
    exact, single = problem(x, y).fit(1e-4, ftol=1e-15), problem(x.astype(np.float32), y).fit(1e-4)
    assert single.converged
    assert single.loss == pytest.approx(exact.loss, rel=1e-5)


def test_chunks_change_nothing(monkeypatch):
    x, y = blobs(400, 0)
    whole = problem(x, y).fit(1e-3, ftol=1e-15)
    monkeypatch.setattr(
        "tfssl.downstream.solvers.lbfgs._CHUNK_VALUES", 12 * 37
    )  # 37 rows: the last chunk is a smaller one
    p = problem(x, y)
    assert len(list(p.chunks)) == 11
    assert p.fit(1e-3, ftol=1e-15).loss == pytest.approx(whole.loss, rel=1e-10)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_read_again_for_each_update_give_the_same_bits(dtype, tmp_path, monkeypatch):
    """Of a memory-mapped array, in chunks, with and without standardization; float16 is exact in
    float32."""
    x, y = blobs(400, 0)
    np.save(tmp_path / "x.npy", x.astype(dtype))
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr("tfssl.downstream.solvers.lbfgs._CHUNK_VALUES", 12 * 37)
    rows = np.flatnonzero(np.arange(400) % 3)
    scales = None, moments(stored, rows)
    kept = [Rows(stored.astype(np.float32), y, rows, scale) for scale in scales]
    monkeypatch.setattr("tfssl.downstream.solvers.lbfgs._RESIDENT", {"CPU": 0, "GPU": 0})
    streamed = [Rows(stored, y, rows, scale) for scale in scales]
    for one, other in zip(kept, streamed):
        assert isinstance(one.chunks, list) and other.chunks is other
        fits = [Problem([part], 3).fit(1e-3, 20) for part in (one, other)]
        np.testing.assert_array_equal(fits[0].weights, fits[1].weights)


@pytest.mark.parametrize("resident", [True, False])
def test_replicas_give_the_objective_and_heads_of_one_device(resident, replicas, monkeypatch):
    """In double precision, of chunks that do not divide over them. Run again with four devices by
    tests/test_four_replicas.py."""
    x, y = blobs(403, 0)
    rows = np.flatnonzero(np.arange(403) % 3)  # 268
    monkeypatch.setattr("tfssl.downstream.solvers.lbfgs._CHUNK_VALUES", 12 * 37)
    if not resident:
        monkeypatch.setattr("tfssl.downstream.solvers.lbfgs._RESIDENT", {"CPU": 0, "GPU": 0})
    scale, rng = moments(x, rows), np.random.default_rng(1)
    for moments_of_rows in (None, scale):
        one, several = (
            Problem([Rows(x, y, rows, moments_of_rows, Replicas(each))], 3)
            for each in (None, replicas)
        )
        assert len(list(several.chunks)) < len(list(one.chunks))
        assert several.variance == pytest.approx(one.variance, rel=1e-12)
        weights, bias = rng.normal(size=[12, 3]) / 10, rng.normal(size=3)
        found, expected = (p.objective(weights, bias, 1e-3) for p in (several, one))
        for value, of_one in zip(found, expected):
            np.testing.assert_allclose(value, of_one, rtol=1e-9, atol=1e-12)
        fits = [p.fit(1e-3, ftol=1e-15) for p in (several, one)]
        assert fits[0].converged
        for name in ("weights", "bias", "loss"):
            ours, theirs = (getattr(fit, name) for fit in fits)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
        classes = [
            logistic.predict(x, fits[1], moments_of_rows, Replicas(each))
            for each in (replicas, None)
        ]
        np.testing.assert_array_equal(*classes)
        told = [logistic.evaluate(p.parts[0], fit) for p, fit in zip((several, one), fits)]
        np.testing.assert_allclose(told[0], told[1], rtol=1e-9)


def test_the_protocol_is_shared_by_the_replicas_of_a_scope(replicas, monkeypatch):
    (x, y), (x2, y2) = blobs(203, 0), blobs(101, 1)
    train, test, shared = features(x, y), features(x2, y2), []
    total = Replicas.sum
    monkeypatch.setattr(
        Replicas, "sum", lambda self, *args: shared.append(self.count) or total(self, *args)
    )
    alone = downstream.run("logistic", train, test)[0]
    assert set(shared) == {1}
    shared.clear()
    with replicas.scope():
        together = downstream.run("logistic", train, test)[0]
    assert set(shared) == {replicas.num_replicas_in_sync}
    for key in ("value", "val_value", "l2"):
        assert together[key] == alone[key]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-9)


def test_degenerate_features():
    y = np.array([0, 1, 2, 0])
    constant = problem(np.ones([4, 5]), y).fit(0.0)
    assert constant.loss == pytest.approx(
        -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)), rel=1e-4
    )  # the classes' entropy
    separable = problem(np.eye(3)[y], y).fit(0.0)
    assert separable.loss < 1e-3


def test_published_setting():
    (x, y), (x2, y2) = blobs(200, 0), blobs(300, 1)
    train, test = features(x, y, num_classes=7), features(x2, y2, num_classes=7)
    (result,) = downstream.run("logistic", train, test, l2="published", precondition=False)
    assert result["l2"] == pytest.approx(
        100 / (12 * 7)
    )  # 7 classes in the data set, though 3 occur
    assert result["l2_rule"] == "published"
    reference = LogisticRegression(C=1 / (2 * result["l2"] * 200), tol=1e-9, max_iter=5000).fit(
        x, y
    )
    assert result["value"] == pytest.approx(reference.score(x2, y2), abs=0.01)
    assert result["loss"] == pytest.approx(
        naive_loss(x, y, reference.coef_.T, reference.intercept_, result["l2"]), rel=1e-4
    )


def test_limit_of_updates():
    x, y = blobs(200, 0)
    (result,) = downstream.run(
        "logistic", features(x, y), features(x, y), l2=1e-4, max_iterations=3, precondition=False
    )
    assert (result["iterations"], result["converged"]) == (3, False)
    (result,) = downstream.run("logistic", features(x, y), features(x, y), l2=1e-4)
    assert result["converged"] and result["iterations"] < 100


def test_l2_is_selected_on_validation():
    x, y = blobs(120, 0, dims=30)
    y = np.where(
        np.random.default_rng(1).random(120) < 0.3, (y + 1) % 3, y
    )  # wrong labels, not to be learned by heart
    train = features(x, y)
    (result,) = downstream.run("logistic", train, train)
    part = partition.split(train, train)

    def validation_loss(l2):
        reference = LogisticRegression(
            C=1 / (2 * l2 * len(part.fit)), tol=1e-8, max_iter=5000, solver="newton-cg"
        )
        reference.fit(x[part.fit] - 5, y[part.fit])
        return log_loss(y[part.val], reference.predict_proba(x[part.val] - 5))

    losses = [validation_loss(10.0**e) for e in range(-3, 4)]
    assert losses[0] > min(losses) < losses[-1]  # there is something to choose
    assert validation_loss(result["l2"]) <= min(losses) * 1.0001
    assert np.log10(result["l2"]) * 2 == pytest.approx(round(np.log10(result["l2"]) * 2))


def test_a_validation_split_of_its_own():
    (x, y), (x2, y2), (x3, y3) = blobs(200, 0), blobs(300, 1), blobs(100, 2)
    train, test, val = features(x, y), features(x2, y2), features(x3, y3, source="the third")
    (result,) = downstream.run("logistic", train, test, val=val)
    (given,) = downstream.run("logistic", train, test, l2=result["l2"], val_fraction=0)
    (on_val,) = downstream.run("logistic", train, val, l2=result["l2"], val_fraction=0)
    assert result["value"] == pytest.approx(given["value"], abs=0.004)  # it learned from all rows
    assert result["val_value"] == pytest.approx(on_val["value"], abs=0.011)
    assert (result["chosen_on"], result["reported_on"]) == ("the third", "these features")
    assert given["val_value"] is None and given["chosen_on"] is None
    reference = LogisticRegression(
        C=1 / (2 * result["l2"] * 200), tol=1e-9, max_iter=5000, solver="newton-cg"
    )
    assert result["value"] == pytest.approx(reference.fit(x - 5, y).score(x2 - 5, y2), abs=0.004)
    with pytest.raises(UserError, match="val_fraction=0 leaves none"):
        downstream.run("logistic", train, test, val_fraction=0)


def test_the_test_split_decides_nothing():
    (x, y), (x2, y2) = blobs(200, 0), blobs(100, 1)
    one = downstream.run("logistic", features(x, y), features(x2, y2))[0]
    other = downstream.run("logistic", features(x, y), features(-x2[::-1], (y2 + 1) % 3))[0]
    for key in ("l2", "val_value", "iterations", "loss"):
        assert one[key] == other[key]
    assert one["value"] != other["value"]


def test_validation_images_are_not_learned_from():
    rng = np.random.default_rng(0)
    noise = features(rng.normal(size=[150, 300]), rng.integers(0, 3, 150))
    (result,) = downstream.run("logistic", noise, noise, l2=1e-6)
    assert result["value"] == 1.0  # here all are
    assert result["val_value"] < 0.7  # of 30 images; chance is 1/3


def test_standardize():
    (x, y), (x2, y2) = blobs(300, 0), blobs(500, 1)
    x[:, 3] = 7.0  # a constant feature must not divide by zero
    (result,) = downstream.run(
        "logistic", features(x, y), features(x2, y2), l2=0.01, standardize=True
    )
    scaler = StandardScaler().fit(x)
    scaler.scale_[3] = 1.0
    reference = LogisticRegression(C=1 / (2 * 0.01 * 300), tol=1e-9, max_iter=5000).fit(
        scaler.transform(x), y
    )
    assert result["value"] == pytest.approx(reference.score(scaler.transform(x2), y2), abs=0.004)


def test_labels_with_gaps_and_absent_classes():
    (x, y), (x2, y2) = blobs(200, 0), blobs(200, 1)
    names = np.array([2, 5, 9])
    (gaps,) = downstream.run("logistic", features(x, names[y]), features(x2, names[y2]), l2=0.01)
    (dense,) = downstream.run("logistic", features(x, y), features(x2, y2), l2=0.01)
    assert gaps["value"] == dense["value"]
    (absent,) = downstream.run(
        "logistic", features(x, y), features(x2, np.where(y2 == 0, 11, y2)), l2=0.01
    )
    assert absent["value"] == pytest.approx(
        dense["value"] - np.mean(y2 == 0), abs=0.1
    )  # class 11 is never right


def test_few_labels():
    (x, y), (x2, y2) = blobs(300, 0), blobs(300, 1)
    (result,) = downstream.run(
        "logistic", features(x, y), features(x2, y2), train_labels=12, l2=0.1
    )
    rows = partition.balanced(y, np.arange(300), 12, 0)
    reference = LogisticRegression(C=1 / (2 * 0.1 * 12), tol=1e-9, max_iter=5000).fit(
        x[rows], y[rows]
    )
    assert result["value"] == pytest.approx(reference.score(x2, y2), abs=0.01)
    assert result["train_labels"] == 12
    with pytest.raises(UserError, match="l2=select.*3 labels"):
        downstream.run("logistic", features(x, y), features(x2, y2), train_labels=3)
    assert (
        downstream.run("logistic", features(x, y), features(x2, y2), train_labels=3, l2=0.1)[0][
            "val_value"
        ]
        is None
    )


def test_half_precision_features():
    (x, y), (x2, y2) = blobs(300, 0), blobs(1000, 1)
    full, half = (
        downstream.run("logistic", features(x.astype(d), y), features(x2.astype(d), y2), l2=0.01)[0]
        for d in ("f4", "f2")
    )
    assert half["value"] == pytest.approx(full["value"], abs=0.01)


@pytest.mark.parametrize("l2", ["best", -1, "nan", float("inf"), None])
def test_bad_l2(l2):
    with pytest.raises(UserError, match="l2=.*published"):
        logistic.check_l2(l2)


def test_selection_goes_past_noise_of_large_variance():
    """While l2 still forbids the small signal, noise alone is fitted, and the validation loss rises
    a little."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 2000)
    signal = 0.01 * (np.eye(3)[y] + 0.3 * rng.normal(size=[2000, 3]))
    x = np.concatenate([10 * rng.normal(size=[2000, 10]), signal], 1)
    p, val = problem(x[:1600], y[:1600]), Rows(x, y, np.arange(1600, 2000))
    losses = [logistic.evaluate(val, p.fit(l2))[1] for l2 in (10.0, 1.0, 1e-5)]
    assert losses[0] < losses[1] > losses[2]  # the trap
    assert logistic.evaluate(val, logistic.select(p, val)[1])[1] <= losses[2]

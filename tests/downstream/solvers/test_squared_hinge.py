"""Against scikit-learn's LinearSVC, and against the optimality conditions themselves."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from tfssl.downstream.solvers import squared_hinge
from tfssl.downstream.solvers.squared_hinge import Rows

COSTS = (0.01, 1.0, 20.0, 1000.0)


def problem(n, dims, separable, seed=0):
    """Features of norm 1 with a common direction, as networks have, three classes, and weights with
    left-out rows."""
    rng = np.random.default_rng([seed, n, dims])
    x = np.abs(rng.normal(size=[n, dims])) * np.logspace(0, -1.5, dims)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    decision = (x - x.mean(0)) @ rng.normal(size=[dims, 3])
    decision = decision / decision.std(0) + (0 if separable else rng.normal(size=[n, 3]))
    y = np.where(decision > 0.5, 1.0, -1.0)
    weights = np.where(y > 0, 2.0, 1.0)
    weights[::7, 0] = weights[::5, 1] = 0
    return x, y, weights


def objective(x, y, c, w, b, scaling):
    return (
        0.5 * w @ w + 0.5 * (b / scaling) ** 2 + np.sum(c * np.maximum(0, 1 - y * (x @ w + b)) ** 2)
    )


def gradient(x, y, c, w, b, scaling):
    pull = 2 * c * y * np.maximum(0, 1 - y * (x @ w + b))
    return np.append(w - x.T @ pull, b / scaling - scaling * pull.sum())


# Fewer rows than features (the Gram matrix), as many, and more.
@pytest.mark.parametrize("n, dims", [(60, 200), (80, 80), (300, 20)])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("scaling", [1.0, 10.0])
@pytest.mark.parametrize("resident", [True, False])
def test_objective_is_no_larger_than_scikit_learns(
    n, dims, separable, scaling, resident, monkeypatch
):
    x, y, weights = problem(n, dims, separable)
    if not resident:
        monkeypatch.setattr(squared_hinge, "_RESIDENT", 0)
        monkeypatch.setattr(squared_hinge, "_CHUNK_VALUES", 37 * (dims + 1))  # the last is smaller
    rows = Rows(x, scaling)
    for cost, fit in zip(COSTS, rows.path(y, weights, COSTS)):
        w, b = rows.weights(fit)
        np.testing.assert_allclose(fit.decision, x @ w + b, atol=1e-9 * np.abs(fit.decision).max())
        for j in range(3):
            c, used = cost * weights[:, j], weights[:, j] > 0
            reference = LinearSVC(
                C=cost,
                class_weight={1: 2, -1: 1},
                intercept_scaling=scaling,
                dual=False,
                tol=1e-10,
                max_iter=100_000,
            ).fit(x[used], y[used, j])
            theirs = objective(x, y[:, j], c, reference.coef_[0], reference.intercept_[0], scaling)
            ours = objective(x, y[:, j], c, w[:, j], b[j], scaling)
            assert fit.objective[j] == pytest.approx(ours, rel=1e-9)
            assert ours <= theirs * (1 + 1e-7)
            np.testing.assert_allclose(
                fit.decision[:, j],
                reference.decision_function(x),
                atol=2e-3 * np.abs(fit.decision[:, j]).max(),
            )


@pytest.mark.parametrize("n, dims", [(60, 200), (300, 20)])
def test_the_gap_is_a_certificate(n, dims):
    x, y, weights = problem(n, dims, False)
    rows = Rows(x)
    for tolerance in (1e-2, 1e-5, 1e-8):
        for cost, fit in zip(COSTS, rows.path(y, weights, COSTS, tolerance)):
            assert (fit.gap <= tolerance).all()
            (best,) = rows.path(y, weights, [cost], 1e-13)
            w, b = rows.weights(fit)
            for j in range(3):
                c = cost * weights[:, j]
                slope = gradient(x, y[:, j], c, w[:, j], b[j], 1.0)
                assert 0.5 * slope @ slope == pytest.approx(
                    fit.gap[j] * fit.objective[j], rel=1e-3, abs=1e-12
                )
                # The dual's value is as far below as the gap says, and so the minimum no further
                # than that.
                a = 2 * c * np.maximum(0, 1 - y[:, j] * fit.decision[:, j])
                used = c > 0
                inner = np.append(x.T @ (a * y[:, j]), (a * y[:, j]).sum())
                dual = a.sum() - 0.5 * inner @ inner - np.sum(a[used] ** 2 / (4 * c[used]))
                value = fit.objective[j]
                assert value - dual == pytest.approx(
                    fit.gap[j] * value, rel=1e-3, abs=1e-11 * value
                )
                assert value - best.objective[j] <= fit.gap[j] * value + 1e-12 * value


def test_columns_and_order_do_not_matter():
    x, y, weights = problem(60, 200, False)
    rows = Rows(x)
    together = list(
        rows.path(np.tile(y, 9), np.tile(weights, 9), COSTS)
    )  # 27 columns: in several threads
    for j in range(3):
        alone = list(rows.path(y[:, [j]], weights[:, [j]], COSTS[::-1]))[::-1]
        for one, fit in zip(alone, together):
            for copy in range(j, 27, 3):
                np.testing.assert_allclose(fit.decision[:, copy], one.decision[:, 0], atol=2e-3)
                assert fit.objective[copy] == pytest.approx(one.objective[0], rel=1e-7)
    (each,) = rows.path(y, weights, [np.array(COSTS[:3])])
    assert each.objective == pytest.approx([together[j].objective[j] for j in range(3)], rel=1e-7)


def test_rows_of_weight_zero_are_not_learned_from():
    x, y, weights = problem(60, 200, False)
    weights[20:] = 0
    rows = Rows(x)
    (fit,) = rows.path(y, weights, [10.0])
    less = Rows(x[:20])
    (reference,) = less.path(y[:20], weights[:20], [10.0])
    np.testing.assert_allclose(fit.decision[:20], reference.decision, atol=1e-4)
    w, b = less.weights(reference)
    np.testing.assert_allclose(
        fit.decision, x @ w + b, atol=1e-4
    )  # the others have decisions all the same


@pytest.mark.parametrize("n, dims", [(60, 200), (300, 20)])
@pytest.mark.parametrize("gradients", [True, False])
def test_both_ways_of_a_step_lead_to_the_same_point(n, dims, gradients, monkeypatch):
    x, y, weights = problem(n, dims, False)
    reference = list(Rows(x).path(y, weights, COSTS, 1e-12))
    kind = squared_hinge._Gram if n <= dims else squared_hinge._Primal
    calls = []
    solve = kind.solve
    monkeypatch.setattr(kind, "solve", lambda *args: calls.append(1) or solve(*args))
    monkeypatch.setattr(
        kind,
        "patience",
        lambda _, curvature: np.full(curvature.shape[1], 1000.0 if gradients else 1.0),
    )
    for fit, expected in zip(Rows(x).path(y, weights, COSTS), reference):
        assert fit.objective == pytest.approx(expected.objective, rel=1e-8)
    assert bool(calls) != gradients


@pytest.mark.parametrize("n, dims", [(60, 200), (300, 20)])
@pytest.mark.parametrize("solve", [True, False])
def test_chosen_rows_of_a_file_in_blocks(n, dims, solve, tmp_path, monkeypatch):
    """Read again for each product, from float16, and normalized as they are read: the classifiers
    of the same rows in memory."""
    x, y, weights = problem(n, dims, False)
    chosen, kind = np.flatnonzero(np.arange(n) % 3), squared_hinge._Gram
    np.save(tmp_path / "x.npy", (7 * x).astype(np.float16))
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    halved = Rows(stored[chosen].astype(np.float64) / 2)
    if len(chosen) > dims:
        kind = squared_hinge._Primal
    if solve:
        monkeypatch.setattr(kind, "patience", lambda _, c: np.ones(c.shape[1]))
    expected = list(halved.path(y[chosen], weights[chosen], COSTS))
    monkeypatch.setattr(squared_hinge, "_RESIDENT", 0)
    monkeypatch.setattr(squared_hinge, "_CHUNK_VALUES", 11 * (dims + 1))
    rows = Rows(stored, 1.0, chosen, lambda values: values.astype(np.float64) / 2)
    for fit, other in zip(rows.path(y[chosen], weights[chosen], COSTS), expected):
        assert fit.objective == pytest.approx(other.objective, rel=1e-8)
        for one, two in zip(rows.weights(fit), halved.weights(other)):
            np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(two).max())


@pytest.mark.parametrize("n, dims", [(40, 100), (100, 10)])
def test_degenerate_features(n, dims):
    rng = np.random.default_rng(0)
    y = np.where(rng.random((n, 2)) < 0.3, 1.0, -1.0)
    for x in (
        np.zeros((n, dims)),
        np.ones((n, dims)),
        np.tile(rng.normal(size=(n // 2, dims)), (2, 1)),
    ):
        rows = Rows(x)
        for cost, fit in zip((1e-7, 1.0, 1e4), rows.path(y, np.ones_like(y), (1e-7, 1.0, 1e4))):
            assert (fit.gap <= 1e-8).all()
            w, b = rows.weights(fit)
            ours = [objective(x, y[:, j], np.full(n, cost), w[:, j], b[j], 1.0) for j in range(2)]
            assert fit.objective == pytest.approx(ours, rel=1e-6)
    # With features of zero there is a closed form: the bias alone.
    (fit,) = Rows(np.zeros((n, dims))).path(y, np.ones_like(y), [0.5])
    assert fit.decision[0] == pytest.approx((y.sum(0)) / (1 + n), rel=1e-3)


def test_what_did_not_converge_is_said(monkeypatch, caplog):
    x, y, weights = problem(60, 200, False)
    monkeypatch.setattr(squared_hinge, "_STEPS", 2)
    with caplog.at_level("WARNING", logger="absl"):
        (fit,) = Rows(x).path(y, weights, [1000.0])
    assert "3 of 3 SVMs ended with a gap" in caplog.text and (fit.gap > 1e-8).all()

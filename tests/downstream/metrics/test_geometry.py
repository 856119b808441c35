"""Measures without labels: closed forms, and the values of other implementations."""

import numpy as np
import pytest

from tfssl.downstream.metrics import geometry


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32").astype("float64")


def test_rank_is_rankmes():
    """Check values of RankMe's formula; and closed forms: k equal singular values, one direction."""
    x = normal(0, 32, 64)
    assert geometry.rank(x) == pytest.approx(29.86657116, abs=1e-6)
    assert geometry.rank(x, 1e-5) == pytest.approx(29.89060520, abs=1e-6)
    assert geometry.rank(x - x.mean(0)) == pytest.approx(29.00048276, abs=1e-6)
    few = np.outer(normal(10, 32), normal(11, 64)) + 0.01 * x
    assert geometry.rank(few) == pytest.approx(1.57017089, abs=1e-6)
    assert geometry.rank(np.eye(8)[:, :5], 0) == pytest.approx(5)
    assert geometry.rank(np.ones([7, 3])) == pytest.approx(1, abs=1e-4)
    assert geometry.rank(np.zeros([7, 3])) == 1
    assert np.isnan(geometry.rank(np.array([[1.0, np.inf], [0.0, 1.0]])))
    assert geometry.rank(x.T) == pytest.approx(geometry.rank(x))


def test_alignment_and_uniformity_in_closed_form():
    x = normal(1, 50, 6)
    assert geometry.alignment(x, 3 * x) == pytest.approx(1)
    assert geometry.alignment(x, -x) == pytest.approx(-1)
    assert geometry.uniformity(np.ones([5, 4])) == pytest.approx(0)
    assert geometry.uniformity(np.array([[2.0, 0], [-1.0, 0]])) == pytest.approx(-8)  # d^2 = 4
    pairs = [
        np.exp(-2 * np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2))
        for i, a in enumerate(x)
        for b in x[:i]
    ]
    assert geometry.uniformity(x) == pytest.approx(np.log(np.mean(pairs)))


def test_normality_is_low_for_gaussians_whatever_their_scale_and_high_for_others():
    x = normal(2, 4000, 8)
    assert 0.3 < geometry.normality(7 * x + 3) < 1
    assert geometry.normality(7 * x + 3) == pytest.approx(geometry.normality(x))
    assert geometry.normality(np.sign(x)) > 3
    constant = geometry.normality(np.ones([100, 4]))
    assert constant == pytest.approx(0.402 * 100 / 1.053, rel=0.01)  # of embeddings all zero

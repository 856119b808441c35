import numpy as np
import pytest

from tfssl.downstream.solvers import nearest
from tfssl.downstream.solvers.shares import Replicas


def points(n, seed, dims=6, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=[n, dims]).astype(np.float32), rng.integers(0, classes, n)


def naive(bank, labels, queries, k, temperature):
    predicted = []
    for q in queries.astype(np.float64):
        similarity = [
            q @ b / np.linalg.norm(q) / np.linalg.norm(b) for b in bank.astype(np.float64)
        ]
        votes = np.zeros(labels.max() + 1)
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (20, 10.0), (200, 0.1)])
def test_equals_a_double_loop(k, temperature):
    (bank, labels), (queries, _) = points(300, 0), points(60, 1)
    predicted = nearest.vote(bank, labels, np.arange(300), queries, k, temperature)
    np.testing.assert_array_equal(predicted, naive(bank, labels, queries, k, temperature))


def test_blocks_change_nothing(monkeypatch):
    (bank, labels), (queries, _) = points(300, 0), points(60, 1)
    bank[150:] = bank[:150]  # ties across blocks
    labels[150:] = (labels[:150] + 1) % 4
    rows = np.arange(300)
    whole = nearest.vote(bank, labels, rows, queries, 5, 0.07)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    monkeypatch.setattr(nearest, "_BANK", 11)
    np.testing.assert_array_equal(nearest.vote(bank, labels, rows, queries, 5, 0.07), whole)
    monkeypatch.setattr(nearest, "_VALUES", 5 * bank.shape[1])
    monkeypatch.setattr(nearest, "_RESIDENT", 0)  # queries are normalized again for each block
    chosen = np.arange(0, 60, 7)
    some = nearest.vote(bank, labels, rows, queries, 5, 0.07, chosen)
    np.testing.assert_array_equal(some, whole[chosen])


@pytest.mark.parametrize("count", [1, 60, 61])  # fewer than replicas, and shares that are filled up
@pytest.mark.parametrize("ties", [True, False])
def test_replicas_find_the_neighbors_of_one_device(count, ties, replicas, monkeypatch):
    """In double precision; and of ties, whose products are exact, the earlier rows. Run again with
    four devices by tests/test_four_replicas.py."""
    (bank, labels), (queries, _) = points(301, 0, 4), points(count, 1, 4)
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    if ties:  # of norm 2
        bank, queries = np.sign(bank), np.sign(queries)
    rows = np.flatnonzero(np.arange(301) % 5)
    chosen = np.arange(count)[::-1]
    expected = nearest.nearest(bank, rows, queries, 7, chosen)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    monkeypatch.setattr(nearest, "_BANK", 11)
    for resident in (1 << 30, 0):
        monkeypatch.setattr(nearest, "_RESIDENT", resident)
        similarity, position = nearest.nearest(bank, rows, queries, 7, chosen, Replicas(replicas))
        np.testing.assert_allclose(similarity, expected[0], rtol=1e-9)
        np.testing.assert_array_equal(position, expected[1])
    votes = nearest.vote(bank, labels, rows, queries, 7, 0.07, chosen, Replicas(replicas))
    np.testing.assert_array_equal(votes, nearest.vote(bank, labels, rows, queries, 7, 0.07, chosen))


def test_memory_mapped_rows_of_float16_are_those_of_float32(tmp_path):
    (bank, _), (queries, _) = points(300, 0), points(60, 1)
    np.save(tmp_path / "bank.npy", bank.astype(np.float16))
    stored, rows = np.load(tmp_path / "bank.npy", mmap_mode="r"), np.arange(0, 300, 2)
    single = stored.astype(np.float32), rows, queries.astype(np.float16).astype(np.float32), 20
    found = nearest.nearest(stored, rows, queries.astype(np.float16), 20)
    for one, other in zip(found, nearest.nearest(*single)):
        np.testing.assert_array_equal(one, other)


def test_ties():
    bank = np.float32([[1, 0], [2, 0], [3, 0], [0, 1]])
    labels = np.array([2, 1, 1, 0])
    query = np.float32([[5, 0]])
    one = [
        nearest.vote(bank, labels, np.array(rows), query, 1, 0.07)[0]
        for rows in ([0, 1, 2, 3], [1, 0, 2, 3])
    ]
    assert one == [2, 1]  # equally near: the earlier row
    assert (
        nearest.vote(bank, labels, np.array([0, 1, 3]), query, 2, 0.07)[0] == 1
    )  # equal votes: the lower class


def test_only_the_bank_votes():
    bank, labels = np.float32([[1, 0], [0, 1]]), np.array([0, 1])
    assert nearest.vote(bank, labels, np.array([1]), np.float32([[1, 0]]), 1, 0.07)[0] == 1


def test_no_overflow_and_no_division_by_zero():
    bank, labels = np.float32([[1, 0], [0.9, 0.1], [0, 0]]), np.array([1, 0, 0])
    queries = np.float32([[1, 0], [0, 0]])
    assert (
        nearest.vote(bank, labels, np.arange(3), queries, 3, 1e-4)[0] == 1
    )  # exp(1 / 1e-4) is beyond float64
    assert (
        nearest.vote(bank, labels, np.arange(3), queries, 3, 1e-4)[1] == 0
    )  # equally far from all: a majority

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tfssl import downstream
from tfssl.downstream import knn
from tfssl.downstream.features import Features
from tfssl.errors import UserError


def blobs(n, seed, dims=6, classes=4, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=[classes, dims])
    return (centres[labels] + noise * rng.normal(size=[n, dims])).astype(np.float32), labels


def naive(bank, labels, queries, k, temperature):
    predicted = []
    for q in queries.astype(np.float64):
        similarity = [q @ b / np.linalg.norm(q) / np.linalg.norm(b) for b in bank.astype(np.float64)]
        votes = np.zeros(labels.max() + 1)
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (20, 10.0), (200, 0.1)])
def test_equals_a_double_loop(k, temperature):
    (bank, labels), (queries, _) = blobs(300, 0), blobs(60, 1)
    predicted = knn.classify(bank, labels, np.arange(300), queries, k, temperature)
    np.testing.assert_array_equal(predicted, naive(bank, labels, queries, k, temperature))


def test_equals_scikit_learn():
    (bank, labels), (queries, truth) = blobs(500, 0), blobs(400, 1)
    train, test = (Features({"x": x}, y, np.arange(len(y))) for x, y in ((bank, labels), (queries, truth)))
    (result,) = downstream.run("knn", train, test, k=20, temperature=0.07)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
    assert result["value"] == reference.score(queries, truth)
    assert (result["protocol"], result["endpoint"], result["metric"]) == ("knn", "x", "accuracy")
    assert (result["k"], result["temperature"], result["train_labels"]) == (20, 0.07, 500)


def test_blocks_change_nothing(monkeypatch):
    (bank, labels), (queries, _) = blobs(300, 0), blobs(60, 1)
    bank[150:] = bank[:150]  # ties across blocks
    labels[150:] = (labels[:150] + 1) % 4
    rows = np.arange(300)
    whole = knn.classify(bank, labels, rows, queries, 5, 0.07)
    monkeypatch.setattr(knn, "_QUERIES", 7)
    monkeypatch.setattr(knn, "_BANK", 11)
    np.testing.assert_array_equal(knn.classify(bank, labels, rows, queries, 5, 0.07), whole)


def test_ties():
    bank = np.float32([[1, 0], [2, 0], [3, 0], [0, 1]])
    labels = np.array([2, 1, 1, 0])
    query = np.float32([[5, 0]])
    one = [knn.classify(bank, labels, np.array(rows), query, 1, 0.07)[0] for rows in ([0, 1, 2, 3], [1, 0, 2, 3])]
    assert one == [2, 1]  # equally near: the earlier row
    assert knn.classify(bank, labels, np.array([0, 1, 3]), query, 2, 0.07)[0] == 1  # equal votes: the lower class


def test_only_the_bank_votes():
    bank, labels = np.float32([[1, 0], [0, 1]]), np.array([0, 1])
    assert knn.classify(bank, labels, np.array([1]), np.float32([[1, 0]]), 1, 0.07)[0] == 1


def test_no_overflow_and_no_division_by_zero():
    bank, labels = np.float32([[1, 0], [0.9, 0.1], [0, 0]]), np.array([1, 0, 0])
    queries = np.float32([[1, 0], [0, 0]])
    assert knn.classify(bank, labels, np.arange(3), queries, 3, 1e-4)[0] == 1  # exp(1 / 1e-4) is beyond float64
    assert knn.classify(bank, labels, np.arange(3), queries, 3, 1e-4)[1] == 0  # equally far from all: a majority


def test_validation_images_are_not_their_own_neighbours():
    rng = np.random.default_rng(0)
    train = Features({"x": rng.normal(size=[400, 8]).astype(np.float32)}, rng.integers(0, 4, 400), np.arange(400))
    (result,) = knn.run(train, train, k=1)
    assert result["value"] == 1.0  # here each is
    assert result["val_value"] < 0.45  # labels are random: chance is 0.25


def test_more_neighbours_than_images(caplog):
    x, y = blobs(30, 0)
    features = Features({"x": x}, y, np.arange(30))
    with caplog.at_level("WARNING", logger="absl"):
        (result,) = knn.run(features, features, k=200)
    assert result["k"] == 30
    assert "k=200" in caplog.text


def test_half_precision_features():
    (bank, labels), (queries, truth) = blobs(300, 0), blobs(300, 1)
    train, test = (
        Features({"x": x.astype(np.float16)}, y, np.arange(300)) for x, y in ((bank, labels), (queries, truth))
    )
    reference = np.mean(naive(bank, labels, queries, 20, 0.07) == truth)
    assert abs(knn.run(train, test)[0]["value"] - reference) <= 0.02


@pytest.mark.parametrize("settings", [{"k": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"neighbours": 3}])
def test_bad_settings(settings):
    x, y = blobs(30, 0)
    features = Features({"x": x}, y, np.arange(30))
    with pytest.raises(UserError, match=next(iter(settings))):
        downstream.run("knn", features, features, **settings)


def test_unknown_protocol_and_endpoint():
    x, y = blobs(30, 0)
    features = Features({"x": x}, y, np.arange(30))
    with pytest.raises(UserError, match="'svc'.*logistic, knn"):
        downstream.run("svc", features, features)
    with pytest.raises(UserError, match="block9.*there is: x"):
        downstream.run("knn", features, features, endpoints=["block9"])


def test_a_validation_split_of_its_own():
    train, test, val = (
        Features({"x": x}, y, np.arange(len(y))) for x, y in (blobs(200, 0), blobs(100, 1), blobs(90, 2))
    )
    (result,) = downstream.run("knn", train, test, val=val)
    assert result["val_value"] == downstream.run("knn", train, val)[0]["value"]
    assert result["value"] == downstream.run("knn", train, test)[0]["value"]

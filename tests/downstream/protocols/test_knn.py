import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tfssl import downstream
from tfssl.downstream.features.extract import Features
from tfssl.errors import UserError


def blobs(n, seed, dims=6, classes=4, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=[classes, dims])
    return (centres[labels] + noise * rng.normal(size=[n, dims])).astype(np.float32), labels


def reference(bank, labels):
    return KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(
        bank, labels
    )


def test_equals_scikit_learn():
    (bank, labels), (queries, truth) = blobs(500, 0), blobs(400, 1)
    train, test = (
        Features({"x": x}, y, np.arange(len(y))) for x, y in ((bank, labels), (queries, truth))
    )
    (result,) = downstream.run("knn", train, test, k=20, temperature=0.07)
    assert result["value"] == reference(bank, labels).score(queries, truth)
    assert (result["protocol"], result["endpoint"], result["metric"]) == ("knn", "x", "accuracy")
    assert (result["k"], result["temperature"], result["train_labels"]) == (20, 0.07, 500)


def test_validation_images_are_not_their_own_neighbours():
    rng = np.random.default_rng(0)
    train = Features(
        {"x": rng.normal(size=[400, 8]).astype(np.float32)}, rng.integers(0, 4, 400), np.arange(400)
    )
    (result,) = downstream.run("knn", train, train, k=1)
    assert result["value"] == 1.0  # here each is
    assert result["val_value"] < 0.45  # labels are random: chance is 0.25


def test_more_neighbours_than_images(caplog):
    x, y = blobs(30, 0)
    features = Features({"x": x}, y, np.arange(30))
    with caplog.at_level("WARNING", logger="absl"):
        (result,) = downstream.run("knn", features, features, k=200)
    assert result["k"] == 30
    assert "k=200" in caplog.text


def test_half_precision_features():
    (bank, labels), (queries, truth) = blobs(300, 0), blobs(300, 1)
    train, test = (
        Features({"x": x.astype(np.float16)}, y, np.arange(300))
        for x, y in ((bank, labels), (queries, truth))
    )
    exact = reference(bank, labels).score(queries, truth)
    assert abs(downstream.run("knn", train, test)[0]["value"] - exact) <= 0.02


@pytest.mark.parametrize(
    "settings", [{"k": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"neighbours": 3}]
)
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
        Features({"x": x}, y, np.arange(len(y)))
        for x, y in (blobs(200, 0), blobs(100, 1), blobs(90, 2))
    )
    (result,) = downstream.run("knn", train, test, val=val)
    assert result["val_value"] == downstream.run("knn", train, val)[0]["value"]
    assert result["value"] == downstream.run("knn", train, test)[0]["value"]

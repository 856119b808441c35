"""What all protocols share: features that no solver can take are refused, and those of an extreme
scale are measured, in bounded memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from photographs import photographs

import tfssl
from tfssl import downstream
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data
from tfssl.downstream.protocols.few_shot import FewShot
from tfssl.downstream.protocols.low_shot import LowShot
from tfssl.downstream.protocols.svm import SVM
from tfssl.downstream.solvers import lbfgs, squared_hinge
from tfssl.errors import UserError

SETTINGS = {
    "knn": {"k": 5},
    "logistic": {},
    "svm": {"costs": "1,10"},
    "low_shot": {"shots": (4,), "samples": 2, "costs": "1,10"},
    "few_shot": {"shots": (5,), "episodes": 20, "ridges": (0.1,)},
    "mlp": {"epochs": 10, "decay_epochs": (8,), "hidden": 20, "l2": 1e-4},
}


def blobs(seed, change=lambda x: x):
    """60 points of three clouds that are 4 deviations apart."""
    y = np.arange(60) % 3
    x = np.random.default_rng(seed).normal(size=[60, 6]) + 4 * np.eye(3, 6)[y]
    return Features(
        {"x": change(x.astype(np.float32))}, y, np.arange(60), num_classes=3, source=f"set {seed}"
    )


def measured(protocol, change):
    (result,) = downstream.run(protocol, blobs(0, change), blobs(1, change), **SETTINGS[protocol])
    return result


@pytest.mark.parametrize("protocol", SETTINGS)
def test_the_scale_of_features_may_be_extreme(protocol):
    """Powers of two change no cosine, and no optimum of a rule that goes by the variance: what is
    measured is the same."""
    ordinary = measured(protocol, lambda x: x)["value"]
    assert ordinary > 0.8
    for power in (123, -120):  # up to 8e37, and from 8e-37
        result = measured(protocol, lambda x: x * np.float32(2.0**power))  # noqa: B023
        assert result["value"] == pytest.approx(ordinary, abs=0.05)
    assert result["scale"] > 1e30 and "scale" not in measured(protocol, lambda x: x)


@pytest.mark.parametrize("protocol", SETTINGS)
def test_constant_features_and_rows_of_zeros(protocol):
    """Nothing to go by is chance; some rows without features are no obstacle."""
    assert measured(protocol, lambda x: 0 * x + 7)["value"] == pytest.approx(1 / 3, abs=0.02)
    assert measured(protocol, lambda x: x * (np.arange(60) % 10 > 0)[:, None])["value"] > 0.7


@pytest.mark.parametrize("protocol", SETTINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_are_counted(protocol, bad):
    def change(x):
        x[[3, 5, 8], [0, 1, 2]] = bad
        return x

    with pytest.raises(
        UserError,
        match=r"endpoint x is infinite or not a number for 3 of 60 images of set 0 \(the first: row 3\)",
    ):
        measured(protocol, change)


def test_shapes_that_do_not_fit():
    for values in (np.zeros([60]), np.zeros([59, 4])):
        with pytest.raises(UserError, match="endpoint x has shape"):
            downstream.run("knn", blobs(0, lambda x: values), blobs(1))  # noqa: B023


def test_results_are_complete():
    (result,) = downstream.run("knn", blobs(0), blobs(1), k=3, seed=1)
    assert (result.chosen_on, result.reported_on) == ("val_fraction 0.2 of set 0", "set 1")
    assert result["value"] == result.value and dict(result)["k"] == 3
    (result,) = downstream.run("knn", blobs(0), blobs(1), val=blobs(2))
    assert result.chosen_on == "set 2"
    assert downstream.run("knn", blobs(0), blobs(1), val_fraction=0)[0].chosen_on is None


def test_features_and_sources_are_not_mistaken():
    source = tfssl.open_source("glyphs", "train[:4]")
    with pytest.raises(
        UserError, match="knn reads features: give those that tfssl.downstream.extract makes"
    ):
        downstream.run("knn", source, source)
    for parts, more in (((blobs(0), blobs(1)), {"module": object()}), ((source, source), {})):
        with pytest.raises(UserError, match="segmentation reads whole images"):
            downstream.run("segmentation", *parts, **more)
    with pytest.raises(
        UserError,
        match="protocol knn has no setting neighbors; it has: k, temperature, endpoints, val",
    ):
        downstream.run("knn", blobs(0), blobs(1), neighbors=3)


@pytest.mark.parametrize(
    "protocol",
    [
        SVM(costs=[0.1], folds=2),
        LowShot(costs=[0.1], shots=[250], samples=2),
        FewShot(shots=[5], ridges=[1.0], ways=0, queries=0, episodes=3),
    ],
    ids=lambda protocol: protocol.name,
)
def test_memory_is_that_of_a_chunk(protocol, tmp_path, monkeypatch):
    """Features on disk, of more rows than stay in memory: the same results, without an array of
    all of them."""

    def stored(rows):
        features = photographs(rows, rows, 400, several=False)
        np.save(tmp_path / f"{rows}.npy", features.endpoints["x"])
        array = np.load(tmp_path / f"{rows}.npy", mmap_mode="r")
        return dataclasses.replace(features, endpoints={"x": array})

    def measured():
        tracemalloc.start()
        try:
            (result,) = protocol.run(data, ["x"])
            return result, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    data = Data(stored(4000), stored(3999))
    size = 4000 * 400 * 8  # bytes in float64, which the solvers compute in
    whole, most = measured()
    assert most > size
    monkeypatch.setattr(squared_hinge, "_RESIDENT", 0)
    monkeypatch.setattr(squared_hinge, "_CHUNK_VALUES", 1 << 16)
    monkeypatch.setattr(squared_hinge, "_AXES_VALUES", 1 << 16)
    monkeypatch.setattr(lbfgs, "_CHUNK_VALUES", 1 << 16)
    result, most = measured()
    assert most < size / 2
    assert result.value == pytest.approx(whole.value, abs=1e-5)
    assert result.value > result.chance + 0.1

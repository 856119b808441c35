"""Nearest images: the rows that are found, the pictures behind them, and the file."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules

from tfssl import downstream
from tfssl.data import open_source
from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import neighbors
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Of 12 training and 6 test pictures, each of one gray level, with two classes; one training
    file is damaged."""
    folder = tmp_path_factory.mktemp("neighbors")
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            path = folder / "images" / split / ("even", "odd")[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(np.full([20, 20, 3], 20 * i, np.uint8)).numpy())
    (folder / "images" / "train" / "even" / "04.png").write_bytes(b"\x89PNG damaged")
    module = modules.load(tiny_modules.save_ours(folder))
    sources = [open_source(f"folder:{folder}/images", split) for split in ("train", "test")]
    return [downstream.extract(module, source, ["pre_logits", "pixels"]) for source in sources]


def test_the_nearest_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 5)), rng.normal(size=(12, 5))
    labels = np.repeat([0, 1, 2], 4)
    train, test = (
        Features({"x": bank}, np.zeros(40, int), np.arange(40)),
        Features({"x": queries}, labels, np.arange(12)),
    )
    rows, near, similarity = neighbors.find(train, test, "x", 7, seed=3, queries=6)
    assert len(set(rows)) == 6
    np.testing.assert_array_equal(labels[rows], [0, 0, 1, 1, 2, 2])
    for row, mine, cosines in zip(rows, near, similarity):
        expected = bank @ queries[row] / np.linalg.norm(bank, axis=1) / np.linalg.norm(queries[row])
        np.testing.assert_array_equal(mine, np.argsort(-expected)[:7])
        np.testing.assert_allclose(cosines, np.sort(expected)[::-1][:7], rtol=1e-10)
    assert list(neighbors.find(train, test, "x", 7, seed=4, queries=6)[0]) != list(rows)
    assert neighbors.find(train, test, "x", 100)[1].shape == (10, 40)


def test_pictures_are_those_behind_the_rows(features):
    """Also beyond an image that could not be read, and where one stands twice."""
    train, _ = features
    assert len(train.labels) == 11
    levels = [
        10 * 2 * int(train.images.source.name(int(i)).split("/")[-1][:2]) for i in train.index
    ]
    rows = np.array([7, 2, 10, 2])
    pictures = neighbors.pictures(train, rows)
    assert pictures.shape == (4, 16, 16, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures[:, 3, 5, 1], np.array(levels)[rows])


def test_plot(features):
    picture = tf.io.decode_png(
        neighbors.plot(*features, "pixels", 3, title="a module of $1_000 and $2")
    ).numpy()
    assert picture.shape[0] > 500 and picture.shape[1] > 300
    colors = {tuple(color) for color in picture.reshape(-1, picture.shape[-1])[:, :3]}
    assert {(0x22, 0x88, 0x33), (0xEE, 0x66, 0x77)} <= colors  # of the same class and of another


def test_names_with_dollars_are_no_formulas(features):
    """Those of classes, of a module and of an endpoint; Matplotlib would refuse the formula _5."""
    names = ["from_$5_to_$10", "_{$"]
    train, test = (dataclasses.replace(part, class_names=names) for part in features)
    png = neighbors.plot(train, test, "pixels", 3, title="price_$5_to_$10, block_$1_$2")
    assert png.startswith(b"\x89PNG")


def test_saved_features(features, tmp_path):
    train, _ = features
    path = train.save(str(tmp_path / "new" / "train.npz"))
    with np.load(path) as saved:
        assert set(saved) == {"pre_logits", "pixels", "labels", "index", "names", "class_names"}
        for name, values in train.endpoints.items():
            np.testing.assert_array_equal(saved[name], values)
        np.testing.assert_array_equal(saved["labels"], train.labels)
        np.testing.assert_array_equal(saved["index"], train.index)
        assert saved["names"][2] == train.images.source.name(int(train.index[2]))
        assert list(saved["class_names"]) == ["even", "odd"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["train.npz"]

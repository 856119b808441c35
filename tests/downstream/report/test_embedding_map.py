"""Maps of embeddings: scikit-learn's coordinates, and a page that shows images without scripts."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.decomposition import PCA

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import embedding_map
from tfssl.errors import UserError


def features(n=30, labels=True):
    rng = np.random.default_rng(0)
    x = rng.normal(size=[n, 8]) * np.arange(8, 0, -1)
    classes = np.arange(n) % 3 if labels else np.full(n, -1)
    return Features({"x": x}, classes, np.arange(n), 3, ["a<b", "c", "d"] if labels else None)


def test_the_principal_components_are_scikit_learns():
    test = features()
    made = embedding_map.make(test, "x")
    expected = PCA(2, svd_solver="full").fit_transform(test.endpoints["x"])
    low, high = expected.min(0), expected.max(0)
    expected = (expected - low) / (high - low)
    for axis in range(2):  # up to the sign, which is theirs to choose
        mine = made.points[:, axis]
        assert (
            min(abs(mine - expected[:, axis]).max(), abs(1 - mine - expected[:, axis]).max()) < 1e-9
        )
    np.testing.assert_array_equal(made.group, test.labels)


def test_other_ways_and_what_they_need(monkeypatch):
    made = embedding_map.make(features(), "x", "tsne", seed=1)
    again = embedding_map.make(features(), "x", "tsne", seed=1)
    np.testing.assert_array_equal(made.points, again.points)
    assert made.points.min() == 0 and made.points.max() == 1
    monkeypatch.setitem(sys.modules, "umap", None)
    for kind, complaint in (("umap", "pip install umap-learn"), ("som", "there are pca")):
        with pytest.raises(UserError, match=complaint):
            embedding_map.make(features(), "x", kind)
    with pytest.raises(UserError, match="shows nothing"):
        embedding_map.make(features(3), "x")


def test_clusters_stand_for_classes_and_the_picture_is_sound():
    """Well-formed, names escaped, a point and a thumbnail for each image, at most POINTS of them."""
    made = embedding_map.make(features(60, labels=False), "x")
    assert set(made.group) == set(range(10)) and made.groups[0] == "cluster 1"
    many = embedding_map.make(features(900), "x")
    assert len(many.rows) == embedding_map.POINTS and many.rows[-1] == 899
    images = np.zeros([len(many.rows), 40, 40, 3], np.uint8)
    page = embedding_map.thumbnails(images, many.rows) + embedding_map.svg(many, "a & b")
    tree = ElementTree.fromstring(f"<page>{page}</page>")
    ids = {image.get("id") for image in tree.iter("image")}
    used = [use.get("href")[1:] for use in tree.iter("use")]
    assert set(used) == ids and len(used) == 400 and "<script" not in page
    assert any(text.text == "a<b" for text in tree.iter("text"))
    assert not re.search(r"https?://", page)

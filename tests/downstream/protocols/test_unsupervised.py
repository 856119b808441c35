"""Measures without labels as a protocol: on features alone, and on a module's images."""

import numpy as np
import pytest
from encoders import save_encoder

import tfssl
from tfssl import downstream
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocols.unsupervised import Unsupervised
from tfssl.errors import UserError
from tfssl.testing import check_protocol


def test_keeps_the_contract():
    results = check_protocol(
        Unsupervised,
        images=50,
        refused=[{"images": 1}, {"crops": "none"}],
        of_test=("rankme", "uniformity", "normality"),
    )
    assert [r["train_labels"] for r in results] == [50, 50] and results[0].val_value is None
    assert "alignment" not in results[0]  # which has no images to look at


def test_without_labels_and_with_images(photos, tmp_path):
    """The rank is that of the features; two crops of a photograph are more alike than two
    photographs, less than one with itself."""
    path = save_encoder(f"{tmp_path}/encoder")
    source = tfssl.open_source(f"folder:{photos}")
    train = downstream.extract(path, source, ["pre_logits", "pixels"])
    bare = Features(train.endpoints, np.full(len(train.index), -1), train.index)
    results = downstream.run("unsupervised", train, train)
    for result, alone in zip(results, downstream.run("unsupervised", bare, bare)):
        x = np.asarray(train.endpoints[result.endpoint], np.float64)
        share = np.linalg.svd(x, compute_uv=False)
        share = share / share.sum() + 1e-7
        assert result["rankme"] == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-6)
        assert result.value == pytest.approx(result["rankme"] / min(x.shape))
        assert {**alone}["rankme"] == result["rankme"] and -1 <= result["alignment"] < 1
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        others = (unit @ unit.T)[np.triu_indices(len(x), 1)].mean()
        assert result["alignment"] > others
    unread = Features({}, train.labels, train.index)  # as a command gives it, of training images
    assert len(downstream.run("unsupervised", unread, bare)) == len(results)
    again = downstream.run("unsupervised", train, train)
    assert [r["alignment"] for r in again] == [r["alignment"] for r in results]
    with pytest.raises(UserError, match="one image"):
        one = Features({"x": np.ones([1, 3], np.float32)}, np.zeros(1, int), np.arange(1))
        downstream.run("unsupervised", one, one)

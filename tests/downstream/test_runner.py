"""Protocols that were not asked for by name are measured as far as the images go."""

import numpy as np
import pytest

from tfssl.downstream import runner as measure
from tfssl.downstream.features.extract import Features
from tfssl.errors import UserError


def features(per_class, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], per_class)
    points = rng.normal(size=[len(labels), 4]).astype(np.float32) + labels[:, None]
    return Features(
        {"a": points, "b": points[:, :2]}, labels, np.arange(len(labels)), num_classes=3, source=f"set {seed}"
    )


def test_numbers_of_images_that_are_too_large_are_left_out():
    protocols = {
        "low_shot": {"shots": "1,4,64,2", "costs": "1", "samples": 2},
        "few_shot": {"shots": ["20"]},
        "knn": {"k": 3},
    }
    common = {"endpoints": ["a", "b"], "val_fraction": 0.25, "seed": 0}
    train, test, said = features(8, 0), features(5, 1), []
    results = list(
        measure.on_features(protocols, train, test, optional=["low_shot", "few_shot"], left_out=said.append, **common)
    )
    found = [(r["protocol"], r["endpoint"], r.get("shots")) for r in results]
    low = [("low_shot", endpoint, k) for endpoint in "ab" for k in (1, 2, 4)]
    assert found == [*low, ("knn", "a", None), ("knn", "b", None)]
    assert list(dict.fromkeys(said)) == [
        "left out: low_shot on 24 labels, k=64: shots=1,2,4,64: class 0 has 8 images in set 0",
        "left out: few_shot on 24 labels: shots=20: class 0 has 6 images to learn from in set 0",
    ]
    # Asked for by name, they are refused.
    with pytest.raises(UserError, match="shots=1,2,4,64: class 0 has 8 images"):
        list(measure.on_features(protocols, train, test, optional=["few_shot"], **common))

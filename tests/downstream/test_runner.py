"""Protocols that were not asked for by name are measured as far as the images go."""

import numpy as np
import pytest

from tfssl.downstream import runner
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data
from tfssl.downstream.protocols.few_shot import FewShot
from tfssl.downstream.protocols.knn import KNN
from tfssl.downstream.protocols.low_shot import LowShot
from tfssl.errors import UserError


def features(per_class, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], per_class)
    points = rng.normal(size=[len(labels), 4]).astype(np.float32) + labels[:, None]
    return Features(
        {"a": points, "b": points[:, :2]},
        labels,
        np.arange(len(labels)),
        num_classes=3,
        source=f"set {seed}",
    )


def test_numbers_of_images_that_are_too_large_are_left_out():
    protocols = [LowShot(shots="1,4,64,2", costs="1", samples=2), FewShot(shots=["20"]), KNN(k=3)]
    data, said = Data(features(8, 0), features(5, 1), val_fraction=0.25), []
    results = list(
        runner.measure(protocols, data, optional=["low_shot", "few_shot"], left_out=said.append)
    )
    measured = [(r.protocol, r.endpoint, r.shots) for r in results]
    low = [("low_shot", endpoint, k) for endpoint in "ab" for k in (1, 2, 4)]
    assert measured == [*low, ("knn", "a", None), ("knn", "b", None)]
    assert list(dict.fromkeys(said)) == [
        "left out: low_shot on 24 labels, k=64: shots=1,2,4,64: class 0 has 8 images in set 0",
        "left out: few_shot on 24 labels: shots=20: class 0 has 6 images to learn from in set 0",
    ]
    # Asked for by name, they are refused.
    with pytest.raises(UserError, match="shots=1,2,4,64: class 0 has 8 images"):
        list(runner.measure(protocols, data, optional=["few_shot"]))

"""Heads of protocols that read maps, learned on one device and on several."""

import numpy as np
import pytest
import tiny_modules

from tfssl import downstream
from tfssl.hub import load as modules


def check_replicas(protocol, task, train, folder, replicas, monkeypatch, layers, **settings):
    """The heads and results of one device and of replicas are the same to 1e-9, under `float64`.
    `task`: the class whose `published` gives heads; `layers`: their variables."""
    handle, heads = tiny_modules.save_ours(folder), []
    monkeypatch.setattr(task, "published", lambda task, network: network.head.variables)
    few = {"epochs": 2, "learning_rate": 0.01, "batch_size": 4, "endpoints": ["stem"]}
    few |= {"val_fraction": 0, "publish": heads.append, **settings}
    one, other = (
        downstream.run(protocol, train, train, module=modules.load(handle), strategy=among, **few)[
            0
        ]
        for among in (None, replicas)
    )
    assert len(heads[0]) == len(heads[1]) == layers
    for v, w in zip(*([v.numpy() for v in found] for found in heads)):
        np.testing.assert_allclose(w, v, rtol=0, atol=1e-9 * np.abs(v).max())
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["value"] == pytest.approx(one["value"], abs=1e-3)

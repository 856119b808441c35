"""Untrained networks beside trained ones: what they are, and who shares one."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tfssl.export import untrained

TINY = {
    "backbone": "resnet18_v2",
    "width_multiplier": 0.0625,
    "stem": "small",
    "image_size": 16,
    "decay_epochs": [1.0, 2.5],
}


def module(random_init=False, **flags):
    """What `beside` looks at of a module that tfssl-export wrote."""
    facts = {
        "training_flags": {**TINY, "task": "rotation", **flags},
        "random_init": random_init,
        "endpoints": ["pre_logits"],
    }
    return types.SimpleNamespace(facts=facts)


def test_equal_networks_share_one(tmp_path):
    opened = {
        "rotation": module(seed=3, export_dir="/elsewhere", random_init=False, step=7),
        "supervised": module(task="supervised", num_classes=5),  # another task, the same network
        "wide": module(width_multiplier=0.125),
        "foreign": types.SimpleNamespace(facts={}),
        "odd": module(backbone="resnet19"),
    }
    said = []
    found = untrained.beside(opened, str(tmp_path / "untrained"), seed=5, image_size=16, resize=18, say=said.append)
    assert {name: names for name, (_, names) in found.items()} == {
        "random-rotation": ["rotation", "supervised"],
        "random-wide": ["wide"],
    }
    assert [line.split(":")[0] for line in said] == ["foreign", "odd"] and "resnet19" in said[1]
    for name, channels in (("random-rotation", 32), ("random-wide", 64)):
        made, _ = found[name]
        assert made.facts["random_init"] and made.facts["training_flags"]["seed"] == 5
        assert made.endpoints(tf.zeros([1, 16, 16, 3]))["pre_logits"].shape == (1, channels)
    # A second time they are there.
    folders = sorted(tmp_path.glob("untrained/*"))
    stamps = [folder.stat().st_mtime_ns for folder in folders]
    only = {"rotation": opened["rotation"]}
    (again,) = untrained.beside(only, str(tmp_path / "untrained"), seed=5, image_size=16, resize=18).items()
    assert again[0] == "random" and [folder.stat().st_mtime_ns for folder in folders] == stamps
    images = tf.constant(np.random.default_rng(0).random([1, 16, 16, 3], np.float32))
    one, other = (m.endpoints(images)["pre_logits"].numpy() for m in (again[1][0], found["random-rotation"][0]))
    assert one == pytest.approx(other)


def test_an_untrained_module_stands_for_its_fellows(tmp_path):
    said = []
    opened = {
        "a": module(seed=1),
        "start": module(seed=2, random_init=True),
        "other": module(width_multiplier=1.0, random_init=True),
    }
    found = untrained.beside(opened, str(tmp_path), say=said.append)
    assert {name: names for name, (_, names) in found.items()} == {"start": ["a"], "other": []}
    assert found["start"][0] is opened["start"] and not list(tmp_path.iterdir())
    assert said == [
        "a: its network untrained is start",
        "start is an untrained network itself",
        "other is an untrained network itself",
    ]

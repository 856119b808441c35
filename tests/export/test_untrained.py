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


def test_facts_of_a_module_are_no_command_line():
    """Of all that a stranger writes into tfssl.json, only settings of the network and of its task become flags, with one = each."""
    hostile = {
        "task": "simclr",
        "backbone": "resnet18_v2",
        "temperature": 0.5,
        "flagfile": "/etc/passwd",
        "export_dir=/elsewhere": "",
        "export_dir": "/elsewhere",
        "workdir": "/elsewhere",
        "init_module": "/elsewhere",
        "dataset": "folder:/",
        "data_service": "grpc://elsewhere:1",
        "step": 3,
        "notarball": "",
        "num_classes": 7,
        "--flagfile": "x",
        "stem": "small\n--flagfile=/etc/passwd",
    }
    flags = untrained._flags({"training_flags": hostile, "endpoints": ["head1", "head1=--flagfile"]})
    expected = [
        "--backbone=resnet18_v2",
        "--head_endpoints=1",
        "--num_classes=7",
        "--stem=small\n--flagfile=/etc/passwd",
    ]
    assert flags == [*expected, "--task=simclr", "--temperature=0.5"]
    for task in ({"a": 1}, ["rotation"], None, 5):
        assert untrained._flags({"training_flags": {"task": task, "backbone": "vgg11"}}) == []
    jigsaw = {"task": "jigsaw", "backbone": "vgg11", "permutations_file": "gs://elsewhere/p", "permutations": 10}
    assert "gs://" not in str(untrained._flags({"training_flags": jigsaw}))

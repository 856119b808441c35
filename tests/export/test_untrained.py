"""Untrained networks beside trained ones: what they are, and who shares one."""

import json
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones
from tfssl.config.configs import TrainConfig
from tfssl.config.generated import as_text
from tfssl.export import untrained
from tfssl.export.network import save_network
from tfssl.hub import load as modules
from tfssl.training.registered import registered

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
    found = untrained.beside(
        opened, str(tmp_path / "untrained"), seed=5, image_size=16, resize=18, say=said.append
    )
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
    (again,) = untrained.beside(
        only, str(tmp_path / "untrained"), seed=5, image_size=16, resize=18
    ).items()
    assert again[0] == "random" and [folder.stat().st_mtime_ns for folder in folders] == stamps
    images = tf.constant(np.random.default_rng(0).random([1, 16, 16, 3], np.float32))
    one, other = (
        m.endpoints(images)["pre_logits"].numpy()
        for m in (again[1][0], found["random-rotation"][0])
    )
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
    """Of all that a stranger writes into tfssl.json, only settings of the network and of its task
    become flags, with one = each."""
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
    flags = untrained._flags(
        {"training_flags": hostile, "endpoints": ["head1", "head1=--flagfile"]}
    )
    expected = [
        "--backbone=resnet18_v2",
        "--head_endpoints=1",
        "--num_classes=7",
        "--stem=small\n--flagfile=/etc/passwd",
    ]
    assert flags == [*expected, "--task=simclr", "--temperature=0.5"]
    for task in ({"a": 1}, ["rotation"], None, 5):
        assert untrained._flags({"training_flags": {"task": task, "backbone": "vgg11"}}) == []
    jigsaw = {
        "task": "jigsaw",
        "backbone": "vgg11",
        "permutations_file": "gs://elsewhere/p",
        "permutations": 10,
    }
    assert "gs://" not in str(untrained._flags({"training_flags": jigsaw}))
    distill = {"task": "distill", "backbone": "vgg11", "teacher": "https://elsewhere/module"}
    assert untrained._flags({"training_flags": distill})[-1] == "--task=distill"


def test_the_same_weights_as_the_command_in_a_process_of_its_own(tmp_path, tfssl_command):
    """Also after other networks were built here, and under another precision, which stays."""
    flags = {**TINY, "task": "simclr", "seed": 7, "projection_size": 8}
    texts = {name: as_text(value) for name, value in flags.items()}
    line = [f"--{name}={text}" for name, text in texts.items()]
    done = tfssl_command(
        "export",
        "--random_init",
        f"--export_dir={tmp_path / 'command'}",
        "--head_endpoints=1",
        *line,
    )
    assert done.returncode == 0, done.stderr
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        config = TrainConfig.from_record(texts, *registered({}))
        for name in ("first", "second"):
            untrained.export(config.replace(workdir="w"), str(tmp_path / name), head_endpoints=1)
        assert tf.keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    expected = tf.saved_model.load(str(tmp_path / "command"))
    assert len(expected.variables) > 50
    for name in ("first", "second"):
        made = tf.saved_model.load(str(tmp_path / name))
        assert list(made.endpoints(tf.zeros([1, 16, 16, 3]))) == list(
            expected.endpoints(tf.zeros([1, 16, 16, 3]))
        )
        for one, other in zip(made.variables, expected.variables):
            np.testing.assert_array_equal(one, other)
    one, other = (
        json.loads((tmp_path / n / "assets" / "tfssl.json").read_text())
        for n in ("command", "first")
    )
    assert one == other


def test_a_task_of_somebodys_own_is_not_imported(tmp_path, monkeypatch):
    """Its untrained fellow is known by what both say; nothing is made for it, unless its class is
    here already."""
    (tmp_path / "strangers.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = {"task": "strangers:Task", "depth": 3}
    opened = {
        "trained": module(**theirs, seed=1, learning_rate=0.3),
        "untrained": module(random_init=True, **theirs),
        "deeper": module(**{**theirs, "depth": 4}),
        "code": module(task="subprocess:Popen"),
    }
    said = []
    found = untrained.beside(opened, str(tmp_path / "made"), say=said.append)
    assert {name: names for name, (_, names) in found.items()} == {"untrained": ["trained"]}
    assert "strangers" not in sys.modules and not (tmp_path / "made").exists()
    assert (
        all("is a class that is not imported here" in line for line in said[2:]) and len(said) == 4
    )


def test_imported_weights_have_their_network_untrained(tmp_path):
    """As `tfssl-import --random_init` writes it, which stands for it where it is given."""
    network = backbones.build("resnet18_v1", 1 / 16, "small", bn_epsilon=1e-5)
    network.build((None, None, None, 3))
    facts = {"source": {"family": "moco_v2"}}
    trained = modules.load(
        save_network(network, tmp_path / "m", (0.5,) * 3, (0.25,) * 3, 16, facts=facts)
    )
    said = []
    found = untrained.beside({"moco": trained}, str(tmp_path / "beside"), seed=3, say=said.append)
    ((module, names),) = [found["random"]]
    assert names == ["moco"] and not said and module.facts["random_init"]
    assert (module.facts["crop"], module.facts["normalization"]) == (
        16,
        trained.facts["normalization"],
    )
    tf.keras.utils.set_random_seed(3)
    again = backbones.build(**trained.facts["network"])
    again.build((None, None, None, 3))
    for ours, theirs in zip(module.variables, again.variables):
        np.testing.assert_array_equal(ours, theirs)
    given = untrained.beside({"moco": trained, "r": module}, str(tmp_path / "b"), say=said.append)
    assert given["r"][1] == ["moco"] and "moco: its network untrained is r" in said

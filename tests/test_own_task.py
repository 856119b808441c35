"""A task and a backbone from outside the package, by their import paths: they train, resume, export
and are evaluated beside their untrained network."""

import functools
import json
import re
import sys

import numpy as np
import pytest
import runs
import tensorflow as tf

from tfssl import pretext
from tfssl.hub import load as modules
from tfssl.pretext.rotation import Rotation

TASK = '''
import tensorflow as tf

from tfssl.pretext.rotation import Rotation


class Darker(Rotation):
    """Rotations of darker images.

    Args:
      darkness: By how much, a fraction.
    """

    flag_prefix = "own_"

    def __init__(self, backbone, darkness=0.5, **settings):
        super().__init__(backbone, **settings)
        self.darkness = darkness

    def normalize(self, images):
        return super().normalize((1 - self.darkness) * images)
'''


BACKBONE = '''
import tensorflow as tf

from tfssl.backbones import Network


class Plain(Network):
    """Convolutions one after the other, and their mean.

    Args:
      depth: How many.
    """

    min_image_size = 4

    def __init__(self, depth=2, **common):
        super().__init__(**common)
        self.depth = depth
        self.endpoint_names = (*(f"conv{i}" for i in range(depth)), "pre_logits")
        self.convs = [tf.keras.layers.Conv2D(self.scaled(64), 3, 2, name=f"conv{i}") for i in range(depth)]
        self.norms = [self.norm(f"norm{i}") for i in range(depth)]

    def build_layers(self, shape):
        channels = shape[-1]
        for conv, norm in zip(self.convs, self.norms):
            with tf.name_scope(conv.name):
                conv.build((None, None, None, channels))
                norm.build((None, None, None, conv.filters))
            channels = conv.filters
        return channels

    def endpoints(self, images, training):
        x, endpoints = images, {}
        for conv, norm in zip(self.convs, self.norms):
            endpoints[conv.name] = x = tf.nn.relu(norm(conv(x), training=training))
        return {**endpoints, "pre_logits": tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])}
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "someones_tasks.py").write_text(TASK)
    (folder / "someones_nets.py").write_text(BACKBONE)
    return functools.partial(runs.command, first=functools.partial(runs.on_path, str(folder)))


@pytest.mark.costs(180, "six commands")
def test_from_training_to_evaluation(command, photos, tmp_path):
    workdir = tmp_path / "run"
    flags = (
        f"--dataset=folder:{photos}",
        f"--workdir={workdir}",
        *runs.TINY,
        "--own_darkness=0.25",
        "--checkpoint_steps=4",
    )
    flags = (
        "--task=someones_tasks:Darker",
        *(f.replace("--image_size", "--own_image_size") for f in flags),
    )
    flags = (
        *(f for f in flags if not f.startswith("--stem")),
        "--backbone=someones_nets:Plain",
        "--depth=3",
    )
    done = command("train", *flags, "--train_steps=4")
    assert (
        done.returncode == 0 and "someones_tasks:Darker: someones_nets:Plain x0.0625" in done.stdout
    ), done.stderr
    record = workdir / "flags.flags"
    assert "--depth=3\n" in record.read_text() and "--stem" not in record.read_text()
    assert (
        "--own_darkness=0.25\n" in record.read_text()
        and "--own_image_size=16\n" in record.read_text()
    )
    done = command("train", f"--flagfile={record}", "--train_steps=8")
    assert done.returncode == 0 and "resuming at step 4 of 8" in done.stdout, done.stderr
    other = command("train", f"--flagfile={record}", "--own_darkness=0.5")
    assert other.returncode == 1 and "its --own_darkness is 0.25, not 0.5" in other.stderr, (
        other.stderr
    )

    names = {"own": (), "start": ("--random_init",)}
    for name, more in names.items():
        done = command("export", f"--workdir={workdir}", f"--export_dir={tmp_path / name}", *more)
        assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "own" / "assets" / "tfssl.json").read_text())
    assert facts["backbone"] == facts["training_flags"]["backbone"] == "someones_nets:Plain"
    assert facts["endpoints"] == ["conv0", "conv1", "conv2", "pre_logits"]
    assert (
        facts["task"] == facts["training_flags"]["task"] == "someones_tasks:Darker"
        and facts["step"] == 8
    )
    assert not {"someones_tasks", "someones_nets"} & set(
        sys.modules
    )  # nothing here has imported it, and loading the module does not
    module = modules.load(str(tmp_path / "own"))
    assert not {"someones_tasks", "someones_nets"} & set(sys.modules)
    images = np.random.default_rng(0).random([2, 16, 16, 3], np.float32)
    assert module.endpoints(tf.constant(images))["pre_logits"].shape == (2, 4)

    modules_of = ",".join(f"{name}={tmp_path / name}" for name in names)
    split = (f"--dataset=folder:{photos}", "--train_split=train[:70%]", "--test_split=train[70%:]")
    evaluation = (
        f"--module={modules_of}",
        *split,
        "--protocol=knn",
        "--endpoints=pre_logits",
        "--random_init",
    )
    done = runs.command(
        "evaluate", *evaluation, f"--workdir={tmp_path / 'evaluation'}"
    )  # without the package
    assert done.returncode == 0 and "own: its network untrained is start" in done.stdout, (
        done.stdout + done.stderr
    )
    record = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert record["modules"]["start"]["untrained_of"] == ["own"]


def test_a_class_that_is_not_there(command):
    for task, message in (
        ("someones_tasks:Darkest", "defines no class 'Darkest'"),
        ("nobodys_tasks:Darker", "no module 'nobodys_tasks'.*PYTHONPATH"),
        ("darker", "unknown task 'darker': choose one of rotation, .*or the import path"),
    ):
        done = command("train", f"--task={task}", "--workdir=w")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert re.search(message, done.stderr), done.stderr


def test_its_flags_are_in_the_help(command):
    done = command("train", "--task=someones_tasks:Darker", "--help")
    assert (
        "--own_darkness" in done.stdout
        and "By how much, a fraction. Default: 0.5 for someones_tasks:Darker." in done.stdout
    )


def test_a_class_is_built_and_named():
    """In a notebook, also where it is defined there and so has no import path."""

    class Mine(Rotation):
        def __init__(self, backbone, extra=1, **settings):
            super().__init__(backbone, **settings)
            self.extra = extra

    model = pretext.build(Mine, "resnet18_v2", extra=3, image_size=16)
    assert model.settings == {"extra": 3, "image_size": 16} and model.extra == 3
    assert pretext.name_of(Rotation) == "rotation" and pretext.name_of(Mine).endswith(
        ":test_a_class_is_built_and_named.<locals>.Mine"
    )

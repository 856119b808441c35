"""A package of somebody else, installed: its task, protocol, backbone and source through all five
commands."""

import csv
import functools
import json
import os
import subprocess
import sys

import pytest
import runs

FILES = {
    "setup.py": """
from setuptools import setup

setup(name="outside", version="1.0", packages=["outside"])
""",
    "outside/__init__.py": '"""Additions to tfssl."""\n',
    "outside/task.py": '''
import tensorflow as tf

from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.parts.target import MomentumNetwork


class Follow(InceptionImages):
    """Predict a target network's features of the mirrored image; the target network is published.

    Args:
      momentum: EMA decay of the target network per step.
    """

    flag_prefix = "follow_"

    def __init__(self, backbone, momentum: float = 0.9, **common):
        super().__init__(backbone, **common)
        self.momentum, self.target = momentum, MomentumNetwork(self.backbone)
        self.scale = tf.keras.layers.Dense(1, name="scale", dtype=tf.keras.backend.floatx())

    @property
    def published(self):
        return (self.target.backbone,)

    def start(self):
        self.target.copy()

    def call(self, batch, training=False):
        x = self.endpoints(batch["image"], training)["pre_logits"]
        target = self.target(self.normalize(batch["image"][:, :, ::-1]), training)
        return {"x": x * self.scale(x), "target": target}

    def objective(self, batch, outputs):
        return tf.reduce_mean((outputs["x"] - outputs["target"]) ** 2, 1), {}

    def after_step(self, batch, outputs):
        self.target.follow(self.momentum)

    def groups(self):
        return apart(super().groups(), Group(self.scale.trainable_variables, rate=2.0))

    def chance(self):
        return {"loss": float("nan")}
''',
    "outside/protocol.py": '''
import time

import numpy as np

from tfssl.downstream.protocol import Protocol
from tfssl.downstream.results import Result


class NearestMean(Protocol):
    """The class of the nearest mean.

    Args:
      power: of the coordinates' distances.
    """

    name = "nearest_mean"
    flag_prefix = "mean_"

    def __init__(self, power: float = 2.0):
        self.power = power

    def run(self, data, endpoints):
        part = data.split()
        for endpoint in endpoints:
            begun, x, y = time.time(), data.train.endpoints[endpoint].astype(np.float32), data.train.labels
            means = np.stack([x[part.fit][y[part.fit] == c].mean(0) for c in np.unique(y)])

            def accuracy(x, y, means=means):
                distances = (np.abs(x[:, None].astype(np.float32) - means) ** self.power).sum(-1)
                return float(np.mean(distances.argmin(1) == y))

            yield Result(
                protocol=self.name,
                endpoint=endpoint,
                metric=self.metric,
                value=accuracy(data.test.endpoints[endpoint], data.test.labels),
                val_value=accuracy(x[part.val], y[part.val]),
                train_labels=len(part.rows),
                seconds=time.time() - begun,
            )
''',
    "outside/nets.py": '''
import tensorflow as tf


class TinyNet(tf.keras.Model):
    """Two convolutions.

    Args:
      channels: of the second.
    """

    def __init__(self, channels: int = 8, **settings):
        super().__init__(**settings)
        self.channels = channels
        self.first = tf.keras.layers.Conv2D(4, 3, 2, activation="relu", name="first")
        self.second = tf.keras.layers.Conv2D(channels, 3, activation="relu", name="second")

    def call(self, images, training=None):
        return self.second(self.first(images))

    def get_config(self):
        return {"channels": self.channels}
''',
    "outside/source.py": '''
import tensorflow as tf

from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.splits import resolve


class Stripes(IndexedSource):
    """Images of stripes, upright or level: 36 to train on, 12 to test."""

    def __init__(self, spec, path="", split="train"):
        self.ranges = resolve(split, {"train": [36], "test": [12]}, spec)
        first = {"train": 0, "test": 36}
        numbers = [first[name] + i for name, start, stop in self.ranges for i in range(start, stop)]
        super().__init__(spec, split, len(numbers), 2, ["level", "upright"])
        with tf.device("CPU"):
            self._numbers = tf.constant(numbers, tf.int64)

    def fetch(self, record):
        number = tf.gather(self._numbers, record["index"])
        stripes = tf.cast(tf.range(20, dtype=tf.int64) % (2 + number // 2 % 5) * 40, tf.uint8)
        stripes = tf.where(number % 2 == 0, stripes[:, None], stripes[None, :])
        image = tf.broadcast_to(stripes[..., None], [20, 20, 3])
        return {"image": tf.ensure_shape(image, [20, 20, 3]), "label": number % 2, "index": record["index"]}

    def name(self, index):
        return f"stripes {self._numbers[index]}"

    def name_in_graph(self, record):
        return tf.strings.format("stripes {}", tf.gather(self._numbers, record["index"]))
''',
}
BACKBONE = ("--backbone=outside.nets:TinyNet", "--channels=6")
DATASET = "--dataset=outside.source:Stripes"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs a command where the package is installed; nothing else on this machine knows of it."""
    project, installed = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text.lstrip())
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    done = subprocess.run(
        [*pip, *offline, "--target", str(installed), str(project)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"outside", "outside-1.0.dist-info"} <= set(os.listdir(installed))
    return functools.partial(runs.command, first=functools.partial(runs.on_path, str(installed)))


@pytest.mark.costs(180, "five commands")
def test_all_five_commands(command, photos, tmp_path):
    run, module, classifier = (str(tmp_path / name) for name in ("run", "module", "classifier"))
    common = (DATASET, "--batch_size=8", "--train_steps=1", "--learning_rate=0.1")
    flags = (
        "--task=outside.task:Follow",
        "--follow_momentum=0.5",
        "--follow_image_size=16",
        *BACKBONE,
    )
    done = command("train", f"--workdir={run}", "--warmup_epochs=0", *common, *flags)
    assert done.returncode == 0 and "outside.task:Follow: " in done.stdout, done.stderr
    done = command("export", f"--workdir={run}", f"--export_dir={module}")
    assert done.returncode == 0, done.stderr
    facts = json.load(open(f"{module}/assets/tfssl.json", encoding="utf-8"))
    assert (
        facts["task"] == "outside.task:Follow" and facts["training_flags"]["follow_momentum"] == 0.5
    )
    assert facts["backbone"] == "outside.nets:TinyNet" and facts["training_flags"]["channels"] == 6

    split = ("--train_split=train", "--test_split=test")
    protocol = (
        "--protocol=outside.protocol:NearestMean",
        "--mean_power=1",
        "--endpoints=pre_logits",
    )
    done = command(
        "evaluate", f"--module={module}", f"--workdir={tmp_path / 'e'}", DATASET, *split, *protocol
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.load(open(tmp_path / "e" / "results.json", encoding="utf-8"))["results"]
    assert result["protocol"] == "nearest_mean" and 0 <= result["value"] <= 1

    done = command(
        "finetune",
        f"--module={module}",
        f"--workdir={classifier}",
        *common,
        *split,
        "--lr_scaling=0",
    )
    assert done.returncode == 0, done.stderr
    path = next(p for p, _, names in os.walk(classifier) if "saved_model.pb" in names)
    table = tmp_path / "table.csv"
    done = command("predict", f"--module={path}", f"--images={photos}", f"--output={table}")
    assert done.returncode == 0, done.stderr
    assert len(list(csv.reader(open(table, encoding="utf-8")))) == 1 + 48

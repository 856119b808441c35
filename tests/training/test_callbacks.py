"""What the log says of a run: means of nothing are no 0, and a run that learns nothing is told
so."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tfssl import pretext
from tfssl.backbones import build as build_backbone
from tfssl.errors import UserError
from tfssl.training import callbacks


class Model:
    """What the log wants of a pretext model: variables, levels, and means with their counts."""

    def __init__(self, variables=(), chance=None):
        self.trainable_variables = [tf.Variable(v) for v in variables]
        self.levels = chance or {"loss": math.log(4), "accuracy": 0.25}
        self._measures = type(
            "Measures", (), {"means": {n: tf.keras.metrics.Mean(n) for n in self.levels}}
        )()

    def chance(self):
        return self.levels


def told(model, losses, change=lambda variables, line: None, rate=0.1):
    """All alarms of a run with these losses; `change` acts on the variables before each line."""
    watch, found = callbacks.Watch(model), []
    for i, loss in enumerate(losses, 1):
        change(model.trainable_variables, i)
        found += watch.alarms({"loss": loss}, model.chance(), rate, i / len(losses))
    return found


def descend(variables, line):
    for v in variables:
        v.assign_add(tf.random.stateless_normal(v.shape, [line, 1], stddev=1e-5))


def decay(variables, line):
    for v in variables:
        v.assign(v * 0.99)


WEIGHTS = (
    np.random.default_rng(0).normal(size=[4, 5]).astype(np.float32),
    np.zeros(5, np.float32),
    np.ones(1, np.float32),
)


def test_ordinary_runs_give_no_alarm():
    rng = np.random.default_rng(0)
    plateau = math.log(4) + 0.003 * rng.normal(
        size=30
    )  # a hard task that has not begun to learn: it wavers about chance
    assert told(Model(WEIGHTS), plateau, descend) == []
    memorized = [1.0, 0.5, 0.1, *[0.0] * 20]  # fine-tuning on few images ends at 0
    assert told(Model(WEIGHTS), memorized, descend) == []
    assert told(Model(WEIGHTS), [2.0] * 3, descend) == []  # too few lines to tell
    assert (
        told(Model(WEIGHTS), [2.0] * 30, rate=0.0) == []
    )  # nor is anything expected while the rate is 0


@pytest.mark.parametrize("change", [lambda variables, line: None, decay])
def test_weights_that_no_gradient_reaches(change):
    losses = 1 + 0.1 * np.random.default_rng(0).random(10)
    (line,) = told(Model(WEIGHTS), losses, change)
    assert line.startswith("nothing is learned: no gradient reaches the network")
    assert told(Model(WEIGHTS), losses[:1], change)  # a run of one line is told at its end


def test_a_loss_that_stands_still_or_at_chance():
    (line,) = told(Model(WEIGHTS, {"loss": 0.0}), [3.25] * 12, descend)
    assert line.startswith("nothing is learned: the loss stands still at 3.25 from the first line")
    at_chance = math.log(4) * (1 + 1e-4 * np.random.default_rng(0).normal(size=12))
    (line,) = told(Model(WEIGHTS), at_chance, descend)
    assert line.startswith("nothing is learned: the loss is at chance, 1.386, from the first line")


def log_of(model, tmp_path):
    return callbacks.Log(model, str(tmp_path), 0, 10, 8, 5.0, 5, lambda: "nowhere")


@pytest.mark.parametrize(
    "replaced, ends", [(0, False), (100, False), (128, False), (129, True), (1000, True)]
)
def test_more_than_a_tenth_replaced_ends_the_run(replaced, ends, tmp_path):
    """Of 1,000 images; by chance 100 become 128, three standard deviations more, in one interval of
    700."""
    log = callbacks.Log(
        Model(WEIGHTS),
        str(tmp_path),
        0,
        1000,
        10,
        5.0,
        100,
        lambda: "step 0",
        unreadable={"a.jpg": "no image"},
    )
    log.on_epoch_begin(0)
    log.step, log.replaced = 100, replaced
    if not ends:
        return log.on_epoch_end(0)
    with pytest.raises(
        UserError,
        match=f"^{replaced} of the 1000 images of steps 1 to 100, .* a.jpg: no image; .* step 0",
    ):
        log.on_epoch_end(0)


def test_the_mean_of_no_image_is_no_0(tmp_path, capsys):
    model = Model(WEIGHTS)
    log = log_of(model, tmp_path)
    log.set_model(model)
    log.step = 5
    task = pretext.build("rotation", build_backbone("resnet18_v2", 0.0625, "small"), image_size=16)
    task.prepare()
    log.on_epoch_end(
        0, {"loss": 1.0, **{f"val_{name}": float(value) for name, value in task.results().items()}}
    )
    said = capsys.readouterr().out
    assert (
        "WARNING: the validation has measured nothing" in said
        and "loss nan" in said
        and "accuracy nan" in said
    )
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 5,
        "validation_loss": None,
        "validation_accuracy": None,
    }
    task._measures.means["loss"].update_state(0.5)  # images without labels: a loss, and no accuracy
    log.on_epoch_end(
        0, {"loss": 1.0, **{f"val_{name}": float(value) for name, value in task.results().items()}}
    )
    said = capsys.readouterr().out
    assert "WARNING" not in said and "loss 0.5" in said and "accuracy nan" in said


def test_lines_of_a_killed_run_go_whatever_they_hold(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 4, "loss": 1.0}\n'
    for bad in (
        b'{"step": 8}\n',
        b'{"step": ',
        b"5\n",
        b"null\n",
        b'{"step": "4"x}\n',
        b'{"step": [4]}\n',
        b"\xff\xfe\x00garbage",
    ):
        path.write_bytes(good + bad)
        callbacks._drop_later_lines(str(path), 4)
        assert path.read_bytes() == good, bad


def test_a_chance_level_that_is_unknown_is_not_shown():
    assert callbacks.beside_chance("loss", 2.125, 2.302585) == "loss 2.125 (chance 2.3)"
    assert callbacks.beside_chance("match", 0.25379, float("nan")) == "match 0.2538"

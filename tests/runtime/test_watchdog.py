"""A process that stands still says so, and ends when it is told to, though its main thread waits within TensorFlow."""

import os
import re
import shutil
import signal
import time

import pytest
import tensorflow as tf
from runs import TINY, Forked

from tfssl.runtime import watchdog
from tfssl.runtime.watchdog import TRAINING, WATCHDOG


def quickly():
    watchdog.GRACE = 2


def stand_still():
    """As a disk that does not answer: nobody writes into the pipe that this process reads."""
    quickly()
    os.mkfifo("pipe")
    watchdog.SILENCE = 1
    WATCHDOG.start()
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    WATCHDOG.saved(7)
    WATCHDOG.progress(TRAINING)
    next(iter(tf.data.Dataset.from_tensors("pipe").map(tf.io.read_file, num_parallel_calls=2)))


def await_line(run, awaited):
    begun = time.monotonic()
    while awaited not in (run.folder / "stdout").read_text() + (run.folder / "stderr").read_text():
        assert run.process.is_alive() and time.monotonic() - begun < 60, (run.folder / "stderr").read_text()
        time.sleep(0.05)


def told_to_stop(run, number):
    """(status, what it said on stderr, seconds until the end)."""
    begun = time.monotonic()
    os.kill(run.process.pid, number)
    done = run.finished(30)
    return done.returncode, done.stderr, time.monotonic() - begun


def test_a_standstill_is_told_and_ends_by_a_signal(tmp_path):
    run = Forked("train", cwd=tmp_path, first=stand_still)
    await_line(run, "no progress for")
    status, said, seconds = told_to_stop(run, signal.SIGTERM)
    assert status == 75 and 1.5 < seconds < 9
    told, ended = said.splitlines()
    assert re.search(r"no progress for [1-3] s, waiting for a training step or its images$", told)
    assert "SIGTERM: ended without another save, waiting for a training step or its images; step 7 is saved" in ended


@pytest.mark.parametrize("split, number", [("train", signal.SIGTERM), ("test", signal.SIGINT)])
def test_a_run_whose_images_do_not_come_any_more_ends(split, number, photos, tmp_path):
    """An image becomes a pipe that nobody writes into, and a batch of training, or of the validation, waits for it."""
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / part)
    flags = (*TINY, "--train_steps=100000", "--checkpoint_steps=4", "--val_split=test")
    run = Forked(
        "train", f"--dataset=folder:{tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}", *flags, first=quickly
    )
    await_line(run, "validation at step 4 ")
    image = next((tmp_path / "data" / split / "cold").iterdir())
    image.unlink()
    os.mkfifo(image)
    time.sleep(4)
    status, said, seconds = told_to_stop(run, number)
    assert status == 75 and seconds < 10, said
    (line,) = said.splitlines()
    what = "training step" if split == "train" else "validation step"
    assert f": {number.name}: ended without another save, " in line and what in line and "its images; step " in line
    assert line.endswith(" is saved, and the same command goes on from there")


def test_slow_steps_and_saves_get_more_time():
    dog = watchdog.Watchdog()
    assert dog._grace() == watchdog.GRACE
    for seconds in (20.0, 90.0):
        dog._took(TRAINING, seconds)
    assert dog._grace() == 2 * 40, "a step that took long once is no measure"

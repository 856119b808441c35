"""A process that stands still says so, and ends when it is told to, though its main thread waits
within TensorFlow."""

import functools
import os
import pathlib
import re
import shutil
import signal
import time

import pytest
import tensorflow as tf
from runs import TINY, Forked, command

from tfssl.data.sources import folder
from tfssl.runtime import preemption, watchdog
from tfssl.runtime.watchdog import TRAINING, WATCHDOG


def quickly():
    watchdog.GRACE = 2


def take_pipes_for_files():
    """As files of a disk that no longer answers: who reads a pipe waits."""
    quickly()
    entries = folder._entries
    folder._entries = lambda path: ((name, inner, False) for name, inner, _ in entries(path))


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
        assert run.process.is_alive() and time.monotonic() - begun < 60, (
            run.folder / "stderr"
        ).read_text()
        time.sleep(0.05)


def await_rest(pid):
    """Until a process computes nothing for two seconds, on a machine however busy."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return time.sleep(4)
    begun, spent = time.monotonic(), []
    while len(spent) < 5 or spent[-1] - spent[-5] > 0.1:
        assert time.monotonic() - begun < 90
        ticks = stat.read_text().rpartition(")")[2].split()[11:13]  # of its own, and the system's
        spent.append(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
        time.sleep(0.5)


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
    assert (
        "SIGTERM: ended without another save, waiting for a training step or its images; step 7 is "
        "saved" in ended
    )


@pytest.mark.parametrize("split, number", [("train", signal.SIGTERM), ("test", signal.SIGINT)])
def test_a_run_whose_images_do_not_come_any_more_ends(split, number, photos, tmp_path):
    """An image becomes a pipe that nobody writes into, and a batch of training, or of the
    validation, waits for it."""
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / part)
    flags = (*TINY, "--train_steps=100000", "--checkpoint_steps=4", "--val_split=test")
    run = Forked(
        "train",
        f"--dataset=folder:{tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        *flags,
        first=quickly,
    )
    await_line(run, "validation at step 4 ")
    image = next((tmp_path / "data" / split / "cold").iterdir())
    image.unlink()
    os.mkfifo(image)
    await_rest(run.process.pid)
    status, said, seconds = told_to_stop(run, number)
    assert status == 75 and seconds < 10, said
    (line,) = said.splitlines()
    what = "training step" if split == "train" else "validation step"
    assert (
        f": {number.name}: ended without another save, " in line
        and what in line
        and "its images; step " in line
    )
    assert line.endswith(" is saved, and the same command goes on from there")


def strikes_at(place, number):
    """To be called in a process: it sends itself a signal where it comes to a function,
    module:name."""
    import importlib

    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    function = getattr(owner, name)

    def struck(*args, **settings):
        os.kill(os.getpid(), number)
        return function(*args, **settings)

    setattr(owner, name, struck)


@pytest.mark.parametrize(
    ("binary", "place", "number", "flags"),
    [
        ("train", "tfssl.data:open_source", signal.SIGHUP, ()),
        ("train", "tfssl.data.listing.checks:check_readable", signal.SIGTERM, ()),
        ("train", "tfssl.pretext:build", signal.SIGTERM, ()),
        ("train", "tfssl.training.summaries:write_start", signal.SIGTERM, ()),
        (
            "finetune",
            "tfssl.hub.load:pixels_of",
            signal.SIGTERM,
            ("--module=none", "--test_split="),
        ),
        ("evaluate", "tfssl.hub.folders:resolve", signal.SIGHUP, ("--module=none",)),
        ("predict", "tfssl.hub.folders:resolve", signal.SIGTERM, ("--module=none",)),
        (
            "export.__main__",
            "tfssl.export:save",
            signal.SIGTERM,
            ("--random_init", "--export_dir=m"),
        ),
    ],
)
def test_a_signal_outside_of_the_training_steps_is_one_line(
    binary, place, number, flags, photos, tmp_path
):
    """Before, the process was killed, by the default action, and what it had begun to write
    stayed."""
    flags = (f"--dataset=folder:{photos}", *flags)
    if binary in ("train", "export.__main__"):
        flags += TINY
    if binary in ("train", "evaluate", "finetune"):
        flags += ("--workdir=run",)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup
        number = signal.SIGTERM
    done = command(binary, *flags, cwd=tmp_path, first=functools.partial(strikes_at, place, number))
    assert done.returncode == 75, done.stderr
    name = {"evaluate": "eval", "export.__main__": "export"}.get(binary, binary)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("W")]
    assert line.startswith(f"tfssl-{name}: {number.name}: stopped; ") and "the same command" in line
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert not {"lock", "predictions.csv", "saved_model.pb"} & set(left), left
    assert not [name for name in left if ".tmp" in name or ".unfinished" in name]


def test_a_command_that_waits_for_an_image_ends(tmp_path):
    """Its main thread is within TensorFlow, where no handler of Python's runs; the image is a pipe
    that nobody writes into."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "photos" / "a" / "1.png")
    flags = (f"--dataset=folder:{tmp_path / 'photos'}", f"--workdir={tmp_path / 'run'}", *TINY)
    run = Forked("train", *flags, first=take_pipes_for_files)
    begun = time.monotonic()
    while not (tmp_path / "run" / "lock").exists():
        assert run.process.is_alive() and time.monotonic() - begun < 60
        time.sleep(0.05)
    time.sleep(1)
    status, said, seconds = told_to_stop(run, signal.SIGTERM)
    assert (
        status == 75
        and seconds < 10
        and "train: SIGTERM: stopped; the same command" in said
        and said.count("\n") == 1
    )


def test_what_was_told_in_the_last_moment_of_a_fit_ends_the_process_after_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stop = preemption.Preemption(lambda: None, lambda: 0, tf.distribute.get_strategy())
        stop.on_train_begin()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.told == signal.SIGTERM and heard == []
        stop.on_train_end()
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_slow_steps_and_saves_get_more_time():
    dog = watchdog.Watchdog()
    assert dog._grace() == watchdog.GRACE
    for seconds in (20.0, 90.0):
        dog._took(TRAINING, seconds)
    assert dog._grace() == 2 * 40, "a step that took long once is no measure"

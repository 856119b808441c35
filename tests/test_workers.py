"""Two worker processes on loopback: they train as one, stop as one, and go on after one of them
died."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

FLAGS = (
    "--strategy=multi_worker", "--backbone=resnet18_v2", "--width_multiplier=0.0625", "--stem=small", "--image_size=16",
    "--batch_size=8", "--train_steps=40", "--checkpoint_steps=10", "--log_steps=1", "--warmup_epochs=0", "--learning_rate=0.1",
    "--train_split=train[:80%]", "--val_split=train[80%:]", "--deterministic",
)  # fmt: skip
# `python -m tfssl.train` that takes its time to end: two workers save together, on a machine that
# may be busy with other tests.
TRAIN = """
import runpy
from tfssl.runtime import watchdog
watchdog.GRACE = 90
runpy.run_module("tfssl.train", run_name="__main__", alter_sys=True)
"""


def start(folder, photos, *flags, second=None, count=2):
    """The two processes (or the first alone), with their output in files; the ports are free ones.
    `second`: its photos, if others."""
    folder.mkdir(exist_ok=True)
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("localhost", 0))
    workers = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for index in range(count):
        config = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        )
        its = (second or photos) if index else photos
        command = [
            sys.executable,
            "-c",
            TRAIN,
            f"--dataset=folder:{its}",
            f"--workdir={folder}/run",
            *FLAGS,
            *flags,
        ]
        with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as err:
            processes.append(
                subprocess.Popen(
                    command, stdout=out, stderr=err, env={**os.environ, "TF_CONFIG": config}
                )
            )
    return processes


def wait(processes, folder, timeout=180):
    """[(exit status, stdout, stderr)] once both have ended."""
    try:
        statuses = [p.wait(timeout) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [
        (s, (folder / f"{i}.out").read_text(), (folder / f"{i}.err").read_text())
        for i, s in enumerate(statuses)
    ]


def when(processes, folder, text, timeout=180):
    """Returns once the first worker has printed `text`."""
    begun = time.monotonic()
    while text not in (folder / "0.out").read_text():
        assert all(p.poll() is None for p in processes), (folder / "0.err").read_text()
        assert time.monotonic() - begun < timeout
        time.sleep(0.05)


def last_metrics(folder):
    lines = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 41))
    return next(line for line in reversed(lines) if "loss" in line), next(
        line for line in reversed(lines) if "validation_loss" in line
    )


@pytest.mark.costs(240, "two processes that import everything")
def test_workers_stop_together(photos, tmp_path):
    """A task with pictures and batch statistics, after a validation: one of them draws it alone."""
    task = "--task=colorization", "--resize=18", "--checkpoint_steps=8"
    processes = start(tmp_path, photos, *task, "--train_steps=4000")
    when(processes, tmp_path, "validation at step 8")
    when(processes, tmp_path, "step 13/")
    processes[1].send_signal(signal.SIGTERM)
    ended = wait(processes, tmp_path)
    assert [status for status, _, _ in ended] == [75, 75], ended
    step = re.search(r"SIGTERM: stopped after step (\d+), which is saved", ended[1][2]).group(1)
    assert f"a signal to another worker: stopped after step {step}" in ended[0][2]
    assert (tmp_path / "run" / "checkpoints" / f"ckpt-{step}.index").exists()
    assert ended[1][1] == ""  # one of the two talks


@pytest.mark.costs(240, "three processes that import everything")
def test_hosts_that_differ_or_do_not_come_are_named(photos, tmp_path):
    """Before the first step; the second host's images lie elsewhere, which may be, and one is
    missing, which may not."""
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "warm" / "001.jpg").unlink()
    for status, _, err in wait(start(tmp_path, photos, second=other), tmp_path):
        (line,) = err.splitlines()
        assert status == 1 and re.search(
            r"worker 1 \(localhost:\d+\): data, validation data\. Here, on worker", line
        ), err
    assert not (tmp_path / "run").exists()
    ((status, _, err),) = wait(start(tmp_path, photos, "--host_timeout=3", count=1), tmp_path)
    assert status == 1
    assert re.fullmatch(
        r"tfssl-train: worker 1 \(localhost:\d+\): not there after 3 s .*\n", err
    ), err


@pytest.mark.slow
def test_workers_survive_a_death(photos, tmp_path):
    whole = wait(start(tmp_path / "whole", photos), tmp_path / "whole")
    assert [status for status, _, _ in whole] == [0, 0], whole

    folder = tmp_path / "killed"
    processes = start(folder, photos)
    when(processes, folder, "step 23/")
    processes[1].kill()
    begun = time.monotonic()
    status, _, err = wait(processes, folder)[0]
    assert time.monotonic() - begun < 120
    assert status == 1 and "Traceback" not in err, err
    assert (
        "another worker has ended" in err.splitlines()[-1]
        and "start all workers again" in err.splitlines()[-1]
    )

    ended = wait(start(folder, photos), folder)
    assert "resuming at step 20 of 40" in ended[0][1]
    assert [status for status, _, _ in ended] == [0, 0], ended
    for mine, other in zip(last_metrics(folder), last_metrics(tmp_path / "whole")):
        for name in {"loss", "accuracy", "validation_loss", "validation_accuracy"} & set(other):
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name
    final = [
        tf.train.load_checkpoint(str(f / "run" / "checkpoints" / "ckpt-40"))
        for f in (folder, tmp_path / "whole")
    ]
    name = "model/backbone/root_conv/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert final[0].get_tensor(name) == pytest.approx(final[1].get_tensor(name), abs=1e-4)

"""What several tests do with the binaries: start, kill, compare their runs."""

import atexit
import json
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from tfssl.runtime.files import plain

TINY = (
    "--backbone=resnet18_v2", "--width_multiplier=0.0625", "--stem=small", "--image_size=16", "--batch_size=8", "--train_steps=24",
    "--checkpoint_steps=8", "--log_steps=4", "--warmup_epochs=0", "--learning_rate=0.5", "--deterministic",
)  # fmt: skip

TRAIN = (sys.executable, "-m", "tfssl.train")
# The same with two devices, over which --strategy=mirrored shares the batch.
TRAIN_ON_TWO = (
    sys.executable,
    "-c",
    "import tfssl, runpy, tensorflow as tf; device = tf.config.LogicalDeviceConfiguration(); "
    "tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], [device] * 2); "
    "runpy.run_module('tfssl.train', run_name='__main__')",
)


# Processes of their own, forked from one that has imported the libraries and used none: importing takes longer than most of their work.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tfssl",
        "tensorflow",
        "tensorflow_addons",
        "tensorflow_hub",
        "tf_keras",
        "sklearn.linear_model",
        "matplotlib.pyplot",
    ]
)


def command(name, *args, cwd=None, timeout=300):
    """Runs `python -m tfssl.NAME ARGS`, and returns the finished process, as `subprocess.run` does."""
    argv = [f"tfssl.{name}", *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        said = [pathlib.Path(folder, stream) for stream in ("stdout", "stderr")]
        process = PROCESSES.Process(target=_main, args=(argv, said, cwd or os.getcwd(), dict(os.environ)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(argv, timeout, *(path.read_text() for path in said))
        return subprocess.CompletedProcess(argv, process.exitcode, *(path.read_text() for path in said))


def anew(name, *args, cwd=None):
    """The same in a fresh interpreter, where it matters what is imported, from where, and how long that takes."""
    line = [sys.executable, "-m", f"tfssl.{name}", *args]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd)


def _main(argv, said, cwd, environment):
    """The forked process, from here on as if it had been started by that command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def weights(workdir, step=24, least=50):
    """Every tensor of a checkpoint but the bookkeeping of how often it was saved."""
    with plain(str(workdir / "checkpoints" / f"ckpt-{step}")) as path:
        reader = tf.train.load_checkpoint(path)
        names = [
            n
            for n in reader.get_variable_to_shape_map()
            if n != "_CHECKPOINTABLE_OBJECT_GRAPH" and "save_counter" not in n
        ]
        assert len(names) > least
        return {name: reader.get_tensor(name) for name in names}


def assert_identical(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def kill_when(arguments, awaited, number=signal.SIGKILL, timeout=300, delay=0.0, command=TRAIN):
    """Start a training run and send it a signal `delay` seconds after it printed `awaited`: (exit status, what it said on stderr)."""
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    for line in process.stdout:
        if awaited in line or time.monotonic() - begun > timeout:
            time.sleep(delay)
            process.send_signal(number)
            break
    said = process.communicate(timeout=timeout)[1]
    return process.returncode, said


def logged(workdir):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def logged_steps(workdir, metric="loss"):
    return [line["step"] for line in logged(workdir) if metric in line]

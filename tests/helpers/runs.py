"""What several tests do with the binaries: start, kill, compare their runs."""

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time

import tfssl  # noqa: F401 (before TensorFlow: it switches oneDNN on)

# isort: split
import numpy as np
import tensorflow as tf

from tfssl.storage.files import plain

STEPS = (
    "--width_multiplier=0.0625", "--image_size=16", "--batch_size=8", "--train_steps=24", "--checkpoint_steps=8", "--log_steps=4",
    "--warmup_epochs=0", "--deterministic",
)  # fmt: skip
TINY = ("--backbone=resnet18_v2", "--stem=small", *STEPS, "--learning_rate=0.5")
BLOCK = (  # half of TINY's time, where the network does not matter
    "--backbone=vit_tiny", "--depth=1", "--patch=8", *STEPS, "--learning_rate=0.05",
)  # fmt: skip

TRAIN = (sys.executable, "-m", "tfssl.train")


def _modules():
    """Of tfssl, but the commands themselves, which run anew in each process."""
    for package, name in ((tfssl, "tfssl"), (tfssl.export, "tfssl.export")):
        folder = pathlib.Path(package.__file__).parent
        for path in sorted(folder.rglob("[!_]*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if len(parts) > 1 or package is tfssl.export:
                yield ".".join((name, *parts))


# Processes of their own, forked from one that has imported the libraries and used none: importing
# takes longer than most of their work.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "pytest",
        "tfssl",
        "tensorflow",
        "tensorflow_addons",
        "tensorflow_hub",
        "tf_keras",
        "sklearn.linear_model",
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "tqdm.auto",
        *_modules(),
    ]
)


seconds = 0.0  # of processor time that the forked processes have taken,
gigabytes = 0.0  # and what the largest of them has held


class Forked:
    """`python -m tfssl.NAME ARGS` in a process of its own, begun. `first` is called in it before the command: `two_devices`, say.

    What it prints goes to the file `stdout` of `folder`; where `piped`, that is a pipe, which
    somebody has to open and read.
    """

    def __init__(self, name, *args, cwd=None, first=None, piped=False):
        self.argv = [f"tfssl.{name}", *map(str, args)]
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name)
        (os.mkfifo if piped else pathlib.Path.touch)(self.folder / "stdout")
        (self.folder / "stderr").touch()
        self.process = PROCESSES.Process(
            target=_main, args=(self.argv, self.folder, cwd or os.getcwd(), dict(os.environ), first)
        )
        self.process.start()

    def finished(self, timeout=240):
        """The finished process, as `subprocess.run` returns it."""
        global seconds, gigabytes
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.argv, timeout, *self._said())
        with contextlib.suppress(FileNotFoundError):  # it was killed
            spent, held = map(float, (self.folder / "costs").read_text().split())
            seconds, gigabytes = seconds + spent, max(gigabytes, held)
        done = subprocess.CompletedProcess(self.argv, self.process.exitcode, *self._said())
        self._folder.cleanup()
        return done

    def _said(self):
        return [
            path.read_text() if path.is_file() else ""
            for path in (self.folder / "stdout", self.folder / "stderr")
        ]


def command(name, *args, cwd=None, timeout=240, first=None):
    """Runs `python -m tfssl.NAME ARGS`, and returns the finished process, as `subprocess.run`
    does."""
    return Forked(name, *args, cwd=cwd, first=first).finished(timeout)


def anew(name, *args, cwd=None):
    """The same in a fresh interpreter, where it matters what is imported, from where, and how long
    that takes."""
    line = [sys.executable, "-m", f"tfssl.{name}", *args]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd)


def two_devices():
    """Over which --strategy=mirrored shares the batch."""
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [device] * 2
    )


def on_path(folder):
    """Where a user's own classes are: `first=functools.partial(runs.on_path, folder)`."""
    sys.path.insert(0, folder)


def _main(argv, folder, cwd, environment, first):
    """The forked process, from here on as if it had been started by that command."""
    gc.freeze()
    gc.set_threshold(
        100_000, 50, 50
    )  # tracing makes millions of objects, and the process ends soon
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, stream in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(folder / stream, os.O_WRONLY), number)
    sys.argv = argv
    if first:
        first()
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
        (folder / "costs").write_text(f"{sum(os.times()[:4])} {peak_gigabytes()}")


def peak_gigabytes():
    """The most memory that this process, or a child of it that has ended, has held."""
    unit = 1e9 if sys.platform == "darwin" else 1e6
    return (
        max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        / unit
    )


def weights(workdir, step=24, least=30):
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


def kill_when(
    arguments, awaited, number=signal.SIGKILL, timeout=240, delay=0.0, name="train", first=None
):
    """Start a training run and send it a signal `delay` seconds after it printed `awaited`: (exit
    status, what it said on stderr)."""
    run = Forked(name, *arguments, first=first, piped=True)
    begun = time.monotonic()
    with open(run.folder / "stdout") as lines:
        for line in lines:
            if awaited in line or time.monotonic() - begun > timeout:
                time.sleep(delay)
                os.kill(run.process.pid, number)
                break
        lines.read()
    done = run.finished(timeout)
    return done.returncode, done.stderr


def logged(workdir):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def logged_steps(workdir, metric="loss"):
    return [line["step"] for line in logged(workdir) if metric in line]

"""What several tests do with runs of `tfssl-train`: start, kill, compare them."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

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


def weights(workdir, step=24, least=50):
    """Every tensor of a checkpoint but the bookkeeping of how often it was saved."""
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / f"ckpt-{step}"))
    names = [
        n for n in reader.get_variable_to_shape_map() if n != "_CHECKPOINTABLE_OBJECT_GRAPH" and "save_counter" not in n
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

"""Whose a workdir is: what a run may change when it goes on, what it may not, and its record."""

import os

from absl import flags, logging

from tfssl.config import flagfile
from tfssl.config.generated import as_text
from tfssl.errors import UserError
from tfssl.pretext import task_flags

FLAGS = flags.FLAGS


# What a resumed run may change: where and how fast it computes, how long, and what it tells of itself.
FREE = (
    "workdir", "data_dir", "data_service", "epochs", "train_steps", "strategy", "host_timeout", "tpu", "tpu_zone", "gcp_project",
    "jit_compile", "rematerialize", "steps_per_execution", "checkpoint_steps", "keep_checkpoints", "keep_every", "val_split",
    "validation_steps", "knn_probe", "log_steps", "data_service_timeout", "skip_damaged_shards", "test_split",
)  # fmt: skip
# What the hosts of a run may have each for itself: where things are.
OF_HOST = (
    "workdir",
    "data_dir",
    "dataset",
    "data_service",
    "host_timeout",
    "init_module",
    "module",
    "teacher",
    "train_list",
)


def choose_precision(values):
    """Replace the precision auto by the run's own, or the device's for a new run; warn of one that this processor emulates."""
    import tensorflow as tf

    from tfssl.runtime import strategy as strategies
    from tfssl.training.callbacks import say

    if values["precision"] == "auto":
        path = os.path.join(values["workdir"] or "", "flags.flags")
        if values["workdir"] and tf.io.gfile.exists(path):
            values["precision"], why = flagfile.read(path).get("precision", "float32"), f"as in {path}"
        else:
            values["precision"], why = strategies.auto_precision(values["strategy"])
        say(f"--precision=auto: {values['precision']} ({why})")
    costly = strategies.emulated(values["precision"], values["strategy"])
    if costly:
        logging.warning("%s", costly)


def check_workdir(values, free=FREE):
    """Refuse a workdir that cannot be written or holds another run; `free`: flags that may differ."""
    import tensorflow as tf

    from tfssl.storage import files
    from tfssl.training import provenance

    if values["strategy"] != "multi_worker":  # of whose processes one writes, and says so itself
        files.check_writable(values["workdir"], "--workdir")
    path = os.path.join(values["workdir"], "flags.flags")
    if not tf.io.gfile.exists(path):
        if tf.io.gfile.isdir(os.path.join(values["workdir"], "checkpoints")):
            raise UserError(
                f"{values['workdir']!r} has checkpoints but no flags.flags that says whose they are: use another --workdir"
            )
        return
    # A flag that is younger than the run stands for what was done before there was a choice: its default.
    task = values.get("task")  # fine-tuning has none, nor settings of it
    own = task_flags().defaults(task) if task else {}
    defaults = {n: own.get(n) if n in task_flags().flags else FLAGS[n].default for n in values}
    stored = {name: as_text(d) for name, d in defaults.items() if d is not None} | flagfile.read(path)
    found = {n: values[n] or stored.get(n) for n in ("num_classes", "num_images") if n in values}  # 0: the data set's
    values = {**values, **found}
    if provenance.known(values["workdir"]) or FLAGS.accept_changed_data:
        free = (*free, "dataset")  # what it holds is known, and compared when it is opened
    for name, old, new in flagfile.differences(stored, values, free):
        same = ", or if these are the same images elsewhere, --accept_changed_data" if name == "dataset" else ""
        raise UserError(
            f"{values['workdir']!r} holds another run: its --{name} is {old}, not {new}; use another --workdir, or go on with that run by "
            f"--flagfile={path}{same}"
        )
    lengths = [name for name, _, _ in flagfile.differences(stored, values) if name in ("epochs", "train_steps")]
    if lengths and values["schedule"] == "cosine" and not FLAGS.extend_schedule:
        raise UserError(
            f"--{lengths[0]} differs from the run's own, and its cosine schedule ends with it: "
            "--extend_schedule accepts the jump of the rate"
        )


def check_data(values):
    """Refuse data of another number of classes or images than the run in the workdir began with, where its network depends on it."""
    import tensorflow as tf

    path = os.path.join(values["workdir"], "flags.flags")
    stored = flagfile.read(path) if tf.io.gfile.exists(path) else {}
    for name in ("num_classes", "num_images"):
        if name in values and stored.get(name, str(values[name])) != str(values[name]):
            raise UserError(
                f"{values['workdir']!r} holds a run on data with --{name}={stored[name]}, and --dataset={values['dataset']} "
                f"({values['train_split']}) has {values[name]}: give it the data of that run, or use another --workdir"
            )


def claim_workdir(values, source):
    """Record the run in its workdir."""
    from tfssl.storage import files

    flagfile.write(os.path.join(values["workdir"], "flags.flags"), values)
    if source.class_names:
        files.write_file(os.path.join(values["workdir"], "classes.txt"), "\n".join(source.class_names) + "\n")

"""Whose a workdir is: what a run may change when it goes on, what it may not, and its record."""

import os
from typing import Any

import tensorflow as tf
from absl import logging

from tfssl.backbones import backbone_flags
from tfssl.config import flagfile
from tfssl.config.configs import Config, TrainConfig
from tfssl.config.generated import as_text
from tfssl.data.listing.text import to_lines
from tfssl.data.sources.base import Source
from tfssl.errors import UserError
from tfssl.optim import optimizer_flags
from tfssl.pretext import task_flags
from tfssl.runtime import strategy as strategies
from tfssl.storage import files
from tfssl.training import checkpoints, provenance
from tfssl.training.callbacks import say

# What a resumed run may change: where and how fast it computes, how long, and what it tells of
# itself.
FREE: tuple[str, ...] = (
    "workdir", "data_dir", "data_service", "epochs", "train_steps", "strategy", "host_timeout",
    "tpu", "tpu_zone", "gcp_project",
    "jit_compile", "rematerialize", "steps_per_execution", "checkpoint_steps", "keep_checkpoints",
    "keep_every", "val_split",
    "validation_steps", "knn_probe", "log_steps", "track", "data_service_timeout",
    "skip_damaged_shards", "test_split",
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


def choose_precision(config: TrainConfig) -> TrainConfig:
    """The config with the run's own precision in place of auto, or for a new run the device's; warn
    of one that this processor emulates."""
    precision, workdir, strategy = (
        config.accelerators.precision,
        config.run.workdir,
        config.accelerators.strategy,
    )
    if precision == "auto":
        path = os.path.join(workdir or "", "flags.flags")
        if workdir and tf.io.gfile.exists(path):
            precision, why = flagfile.read(path).get("precision", "float32"), f"as in {path}"
        else:
            precision, why = strategies.auto_precision(strategy)
        say(f"--precision=auto: {precision} ({why})")
    if precision == "mixed_float16" and strategy == "tpu":
        raise UserError(
            "--precision=mixed_float16 is for GPUs: a TPU computes in mixed_bfloat16, which needs "
            "no loss scaling"
        )
    costly = strategies.emulated(precision, strategy)
    if costly:
        logging.warning("%s", costly)
    return config.replace(precision=precision)


def check_workdir(config: Config) -> None:
    """Refuse a workdir that cannot be written or holds another run.

    Raises:
      UserError: it is so, or the run's length changes where its schedule ends with it.
    """
    workdir = config.run.folder()
    if (
        config.accelerators.strategy != "multi_worker"
    ):  # of whose processes one writes, and says so itself
        files.check_writable(workdir, "--workdir")
    path = os.path.join(workdir, "flags.flags")
    if not tf.io.gfile.exists(path):
        if tf.io.gfile.isdir(os.path.join(workdir, "checkpoints")):
            raise UserError(
                f"{workdir!r} has checkpoints but no flags.flags that says whose they are: use "
                "another --workdir"
            )
        return
    stored = {
        name: as_text(value) for name, value in _defaults(config).items() if value is not None
    }
    stored |= flagfile.read(path)  # a flag that is younger than the run counts as its default
    new = {
        **_defaults(config),
        **config.flags(),
    }  # a config without flags has the settings' defaults
    new |= {
        n: new[n] or stored.get(n) for n in ("num_classes", "num_images") if n in new
    }  # 0: the data set's
    free = FREE
    if provenance.known(workdir) or config.run.accept_changed_data:
        free = (*FREE, "dataset")  # what it holds is known, and compared when it is opened
    for name, old, now in flagfile.differences(stored, new, free):
        same = (
            ", or if these are the same images elsewhere, --accept_changed_data"
            if name == "dataset"
            else ""
        )
        begun = checkpoints.saved(os.path.join(workdir, "checkpoints"))
        remedy = "" if begun else ", or remove this one, which has no checkpoint yet"
        raise UserError(
            f"{workdir!r} holds another run: its --{name} is {old}, not {now}; use another "
            f"--workdir{remedy}, or go on with that run by --flagfile={path}{same}"
        )
    lengths = [
        name
        for name, _, _ in flagfile.differences(stored, new)
        if name in ("epochs", "train_steps")
    ]
    o = config.optimization
    if (
        lengths
        and (
            o.schedule == "cosine"
            or o.final_weight_decay is not None
            or new.get("momentum_schedule") == "cosine"
        )
        and not config.run.extend_schedule
    ):
        raise UserError(
            f"--{lengths[0]} differs from the run's own, and a cosine schedule ends with it: "
            "--extend_schedule accepts the jump of the rate, the decay or the target's momentum"
        )


def _defaults(config: Config) -> dict[str, Any]:
    """{flag: default}, of the settings of task, backbone and optimizer too."""
    own = optimizer_flags(config.optimization.optimizer).defaults(config.optimization.optimizer)
    if isinstance(config, TrainConfig):
        own |= task_flags(config.task).defaults(config.task)
        families, name = backbone_flags(config.network.backbone), config.network.backbone
        own |= {
            flag: families.default(flag) for flag in families.flags
        }  # runs once recorded those of other families
        own |= families.defaults(name)
    return {**type(config)().flags(), **own}


def check_data(config: Config) -> None:
    """Refuse data of another number of classes or images than the run in the workdir began with,
    where its network depends on it."""
    path = os.path.join(config.run.folder(), "flags.flags")
    stored, values = flagfile.read(path) if tf.io.gfile.exists(path) else {}, config.flags()
    for name in ("num_classes", "num_images"):
        if name in values and stored.get(name, str(values[name])) != str(values[name]):
            raise UserError(
                f"{config.run.workdir!r} holds a run on data with --{name}={stored[name]}, and "
                f"--dataset={config.data.dataset} "
                f"({config.data.train_split}) has {values[name]}: give it the data of that run, or "
                "use another --workdir"
            )


def claim_workdir(config: Config, source: Source) -> None:
    """Record the run in its workdir."""
    workdir = config.run.folder()
    flagfile.write(os.path.join(workdir, "flags.flags"), config.flags())
    if source.class_names:
        files.write_file(os.path.join(workdir, "classes.txt"), to_lines(source.class_names))

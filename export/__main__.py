"""Publish a run's encoder as a TF-Hub module.

  tfssl-export --workdir=runs/photos                           the newest checkpoint, into
                                                               runs/photos/module/STEP
  tfssl-export --workdir=runs/photos --all_steps               each kept one: which is the best?
  tfssl-export --workdir=runs/photos --random_init             the same network untrained: the
                                                               baseline, into .../module/random
  tfssl-export --random_init --backbone=resnet18_v2 --export_dir=modules/random
  tfssl-export --workdir=runs/photos --layout=torch            for PyTorch, into .../torch/STEP
  tfssl-export --module=modules/moco_v2 --layout=detectron2 --export_dir=detectron2/moco_v2

The flags of training are taken from the run; without a run (--random_init) they are given here.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from absl import flags

from tfssl.config import configs, flagfile, schema
from tfssl.config.configs import TrainConfig
from tfssl.errors import UserError
from tfssl.runtime import cli
from tfssl.training.registered import KINDS, registered

FLAGS = flags.FLAGS
WEIGHTS = ("torch", "detectron2")  # layouts that hold weights; the others are programs


def define_flags(argv: Sequence[str] = ()) -> None:
    """In the order of `--help`: those of the export, and all of training."""
    configs.define(schema.Export, section=cli.section)
    TrainConfig.define(*registered(cli.peek_all(argv, KINDS)), section=cli.section)


def main(_: Sequence[str]) -> None:
    export, workdir = configs.read(schema.Export, FLAGS), FLAGS.workdir
    if export.calibration_images and export.layout != "tflite":
        raise UserError(f"--calibration_images={export.calibration_images} is of --layout=tflite")
    if export.module:
        return of_module(export)
    if export.layout not in ("hub", *WEIGHTS):
        raise UserError(
            f"--layout={export.layout} is made of a module: tfssl-export --workdir=... first, then "
            "--module=..."
        )
    if not workdir and not (export.random_init and export.export_dir):
        raise UserError(
            "--workdir is missing: name the folder of a run (or --random_init, --export_dir and "
            "the flags of training)"
        )
    config = read_config(workdir).replace(workdir=workdir or export.export_dir)

    import tensorflow as tf

    from tfssl.export import recalibrate, save
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import files
    from tfssl.training import checkpoints, checks
    from tfssl.training.build import build_model

    config = checks.pretraining(config)
    chosen: list[tuple[Optional[str], int]] = [(None, 0)]  # (checkpoint, step)
    if not export.random_init:
        found = checkpoints.saved(os.path.join(workdir, "checkpoints"))
        chosen = _checkpoints(found, export, workdir)
    parent = "module" if export.layout == "hub" else export.layout
    wheres = {
        step: export.export_dir
        or os.path.join(workdir, parent, "random" if export.random_init else str(step))
        for _, step in chosen
    }
    for where in wheres.values():
        files.check_writable(
            os.path.dirname(where.rstrip("/")) or ".",
            "--export_dir" if export.export_dir else "--workdir",
        )
    strategies.start(config.optimization.seed)  # float32, whatever the training's precision was
    model = build_model(config, publish=not export.head_endpoints)
    model.prepare()
    for path, step in chosen:
        where = wheres[step]
        if export.all_steps and tf.io.gfile.exists(where):
            print(f"module: {where} is there already")
            continue
        if path:
            reason = checkpoints.load(path, tf.train.Checkpoint(model=model))
            if reason:
                raise UserError(
                    f"checkpoint {path} is damaged ({reason}): choose an older one with --step"
                )
        if export.recalibrate:
            recalibrate(model, _training_batches(model, config, export.recalibrate))
        if export.layout in WEIGHTS:
            _save_layout(export.layout, model, where)
            continue
        save(
            model, where, step, _class_names(workdir), config.published(), export.random_init,
            export.tarball, export.head_endpoints,
        )  # fmt: skip
        print(f"module: {where}" + (f" and {where}.tar.gz" if export.tarball else ""))
    if export.layout in WEIGHTS:
        return
    modules = os.path.join(workdir, "module", "*") if export.all_steps else where
    shown = f"'{modules}'" if export.all_steps else modules
    print(
        f"next: tfssl-eval --module={shown} --dataset={config.data.dataset} --train_split=... "
        "--test_split=..."
    )


def of_module(export: schema.Export) -> None:
    """--module: it, or its network, in another layout.

    Raises:
      UserError: a setting is of a run alone, or the module is of no network of ours.
    """
    if export.layout == "hub" or not export.export_dir:
        raise UserError("--module needs a --layout other than hub, and --export_dir")
    from tfssl import data
    from tfssl.export import converted, layouts
    from tfssl.hub import load as modules
    from tfssl.storage import files

    assert export.module
    where = export.export_dir.rstrip("/")
    files.check_writable(os.path.dirname(where) or ".", "--export_dir")
    if export.layout in WEIGHTS:
        network, facts = layouts.of_module(export.module)
        source = facts.get("source") or {}
        texts = {name: str(source[name]) for name in ("family", "license") if source.get(name)}
        images = facts.get("normalization")
        written = layouts.save(export.layout, network, where, images, facts["crop"], texts)
        return _say(written, images, layouts.requirements(export.layout, network))
    module, given = modules.load(export.module), {}
    if export.calibration_images:
        split = configs.read(schema.Data, FLAGS)
        reading = {**split.where(), **module.pixels}
        source = data.open_source(split.dataset, split.train_split, **reading)
        given["calibration"] = converted.crops(source, module, export.calibration_images)
    written = converted.SAVE[export.layout](module, where, **given)
    print(f"written: {written}, {converted.output_of(module)} of {module.sizes()[0]}-pixel images")


def _save_layout(layout: str, model: Any, where: str) -> None:
    """A run's network in another layout."""
    from tfssl.export import layouts
    from tfssl.export.module import network_config, normalization

    if not network_config(model):
        raise UserError(
            f"--layout={layout} is for a single network of ours, and this task "
            f"publishes {' and '.join(network.name for network in model.published)}"
        )
    images = normalization(model)
    network = model.published[0]
    written = layouts.save(layout, network, where, images, model.image_size)
    _say(written, images, layouts.requirements(layout, network))


def _say(written: str, images: Any, requirements: Iterable[str]) -> None:
    print(f"written: {written}")
    for line in requirements:
        print(line)
    told = f"mean {images['mean']}, std {images['std']}" if images else "as its task does"
    print(f"its images in [0, 1] are normalized: {told}")


def read_config(workdir: Optional[str]) -> TrainConfig:
    """What the command line says, and of the rest the record of the run in a workdir, if there is
    one.

    Raises:
      UserError: the folder is not that of a run, or its record cannot be read.
    """
    if not workdir:
        return TrainConfig.from_flags(FLAGS, *registered(FLAGS.flag_values_dict()))
    record = os.path.join(workdir, "flags.flags")
    texts = flagfile.read(record)
    chosen = {kind: FLAGS[kind].value for kind in KINDS if FLAGS[kind].present or kind not in texts}
    try:
        return TrainConfig.from_record(texts, *registered({**texts, **chosen}), overriding=FLAGS)
    except flags.Error as error:
        raise UserError(f"{record}, the record of the run, cannot be taken: {error}") from error


def _class_names(workdir: Optional[str]) -> Optional[list[str]]:
    import tensorflow as tf

    path = os.path.join(workdir or "", "classes.txt")
    return (
        tf.io.gfile.GFile(path).read().splitlines()
        if workdir and tf.io.gfile.exists(path)
        else None
    )


def _training_batches(model: Any, config: TrainConfig, images: int) -> Iterable:
    """Of the run's training split: `images`, or some more, in batches of what was computed at
    once."""
    from tfssl import data
    from tfssl.data.sources.subset import nested

    split = config.data
    source = data.open_source(split.dataset, split.train_split, **config.where())
    if split.train_subset:
        source = nested(source, split.train_subset, split.subset_seed)
    rows = config.optimization.batch_size // config.accelerators.accumulate_steps
    return model.dataset(source, rows, config.optimization.seed, steps=math.ceil(images / rows))


def _checkpoints(
    found: Sequence[tuple[int, str]], export: schema.Export, workdir: str
) -> list[tuple[Optional[str], int]]:
    """(path, step) of each checkpoint that is asked for: of a step, of all, or the newest."""
    steps = dict(found)
    if not found:
        raise UserError(
            f"{workdir!r} has no checkpoint yet: tfssl-train --workdir={workdir} writes them"
        )
    if export.all_steps:
        if export.step is not None or export.export_dir:
            raise UserError("--all_steps goes with neither --step nor --export_dir")
        return [(path, step) for step, path in found]
    step = found[-1][0] if export.step is None else export.step
    if step not in steps:
        raise UserError(f"--step={step}: {workdir!r} has checkpoints {', '.join(map(str, steps))}")
    return [(steps[step], step)]


def run() -> None:
    """Entry point of `tfssl-export`."""
    cli.run(
        main,
        "tfssl-export",
        define_flags,
        goes_on="nothing is published; the same command begins again",
    )


if __name__ == "__main__":
    run()

"""Pretrain an encoder: images in, checkpoints out; `tfssl-export` publishes the result.

  tfssl-train --dataset=folder:photos --workdir=runs/photos
      rotation prediction with a ResNet-50, 35 epochs
  tfssl-train --dataset=folder:photos --dry_run
      what would be done, on which images
  tfssl-train --flagfile=tfssl:glyphs/rotation.flags --workdir=runs/try
      an installed recipe; flags after it override it

The same command again resumes a run that was stopped, or killed; the result is the same.
"""

import math
from collections.abc import Sequence

from absl import flags

from tfssl import pretext
from tfssl.config.configs import TrainConfig
from tfssl.runtime import cli
from tfssl.training.registered import KINDS, registered

FLAGS = flags.FLAGS


def define_flags(argv: Sequence[str] = ()) -> None:
    """In the order of `--help`; among them the settings of a user's own task, backbone or
    optimizer, where `argv` names one."""
    TrainConfig.define(*registered(cli.peek_all(argv, KINDS)), section=cli.section)


def main(_: Sequence[str]) -> None:
    from tfssl import data
    from tfssl.config.plan import plan as make_plan
    from tfssl.data import overlap
    from tfssl.data.sources.subset import nested
    from tfssl.training import build, checks, dry_run, initial_weights, workdir
    from tfssl.training import run as training

    config = checks.pretraining(
        TrainConfig.from_flags(FLAGS, *registered(FLAGS.flag_values_dict()))
    )
    checks.neck(config.network)
    config = workdir.choose_precision(config)
    trying = config.run.dry_run
    if not trying:
        workdir.check_workdir(config)

    # Where it computes, and on which images.
    network, accelerators, images = config.network, config.accelerators, config.data
    strategy = build.start(
        config.optimization, accelerators, accelerators.precision, network.bn_group_size
    )
    source = data.open_source(images.dataset, images.train_split, **config.where())
    validation = (
        data.open_source(images.dataset, images.val_split, **config.where())
        if images.val_split
        else None
    )
    checks.images(config, *filter(None, (source, validation)))
    if (
        validation and "num_images" not in config.task_settings
    ):  # where each image is a class, there are no others
        overlap.check({"train": source, "val": validation})
    if images.train_subset:
        source = nested(source, images.train_subset, images.subset_seed)
    config = build.of_data(config, source)
    provenance = None
    if not trying:
        provenance = training.know_data(config, strategy, source, validation)
        pretext.task_class(config.task).from_data(config.task_settings, source, config.run.workdir)

    # What learns.
    plan = make_plan(config.optimization, source.num_examples)
    with strategy.scope():
        model = build.build_model(config)
        build.set_up(model, config, plan, config.task_settings.get("weight_decay", 0.0))
        if network.init_module:
            initial_weights.from_module(model, network.init_module)
            model.start()
    million = sum(math.prod(w.shape) for w in model.trainable_variables) / 1e6
    width = config.backbone_settings.get("width_multiplier")
    summary = (
        f"{config.task}: {network.backbone}{'' if width is None else f' x{width:g}'} "
        f"({million:.2f} M parameters), "
        f"{source.num_examples} images of {source.spec}, {build.said(plan, config.optimization)}"
    )

    if provenance is None:  # a dry run
        return dry_run.describe(model, strategy, source, validation, plan, config, summary)
    following = f"tfssl-export --workdir={config.run.workdir}"
    training.train(
        model, strategy, source, validation, plan, config, provenance, summary, following
    )


def run() -> None:
    """Entry point of `tfssl-train`."""
    cli.run(
        main,
        "tfssl-train",
        define_flags,
        goes_on="the same command goes on from the last checkpoint, or begins where there is none",
    )


if __name__ == "__main__":
    run()

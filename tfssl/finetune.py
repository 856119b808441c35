"""Fine-tune an encoder: a Hub module and labeled images in, a classifier out, with test results.

  tfssl-finetune --module=runs/photos/module/1000 --dataset=folder:photos \\
      --train_split=train[:80%] --test_split=train[80%:] --workdir=runs/classifier
      the whole network is trained
  tfssl-finetune --module=... --train_labels=1% --workdir=...
      with a class-balanced subset of the labels
  tfssl-finetune --module=... --freeze --workdir=...
      a linear classifier on the frozen encoder
  tfssl-finetune --module=SMALL --teacher=CLASSIFIER --workdir=...
      distillation of a larger classifier; needs no labels

It writes WORKDIR/classifier/STEP, a SavedModel, and WORKDIR/results.json; tfssl-predict applies the
classifier to images. The same command again resumes a run that was stopped, or killed; the result
is the same.
"""

import time
from collections.abc import Sequence

from absl import flags

from tfssl import optim
from tfssl.config import schema
from tfssl.config.configs import FinetuneConfig
from tfssl.runtime import cli

FLAGS = flags.FLAGS


def define_flags(argv: Sequence[str] = ()) -> None:
    """In the order of `--help`."""
    optimizer = cli.peek(argv, "optimizer", schema.FinetuneOptimization.optimizer)
    FinetuneConfig.define(optim.optimizer_flags(optimizer), section=cli.section)


def main(_: Sequence[str]) -> None:
    begun = time.time()
    from tfssl.classifiers.build import build_model, load_teacher
    from tfssl.classifiers.images import open_images
    from tfssl.config.plan import plan as make_plan
    from tfssl.export.classifier import finish
    from tfssl.hub.load import pixels_of
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import locks
    from tfssl.training import build, checks, dry_run, workdir
    from tfssl.training import run as training

    config = checks.finetuning(
        FinetuneConfig.from_flags(FLAGS, optim.optimizer_flags(FLAGS.optimizer))
    )
    optimization, run = config.optimization, config.run
    if not run.dry_run:
        workdir.check_workdir(config)

    # Devices and images.
    strategy = build.start(optimization, config.accelerators)
    images = open_images(
        config.data,
        config.labels,
        config.distillation,
        optimization.seed,
        pixels_of(config.classifier.handle()),
    )
    provenance = (
        None
        if run.dry_run
        else training.know_data(config, strategy, images.train, images.validation)
    )

    # The model.
    plan = make_plan(optimization, images.train.num_examples)
    with strategy.scope():
        model = build_model(config, images, load_teacher(config, images))
        build.set_up(model, config, plan, optimization.weight_decay)
    million = sum(w.shape.num_elements() for w in model.trainable_variables) / 1e6
    summary = (
        f"{config.classifier.module}, {model.endpoint}: {million:.2f} M parameters learn, "
        f"{images.labels} labels, "
        f"{images.train.num_examples} images of {images.train.spec}, "
        f"{build.said(plan, optimization)}"
    )

    if provenance is None:  # a dry run
        return dry_run.describe(
            model, strategy, images.train, images.validation, plan, config, summary
        )
    following = (
        f"tfssl-predict --module={run.workdir}/classifier/{plan.total_steps} --images=FOLDER"
    )
    parts = (
        model,
        strategy,
        images.train,
        images.validation,
        plan,
        config,
        provenance,
        summary,
        following,
    )
    if not strategies.is_chief(strategy):
        return training.train(*parts)
    with locks.workdir_lock(run.folder(), run.steal_lock) as check:  # the one that training takes
        training.train(*parts)
        finish(config, images, begun, check)


def run() -> None:
    """Entry point of `tfssl-finetune`."""
    cli.run(
        main,
        "tfssl-finetune",
        define_flags,
        goes_on="the same command goes on from the last checkpoint, or begins where there is none",
    )


if __name__ == "__main__":
    run()

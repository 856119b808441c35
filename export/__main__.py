"""Publish a run's encoder as a TF-Hub module.

  tfssl-export --workdir=runs/photos                           the newest checkpoint, into runs/photos/module/STEP
  tfssl-export --workdir=runs/photos --random_init             the same network untrained: the baseline, into .../module/random
  tfssl-export --random_init --backbone=resnet18_v2 --export_dir=modules/random

The flags of training are taken from the run; without a run (--random_init) they are given here.
"""

import math
import os
import sys

from absl import flags

from tfssl import train
from tfssl.config import flagfile
from tfssl.errors import UserError
from tfssl.runtime import cli

with cli.section("Export"):
    flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
    flags.DEFINE_string(
        "export_dir", None, "Folder of the module, which must not exist yet. Default: WORKDIR/module/STEP."
    )
    flags.DEFINE_boolean("random_init", False, "Publish the untrained encoder, the baseline that evaluation needs.")
    flags.DEFINE_boolean("tarball", False, "Also write EXPORT_DIR.tar.gz, which serves as a handle too.")
    flags.DEFINE_integer(
        "head_endpoints",
        0,
        "So many first layers of the projection head become endpoints too: head1, ... (SimCLR v2 fine-tunes from head1).",
    )
    flags.DEFINE_integer(
        "recalibrate",
        0,
        "Compute the moving statistics of batch normalization anew, over so many of the run's training images; 0: as they are.",
    )
train.define_flags()

FLAGS = flags.FLAGS


def main(_):
    workdir = FLAGS.workdir
    if not workdir and not (FLAGS.random_init and FLAGS.export_dir):
        raise UserError(
            "--workdir is missing: name the folder of a run (or --random_init, --export_dir and the flags of training)"
        )
    if workdir:
        record = os.path.join(workdir, "flags.flags")
        stored = flagfile.read(record)
        FLAGS.unparse_flags()
        # What the command line says comes last, and so overrides.
        try:
            FLAGS(
                [
                    sys.argv[0],
                    *(f"--{name}={text}" for name, text in stored.items()),
                    *cli.expand_flagfiles(sys.argv[1:]),
                ]
            )
        except flags.Error as e:
            FLAGS.mark_as_parsed()
            raise UserError(f"{record}, the record of the run, cannot be taken: {e}") from e
    FLAGS.workdir = workdir or FLAGS.export_dir  # resolve_flags wants one
    values = train.resolve_flags()
    import tensorflow as tf

    from tfssl.export import recalibrate, save
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import files
    from tfssl.training import checkpoints
    from tfssl.training.build import build_model

    path, step = None, 0
    if not FLAGS.random_init:
        path, step = _checkpoint(checkpoints.saved(os.path.join(workdir, "checkpoints")), workdir)
    where = FLAGS.export_dir or os.path.join(workdir, "module", "random" if FLAGS.random_init else str(step))
    files.check_writable(os.path.dirname(where.rstrip("/")) or ".", "--export_dir" if FLAGS.export_dir else "--workdir")
    strategies.start(values["seed"])  # float32, whatever the training's precision was
    model = build_model(values)
    model.prepare()
    if path:
        reason = checkpoints.load(path, tf.train.Checkpoint(model=model))
        if reason:
            raise UserError(f"checkpoint {path} is damaged ({reason}): choose an older one with --step")
    if FLAGS.recalibrate:
        recalibrate(model, _training_batches(model, values, FLAGS.recalibrate))
    classes = os.path.join(workdir or "", "classes.txt")
    names = tf.io.gfile.GFile(classes).read().splitlines() if workdir and tf.io.gfile.exists(classes) else None
    recorded = {name: value for name, value in values.items() if value is not None and name != "workdir"}
    save(model, where, step, names, recorded, FLAGS.random_init, FLAGS.tarball, FLAGS.head_endpoints)
    print(f"module: {where}" + (f" and {where}.tar.gz" if FLAGS.tarball else ""))
    print(f"next: tfssl-eval --module={where} --dataset={values['dataset']} --train_split=... --test_split=...")


def _training_batches(model, values, images):
    """Of the run's training split: `images`, or some more, in batches of what was computed at once."""
    from tfssl import data
    from tfssl.data.sources.subset import nested

    where = {"data_dir": values["data_dir"], "label_offset": values["label_offset"]}
    source = data.open_source(values["dataset"], values["train_split"], **where)
    if values["train_subset"]:
        source = nested(source, values["train_subset"], values["subset_seed"])
    rows = values["batch_size"] // values["accumulate_steps"]
    return model.dataset(source, rows, values["seed"], steps=math.ceil(images / rows))


def _checkpoint(found, workdir):
    steps = dict(found)
    if not found:
        raise UserError(f"{workdir!r} has no checkpoint yet: tfssl-train --workdir={workdir} writes them")
    if FLAGS.step is not None and FLAGS.step not in steps:
        raise UserError(f"--step={FLAGS.step}: {workdir!r} has checkpoints {', '.join(map(str, steps))}")
    step = FLAGS.step if FLAGS.step is not None else found[-1][0]
    return steps[step], step


def run():
    """Entry point of `tfssl-export`."""
    cli.run(main, "tfssl-export")


if __name__ == "__main__":
    run()

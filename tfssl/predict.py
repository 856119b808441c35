"""Classify images: a classifier of tfssl-finetune and images in, a table of probabilities out.

  tfssl-predict --module=runs/classifier/classifier/1000 --images=photos --output=photos.csv
      all images below a folder
  tfssl-predict --module=... --images=photo.jpg --output=photo.csv --top=3
      the top three classes of one image
  tfssl-predict --module=... --dataset=tfds:cifar10 --split=test --output=cifar10.csv
      a data set

Each row of the CSV file is an image: its name, the top class with its probability, the probability
of each class, and `error`, which is empty. Images that cannot be read, or have an unsupported
format (.heic, .svg), come last: with name and error alone.

A text that a spreadsheet would read as a formula, one that begins with = + - @, a tab or a line
break, has an apostrophe before it. So has one that begins with apostrophes before such a character:
names are restored by removing one apostrophe from each cell that begins so, as `tfssl.predict.read`
does.
"""

import csv
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from tfssl.config import configs, data_flags
from tfssl.config.schema import Inference
from tfssl.errors import UserError
from tfssl.runtime import cli

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source

FLAGS = flags.FLAGS


def define_flags() -> None:
    with cli.section("Classifier and images"):
        flags.DEFINE_string(
            "module",
            None,
            "Required. A classifier that tfssl-finetune wrote: a folder (local or gs://), or a "
            ".tar.gz.",
        )
        flags.DEFINE_string(
            "images",
            None,
            "An image file, or a folder: all images in it, and in the folders below; or an archive "
            "of one.",
        )
        flags.DEFINE_string(
            "dataset",
            None,
            "In place of --images: tfds:NAME[/CONFIG], folder:PATH, tfrecord:GLOB, or glyphs.",
        )
        flags.DEFINE_string(
            "split", "test", "Of --dataset, in TFDS's grammar: test, train[:90%], train+test."
        )
        flags.DEFINE_string(
            "data_dir",
            None,
            "Where TensorFlow Datasets are, and archives are unpacked. Default: their own folders.",
        )
        data_flags.define_record_keys()
        flags.DEFINE_integer(
            "image_size", 0, "Side of the central crop, in pixels; 0: the classifier's own."
        )
        flags.DEFINE_integer(
            "resize", 0, "Shorter side before the crop, in pixels; 0: the classifier's own."
        )
        flags.DEFINE_integer(
            "batch_size", 64, "Images at a time, on each replica; it changes speed and memory only."
        )
    configs.define(Inference, section=cli.section)
    with cli.section("Table"):
        flags.DEFINE_string(
            "output",
            "predictions.csv",
            "The CSV file, in UTF-8; one that is there is written anew.",
        )
        flags.DEFINE_integer(
            "top",
            0,
            "Columns class1, probability1, ... of so many likeliest classes; 0: a column for each "
            "class.",
        )


def main(_: Sequence[str]) -> None:
    if not FLAGS.module:
        raise UserError(
            "--module is missing: name a classifier, a folder that tfssl-finetune wrote"
        )
    if bool(FLAGS.images) == bool(FLAGS.dataset):
        raise UserError("give one of --images (a file or a folder) and --dataset")
    from tfssl.storage import files

    files.check_file(FLAGS.output, "--output")
    from tfssl.classifiers import predictions as classify
    from tfssl.data import open_source
    from tfssl.data.ops.pixels import Pixels
    from tfssl.data.sources import folder
    from tfssl.hub.precision import load
    from tfssl.runtime import strategy as strategies

    accelerators = configs.read(Inference, FLAGS)
    if accelerators.strategy == "multi_worker":
        raise UserError(
            "--strategy=multi_worker: one host writes a table; give each its own --split, such as "
            "test[:50%], and --output"
        )
    strategy, precision = strategies.for_inference(accelerators)[:2]
    with strategy.scope():
        module = load(FLAGS.module, precision)
    classes = classify.num_classes(module)
    if FLAGS.top > classes:
        raise UserError(f"--top={FLAGS.top}: the classifier tells {classes} classes apart")
    names = module.facts.get("class_names") or [str(label) for label in range(classes)]
    if len(names) != classes:
        raise UserError(
            f"module {FLAGS.module!r} is damaged: it names {len(names)} classes and tells "
            f"{classes} apart"
        )
    if FLAGS.images:
        source: Source = folder.unlabelled(FLAGS.images, FLAGS.data_dir)
        source.pixels = Pixels(**module.pixels)
    else:
        source = open_source(
            FLAGS.dataset,
            FLAGS.split,
            **data_flags.where(FLAGS.flag_values_dict()),
            **module.pixels,
        )
    for note in source.notes():
        print(note, flush=True)
    sizes = FLAGS.image_size or None, FLAGS.resize or None
    batches = classify.predictions(
        module,
        source,
        *sizes,
        batch_size=min(FLAGS.batch_size, source.num_examples),
        jit_compile=accelerators.jit_compile,
    )
    with strategy.scope():
        unreadable = write(FLAGS.output, batches, source, names, FLAGS.top)
    for name, reason in unreadable[:20]:
        print(f"not readable: {name}: {reason}")
    summary = (
        f"; {len(unreadable)} could not be read"
        + (", of which 20 are named" if len(unreadable) > 20 else "")
        if unreadable
        else ""
    )
    print(
        f"written: {FLAGS.output}: {source.num_examples + len(source.unread) - len(unreadable)} "
        f"images{summary}"
    )


def write(
    path: str,
    batches: Iterable[Mapping[str, Any]],
    source: "Source",
    names: Sequence[str],
    top: int = 0,
) -> list[tuple[str, str]]:
    """Write the CSV file, row by row; returns (name, reason) of the images that could not be read,
    its last rows.

    Args:
      path: the file.
      batches: as of `classifiers.predictions.predictions`.
      source: of the images.
      names: of the classes.
      top: see the flag.
    """
    import numpy as np

    from tfssl.data.listing import checks
    from tfssl.data.ops import formats
    from tfssl.storage import files

    unreadable: list[tuple[str, str]] = []

    def fill(file: Any) -> None:
        seen = np.zeros(source.num_examples, bool)
        # csv quotes only line breaks of its own line terminator: so that is both kinds, and is cut
        # off.
        lines: Any = types.SimpleNamespace(write=lambda row: file.write(row[:-2].encode() + b"\n"))
        table = csv.writer(lines, lineterminator="\r\n")
        table.writerow(header(names, top))
        for batch in batches:
            for index, row in zip(batch["index"], batch["probabilities"]):
                seen[index] = True
                order = np.argsort(-row, kind="stable")[: top or 1]
                likeliest = [
                    cell for label in order for cell in (names[label], f"{row[label]:.6g}")
                ]
                all_of_them = [] if top else [f"{p:.6g}" for p in row]
                table.writerow(map(safe, [source.name(int(index)), *likeliest, *all_of_them, ""]))
        unreadable.extend(checks.reasons(source, ~seen))
        unreadable.extend(
            (name, f"{ending} is a format that {f'needs {needs}' if needs else 'is not read'}")
            for name, ending in ((name, os.path.splitext(name)[1]) for name in source.unread)
            for needs in (formats.absent(ending.lower()),)
        )
        for name, reason in unreadable:
            table.writerow(map(safe, [name, *[""] * (len(header(names, top)) - 2), reason]))

    files.write_file(path, fill)
    return unreadable


def header(names: Sequence[str], top: int = 0) -> list[str]:
    """Unique names of the columns: a class with the name of another column is "error (class)"."""
    if top:
        return [
            "name",
            *(f"{what}{i + 1}" for i in range(top) for what in ("class", "probability")),
            "error",
        ]
    columns = ["name", "class", "probability", "error"]
    for name in names:
        name = safe(name)
        while name in columns:
            name += " (class)"
        columns.insert(-1, name)
    return columns


def safe(text: str) -> str:
    """A cell that no spreadsheet reads as a formula: one that begins with = + - @, a tab or a line
    break gets an apostrophe."""
    return f"'{text}" if re.match(r"'*[=+\-@\t\r\n]", text) else text


def read(path: str) -> list[dict[str, str]]:
    """The rows of a table that `write` wrote, with the texts before `safe`.

    Args:
      path: the CSV file, local.

    Returns:
      list of {column: text}.
    """

    def plain(text: str) -> str:
        return text[1:] if re.match(r"'+[=+\-@\t\r\n]", text) else text

    with open(path, newline="", encoding="utf-8") as f:
        columns, *rows = ([plain(cell) for cell in row] for row in csv.reader(f))
    return [dict(zip(columns, row)) for row in rows]


def run() -> None:
    """Entry point of `tfssl-predict`."""
    define_flags()
    cli.run(main, "tfssl-predict", goes_on="nothing is written; the same command begins again")


if __name__ == "__main__":
    run()

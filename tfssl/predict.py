"""Classify images, or find objects in them: a classifier of tfssl-finetune, or a detector of
tfssl-eval, and images in, a table out.

  tfssl-predict --module=runs/classifier/classifier/1000 --images=photos --output=photos.csv
      all images below a folder
  tfssl-predict --module=... --images=photo.jpg --output=photo.csv --top=3
      the top three classes of one image
  tfssl-predict --module=... --dataset=tfds:cifar10 --split=test --output=cifar10.csv
      a data set
  tfssl-predict --module=detectors/cells --images=photos --output=boxes.csv --pictures=drawn
      a detector (tfssl-eval --save_detector): boxes, and pictures of them

Each row of a classifier's CSV file is an image: its name, the top class with its probability, the
probability of each class, and `error`, which is empty. Each row of a detector's is a box: name,
class, score, ymin, xmin, ymax, xmax in pixels of the upright image, and `error`; an image in which
nothing is found has a row with its name alone. Images that cannot be read, or have an unsupported
format (.heic, .svg), come last: with name and error alone.

A text that a spreadsheet would read as a formula, one that begins with = + - @, a tab or a line
break, has an apostrophe before it. So has one that begins with apostrophes before such a character:
names are restored by removing one apostrophe from each cell that begins so, as `tfssl.predict.read`
does.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from tfssl.classifiers.table import read as read
from tfssl.classifiers.table import safe
from tfssl.config import configs, data_flags
from tfssl.config.schema import Inference
from tfssl.errors import UserError
from tfssl.runtime import cli

if TYPE_CHECKING:
    import tensorflow as tf

    from tfssl.data.sources.base import Source
    from tfssl.hub.load import Module

FLAGS = flags.FLAGS


def define_flags() -> None:
    with cli.section("Classifier and images"):
        flags.DEFINE_string(
            "module",
            None,
            "Required. A classifier that tfssl-finetune wrote, or a detector that tfssl-eval "
            "--save_detector wrote: a folder (local or gs://), or a .tar.gz.",
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
            "The CSV file, in UTF-8; one that is there is written anew. Of a detector also JSON, a "
            "list of rows: boxes.json.",
        )
        flags.DEFINE_integer(
            "top",
            0,
            "Columns class1, probability1, ... of so many likeliest classes; 0: a column for each "
            "class.",
        )
        flags.DEFINE_float("min_score", 0.5, "Of a detector: least score of a box, from 0 to 1.")
        flags.DEFINE_string(
            "pictures",
            None,
            "Of a detector: a folder for the images with their boxes, NUMBER_NAME_boxes.jpg. "
            "Default: none are written.",
        )


def main(_: Sequence[str]) -> None:
    if not FLAGS.module:
        raise UserError(
            "--module is missing: name a classifier, a folder that tfssl-finetune wrote"
        )
    if bool(FLAGS.images) == bool(FLAGS.dataset):
        raise UserError("give one of --images (a file or a folder) and --dataset")
    from tfssl.storage import files

    if not FLAGS.output.lower().endswith((".csv", ".json")):
        raise UserError(
            f"--output={FLAGS.output}: the table is CSV, or of a detector JSON: give it a name in "
            ".csv or .json"
        )
    files.check_file(FLAGS.output, "--output")
    if FLAGS.pictures:
        files.check_writable(FLAGS.pictures, "--pictures")
    from tfssl.classifiers import detections
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
    if detections.is_detector(module):
        if strategies.distributed(strategy):  # a detector computes on one device
            module = load(FLAGS.module, precision)
        source, unreadable = boxes(module, accelerators)
    else:
        source, unreadable = classes(module, accelerators, strategy)
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


def opened(module: "Module") -> "Source":
    """The images that the flags name; what somebody who reads them should know is printed."""
    from tfssl.data import open_source
    from tfssl.data.ops.pixels import Pixels
    from tfssl.data.sources import folder

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
    return source


def boxes(module: "Module", accelerators: Inference) -> tuple["Source", list[tuple[str, str]]]:
    """Write the table of a detector: (images, (name, reason) of those without prediction)."""
    from tfssl.classifiers import detections
    from tfssl.data.listing import outputs

    names = detections.class_names(module)
    given = [name for name in ("image_size", "resize", "top") if FLAGS[name].value]
    given += ["jit_compile"] if accelerators.jit_compile else []
    if given:
        raise UserError(
            f"--{given[0]} is of classifiers: {FLAGS.module} is a detector, which resizes by "
            "itself and whose suppression of boxes XLA does not compile: leave it out"
        )
    source = opened(module)
    if FLAGS.pictures:
        outputs.mark(FLAGS.pictures)
    found = detections.detections(module, source, FLAGS.batch_size)
    refused = detections.write(FLAGS.output, found, source, names, FLAGS.min_score, FLAGS.pictures)
    return source, refused


def classes(
    module: "Module", accelerators: Inference, strategy: "tf.distribute.Strategy"
) -> tuple["Source", list[tuple[str, str]]]:
    """Write the table of a classifier: (images, (name, reason) of those that could not be read)."""
    from tfssl.classifiers import predictions as classify

    count = classify.num_classes(module)
    given = [name for name in ("pictures", "min_score") if FLAGS[name].present]
    if given:
        raise UserError(f"--{given[0]} is of detectors, and {FLAGS.module} is a classifier")
    if FLAGS.output.lower().endswith(".json"):
        raise UserError("--output: the table of a classifier is CSV: give it a name in .csv")
    if FLAGS.top > count:
        raise UserError(f"--top={FLAGS.top}: the classifier tells {count} classes apart")
    names = module.facts.get("class_names") or [str(label) for label in range(count)]
    if len(names) != count:
        raise UserError(
            f"module {FLAGS.module!r} is damaged: it names {len(names)} classes and tells "
            f"{count} apart"
        )
    source = opened(module)
    sizes = FLAGS.image_size or None, FLAGS.resize or None
    batches = classify.predictions(
        module,
        source,
        *sizes,
        batch_size=min(FLAGS.batch_size, source.num_examples),
        jit_compile=accelerators.jit_compile,
    )
    with strategy.scope():
        return source, write(FLAGS.output, batches, source, names, FLAGS.top)


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

    from tfssl.classifiers import table as tables
    from tfssl.storage import files

    unreadable: list[tuple[str, str]] = []

    def fill(file: Any) -> None:
        seen = np.zeros(source.num_examples, bool)
        table = tables.writer(file)
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
        unreadable.extend(tables.unreadable(source, seen))
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


def run() -> None:
    """Entry point of `tfssl-predict`."""
    define_flags()
    cli.run(main, "tfssl-predict", goes_on="nothing is written; the same command begins again")


if __name__ == "__main__":
    run()

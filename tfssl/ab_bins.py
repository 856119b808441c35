"""Count the colors of a data set: the bins that --task=colorization classifies into, and how often
each occurs.

  python -m tfssl.ab_bins --dataset=folder:photos --output=bins.npz
  tfssl-train --task=colorization --bins=bins.npz ...

Without it a colorization run counts its own training images when it begins.
"""

from collections.abc import Sequence

from absl import flags

from tfssl.config import data_flags
from tfssl.runtime import cli

FLAGS = flags.FLAGS

with cli.section("Colour bins"):
    flags.DEFINE_string(
        "dataset", "glyphs", "Images to count: folder:PATH, tfds:NAME, tfrecord:GLOB or glyphs."
    )
    flags.DEFINE_string("split", "train", "Which of them, in TFDS's grammar.")
    flags.DEFINE_string(
        "data_dir", None, "Where TensorFlow Datasets are, and archives are unpacked."
    )
    data_flags.define_record_keys()
    flags.DEFINE_integer("images", 10_000, "At most so many, spread over the split.")
    flags.DEFINE_integer("grid", 10, "Distance of the bins in a and b (Zhang et al.: 10).")
    flags.DEFINE_float(
        "smooth",
        0.0,
        "Deviation of a Gaussian that smooths the prior (Zhang et al.: 5; Goyal et al.: none).",
    )
    flags.DEFINE_string("output", "ab_bins.npz", "The file to write.")


def main(_: Sequence[str]) -> None:
    from tfssl.storage import files

    files.check_file(FLAGS.output, "--output")
    from tfssl.data import open_source
    from tfssl.pretext.parts import ab_bins

    source = open_source(FLAGS.dataset, FLAGS.split, **data_flags.where(FLAGS.flag_values_dict()))
    found = ab_bins.of_images(source, FLAGS.grid, FLAGS.images, FLAGS.smooth, say)
    found.save(FLAGS.output)
    prior = found.prior
    assert prior is not None  # of images: they are counted
    order = (-prior).argsort()[:3]
    common = ", ".join(
        f"({a:.0f}, {b:.0f}) {p:.1%}" for (a, b), p in zip(found.points[order], prior[order])
    )
    print(f"{FLAGS.output}: {len(found.points)} bins; the most frequent {common}")
    print(f"(the gamut of sRGB reaches {len(ab_bins.of_gamut(FLAGS.grid).points)})")


def say(done: int, count: int) -> None:
    if done == count or done % 1600 == 0:
        print(f"{done} of {count} images", flush=True)


if __name__ == "__main__":
    cli.run(main, "python -m tfssl.ab_bins")

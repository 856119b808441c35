"""The flags of record files, which every command that reads images has, and what `open_source` gets of such flags."""

from absl import flags


def define_record_keys():
    """`--image_key`, `--label_key`, `--skip_damaged_shards`; without them `open_source`'s own defaults hold."""
    flags.DEFINE_string(
        "image_key", None, "tfrecord: the feature that holds the encoded image. Default: image/encoded."
    )
    flags.DEFINE_string(
        "label_key", None, "tfrecord: the feature that holds the label, one int64. Default: image/class/label."
    )
    flags.DEFINE_boolean(
        "skip_damaged_shards",
        False,
        "tfrecord, tfds: go on where a file is damaged or ends early. In training its readable records take the places of the lost ones; "
        "all else keeps its order. Evaluation leaves them out.",
    )


def where(values):
    """The keyword arguments of `open_source` among {flag: value}: those that are there, and set."""
    names = ("data_dir", "image_key", "label_key", "label_offset", "skip_damaged_shards")
    return {name: values[name] for name in names if values.get(name) is not None}

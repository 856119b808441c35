"""The flags of record keys, which every command that reads images has, and what `open_source` gets of such flags."""

from absl import flags


def define_record_keys():
    """`--image_key` and `--label_key`; without them `open_source`'s own defaults hold."""
    flags.DEFINE_string(
        "image_key", None, "tfrecord: the feature that holds the encoded image. Default: image/encoded."
    )
    flags.DEFINE_string(
        "label_key", None, "tfrecord: the feature that holds the label, one int64. Default: image/class/label."
    )


def where(values):
    """The keyword arguments of `open_source` among {flag: value}: those that are there, and set."""
    names = ("data_dir", "image_key", "label_key", "label_offset")
    return {name: values[name] for name in names if values.get(name) is not None}

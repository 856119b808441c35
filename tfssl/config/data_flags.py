"""Flags that several commands have: of record files, what `open_source` gets of such flags; and
those that are paths."""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from tfssl.config.generated import Generated


def define_record_keys() -> None:
    """`--image_key`, `--label_key`, `--skip_damaged_shards`; without them `open_source`'s own
    defaults hold."""
    Generated("records", {"Records": ("tfssl.config.schema", "Records")}).define()


def where(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `open_source` among {flag: value}: those that are there, and set."""
    names = (
        "data_dir", "image_key", "label_key", "label_offset", "skip_damaged_shards", "value_range",
    )  # fmt: skip
    return {name: values[name] for name in names if values.get(name) is not None}


PATHS = (
    "workdir", "data_dir", "export_dir", "images", "output", "train_list", "bins",
    "permutations_file", "module", "teacher", "init_module", "augmentation",
)  # fmt: skip


def at_home(name: str, value: Any) -> Any:
    """The value of a flag, text, a list of texts or None, with the user's home for ~ where it is a
    path (of --module: in NAME=PATH, too).

    Data sets, folder:~/photos, are left to `open_source`.
    """
    if name not in PATHS or not isinstance(value, (str, list)):
        return value
    if isinstance(value, list):
        return [at_home(name, part) for part in value]
    label, equals, path = value.partition("=")
    if name == "module" and equals and not set(label) & set("/:"):
        return f"{label}={os.path.expanduser(path)}"
    return os.path.expanduser(value)


class _AtHome:
    """A flag's parser, and ~ after it."""

    def __init__(self, name: str, parser: flags.ArgumentParser) -> None:
        self._name, self._parser = name, parser

    def parse(self, argument: Any) -> Any:
        return at_home(self._name, self._parser.parse(argument))

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._parser, attribute)


def expand_homes(values: flags.FlagValues = flags.FLAGS) -> None:
    """From now on ~ is the user's home in every flag of PATHS, wherever it is read."""
    for name in PATHS:
        flag: Any = values[name] if name in values else None
        if flag is not None and not isinstance(flag.parser, _AtHome):
            flag.parser = _AtHome(name, flag.parser)

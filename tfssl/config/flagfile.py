"""flags.flags, the complete record of a run."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from tfssl.config.data_flags import at_home
from tfssl.config.generated import as_text
from tfssl.errors import UserError, one_line
from tfssl.storage.files import write_file


def write(path: str, values: Mapping[str, Any]) -> None:
    """Write {flag: value} as a flagfile, in one step: the file is complete or absent.

    Raises:
      UserError: a value has a line break, which a flagfile cannot hold.
    """
    for name, value in values.items():
        if "\n" in as_text(value):
            raise UserError(f"--{name}={as_text(value)!r}: a run's flags cannot have line breaks")
    lines = [f"--{name}={as_text(value)}" for name, value in values.items() if value is not None]
    write_file(path, "\n".join(lines) + "\n")


def read(path: str) -> dict[str, str]:
    """{flag: text} of a file that `write` wrote.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        raise UserError(
            f"{os.path.dirname(path)!r} is not the workdir of a run: it has no "
            f"{os.path.basename(path)}"
        )
    try:
        with tf.io.gfile.GFile(path) as f:
            pairs = [line.strip()[2:].partition("=") for line in f if line.startswith("--")]
    except (UnicodeDecodeError, tf.errors.OpError) as e:
        raise UserError(f"{path}, the record of the run, cannot be read: {one_line(e)}") from e
    return {
        name: at_home(name, text) if equals else "true" for name, equals, text in pairs
    }  # --name alone: so absl reads it


def differences(
    stored: Mapping[str, str], values: Mapping[str, Any], free: Collection[str] = ()
) -> list[tuple[str, str, str]]:
    """The flags, by name, whose stored text is not that of `values`: [(name, stored text, new
    text)]."""
    new = {name: as_text(value) for name, value in values.items() if value is not None}
    names = [
        n for n in dict.fromkeys([*stored, *new]) if n not in free and stored.get(n) != new.get(n)
    ]
    return [(n, stored.get(n, "unset"), new.get(n, "unset")) for n in names]

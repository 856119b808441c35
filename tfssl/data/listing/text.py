"""Lists in text files, a name on each line."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from tfssl.errors import UserError


def read_lines(path: str, spec: str) -> list[str]:
    """The lines of a file in UTF-8, with or without a byte-order mark, as some editors write one.

    Args:
      path: local, or any that TensorFlow knows.
      spec: whose file it is, for the message.

    Raises:
      UserError: it is in another encoding.
      tf.errors.OpError: it cannot be read.
    """
    with tf.io.gfile.GFile(path, "rb") as f:
        content = f.read()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{spec}: {path!r} is not text in UTF-8: save it as such") from error


def to_lines(names: Iterable[object]) -> str:
    """Names, a line each. Line breaks in them, which folders may have, become blanks."""
    return "".join(" ".join(str(name).splitlines()) + "\n" for name in names)

"""Tables of predictions that spreadsheets and programs read: CSV in UTF-8."""

from __future__ import annotations

import csv
import os
import re
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tfssl.data.sources.base import Source

_FORMULA = re.compile(r"[=+\-@\t\r\n]")


def writer(file: Any) -> Any:
    """A `csv.writer` of a binary file."""
    # csv quotes only line breaks of its own line terminator: so that is both kinds, and is cut off.
    lines: Any = types.SimpleNamespace(write=lambda row: file.write(row[:-2].encode() + b"\n"))
    return csv.writer(lines, lineterminator="\r\n")


def safe(text: str) -> str:
    """A cell that no spreadsheet reads as a formula: one that begins with = + - @, a tab or a line
    break gets an apostrophe."""
    return f"'{text}" if _FORMULA.match(text.lstrip("'")) else text


def read(path: str) -> list[dict[str, str]]:
    """The rows of a table that tfssl-predict wrote, with the texts before `safe`.

    Args:
      path: the CSV file, local.

    Returns:
      list of {column: text}.
    """

    def plain(text: str) -> str:
        return text[1:] if text[:1] == "'" and _FORMULA.match(text.lstrip("'")) else text

    with open(path, newline="", encoding="utf-8") as f:
        columns, *rows = ([plain(cell) for cell in row] for row in csv.reader(f))
    return [dict(zip(columns, row)) for row in rows]


def unreadable(source: Source, seen: np.ndarray) -> list[tuple[str, str]]:
    """(name, reason) of the images that are not `seen`, bool [N], and of those in formats that are
    not read."""
    # here: `tfssl-predict --help` need not wait for TensorFlow
    from tfssl.data.listing import checks
    from tfssl.data.ops import formats

    found = checks.reasons(source, ~seen)
    for name in source.unread:
        ending = os.path.splitext(name)[1]
        needs = formats.absent(ending.lower())
        found.append(
            (name, f"{ending} is a format that {f'needs {needs}' if needs else 'is not read'}")
        )
    return found

"""The labeled images of a source in fine-tuning: a class-balanced subset, or those of a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.listing.text import read_lines
from tfssl.data.sources.base import Source
from tfssl.data.sources.folder import FORMATS
from tfssl.downstream.features.extract import read_labels
from tfssl.downstream.partition import balanced, label_count
from tfssl.errors import UserError, one_line


def choose(
    source: Source, train_labels: str | int = "all", train_list: str = "", seed: int = 0
) -> np.ndarray | None:
    """The images of a source whose labels are used in training.

    Args:
      source: a `tfssl.data.Source`.
      train_labels: "all", "1%" or 200: class-balanced, the same subset as in evaluation; see
        `splits.balanced`.
      train_list: file of names, one on a line, see `listed`; replaces the number.
      seed: of the balanced draw.

    Returns:
      int array of positions in the split, in increasing order; None for all.
    """
    if train_list:
        return _of_list(source, train_list)
    if str(train_labels) == "all":
        return None
    records = read_labels(source)
    rows = np.flatnonzero(records["labels"] >= 0)
    labels, index = records["labels"][rows], records["index"][rows]
    count = label_count(train_labels, len(rows), len(np.unique(labels)))
    return index[balanced(labels, index, count, seed)]


def _of_list(source: Source, path: str) -> np.ndarray:
    try:
        lines = [line.strip() for line in read_lines(path, "--train_list") if line.strip()]
    except tf.errors.OpError as e:
        raise UserError(f"--train_list={path} cannot be read: {one_line(e)}") from e
    rows, unknown = listed(source.names(), lines)
    images = f"{source.spec} ({source.split})"
    if not len(rows):
        example = (
            f"for example {lines[0]!r}, and an image there is {source.name(0)}"
            if lines
            else "it is empty"
        )
        raise UserError(
            f"--train_list={path}: none of its {len(lines)} names is an image of {images}: "
            f"{example}"
        )
    if unknown:
        logging.warning(
            "--train_list=%s: %d of its %d names are no images of %s: for example %r",
            path,
            len(unknown),
            len(lines),
            images,
            unknown[0],
        )
    return rows


def listed(names: Sequence[str], lines: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """The images that a list names, such as the published lists for ImageNet: n01440764_10026.JPEG.

    A line is the end of an image's path, with or without the file extension:
    n01440764/n01440764_10026 is possible too.

    Args:
      names: paths of the images.
      lines: a name each.

    Returns:
      (int array of rows of `names`, in increasing order; list of the lines that name no image).

    Raises:
      UserError: a line matches two images.
    """
    line_of = {_without_ending(line): line for line in lines}
    row_of: dict[str, int] = {}
    for depth in {line.count("/") + 1 for line in line_of}:
        for row, name in enumerate(names):
            end = "/".join(_without_ending(name).split("/")[-depth:])
            if end in line_of and end in row_of:
                raise UserError(
                    f"{line_of[end]!r} is the name of {names[row_of[end]]} and of {name}: write "
                    "its folder too, as CLASS/NAME"
                )
            if end in line_of:
                row_of[end] = row
    return np.array(sorted(set(row_of.values())), int), [
        line for end, line in line_of.items() if end not in row_of
    ]


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if f".{ending.lower()}" in FORMATS and dot else name

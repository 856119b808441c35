"""Which images of a source keep their labels: a balanced part of them, or those that a list names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.sources.base import Source
from tfssl.data.sources.folder import FORMATS
from tfssl.downstream.features.extract import read_labels
from tfssl.downstream.splits import balanced, label_count
from tfssl.errors import UserError, one_line


def choose(source: Source, train_labels: str | int = "all", train_list: str = "", seed: int = 0) -> np.ndarray | None:
    """The images of a source that a classifier learns the labels of.

    Args:
      source: a `tfssl.data.Source`.
      train_labels: how many: "all", "1%" or 200; balanced over the classes, and the same ones as in evaluation: see `splits.balanced`.
      train_list: file of names, one on a line, see `listed`; in place of a number.
      seed: of the balanced draw.

    Returns:
      int array of rising places in the split; None for all.
    """
    if train_list:
        return _of_list(source, train_list)
    if str(train_labels) == "all":
        return None
    found = read_labels(source)
    rows = np.flatnonzero(found["labels"] >= 0)
    labels, index = found["labels"][rows], found["index"][rows]
    count = label_count(train_labels, len(rows), len(np.unique(labels)))
    return index[balanced(labels, index, count, seed)]


def _of_list(source: Source, path: str) -> np.ndarray:
    try:
        with tf.io.gfile.GFile(path) as f:
            lines = [line.strip() for line in f if line.strip()]
    except (tf.errors.OpError, UnicodeDecodeError) as e:
        raise UserError(f"--train_list={path} cannot be read: {one_line(e)}") from e
    rows, unknown = listed(source.names(), lines)
    where = f"{source.spec} ({source.split})"
    if not len(rows):
        example = f"for example {lines[0]!r}, and an image there is {source.name(0)}" if lines else "it is empty"
        raise UserError(f"--train_list={path}: none of its {len(lines)} names is an image of {where}: {example}")
    if unknown:
        logging.warning(
            "--train_list=%s: %d of its %d names are no images of %s: for example %r",
            path,
            len(unknown),
            len(lines),
            where,
            unknown[0],
        )
    return rows


def listed(names: Sequence[str], lines: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Which images a list names, as the published ones of ImageNet do: n01440764_10026.JPEG.

    A line is the end of an image's path, with or without the ending of the file; so n01440764/n01440764_10026 will do too.

    Args:
      names: paths of the images.
      lines: a name each.

    Returns:
      (int array of rising rows of `names`, list of the lines that name no image).

    Raises:
      UserError: two images have the end that a line names.
    """
    wanted = {_without_ending(line): line for line in lines}
    found: dict[str, int] = {}
    for depth in {line.count("/") + 1 for line in wanted}:
        for row, name in enumerate(names):
            end = "/".join(_without_ending(name).split("/")[-depth:])
            if end in wanted and end in found:
                raise UserError(
                    f"{wanted[end]!r} is the name of {names[found[end]]} and of {name}: write its folder too, as CLASS/NAME"
                )
            if end in wanted:
                found[end] = row
    return np.array(sorted(set(found.values())), int), [line for end, line in wanted.items() if end not in found]


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if f".{ending.lower()}" in FORMATS and dot else name

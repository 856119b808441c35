"""`voc:PATH`: photographs that may show several classes, in Pascal VOC's layout.

    PATH/JPEGImages/000005.jpg
    PATH/ImageSets/Main/CLASS_SPLIT.txt    a line for each image: its name, and 1 (shown), -1 (not)
                                           or 0 (difficult)

PATH is such a folder (VOCdevkit/VOC2007), or one that holds no other (VOCdevkit). Its splits are
those that have files: train, val, trainval (both of them) and test.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfssl.data.listing.text import read_lines
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError, one_line, reason_of
from tfssl.storage import files

_LISTS = "ImageSets/Main"


class VOCSource(IndexedSource):
    """Images of a split in the order of their names, and classes in that of theirs, as in published
    evaluations."""

    form = "voc:PATH"
    splits_overlap = True

    def __init__(self, spec: str, path: str, split: str = "train") -> None:
        try:
            root = find(path, spec)
            marks, classes = _read(root, spec)
        except tf.errors.OpError as error:
            raise UserError(f"{spec}: {reason_of(error)}") from error
        number = {name: column for column, name in enumerate(classes)}
        paths, targets = [], []
        for name, start, stop in resolve(
            split, {name: [len(images)] for name, images in marks.items()}, spec
        ):
            for image in sorted(marks[name])[start:stop]:
                paths.append(f"{root}/JPEGImages/{image}.jpg")
                targets.append(
                    np.full(len(classes), -1, np.int8)
                )  # what a class's file does not name, it has not
                for of_class, mark in marks[name][image].items():
                    targets[-1][number[of_class]] = mark
        super().__init__(spec, split, len(paths), class_names=classes)
        self._targets = np.stack(targets)
        with tf.device("CPU"):
            self._paths = tf.constant(paths)

    def parts(self) -> Parts:
        return Parts([path.decode() for path in self._paths.numpy()], [self._targets])

    def targets(self) -> np.ndarray:
        return self._targets

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = tf.io.read_file(self.name_in_graph(record))
        return {
            "image": self.read(image),
            "label": tf.constant(-1, tf.int64),
            "index": record["index"],
        }

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.gather(self._paths, record["index"])

    def name(self, index: int) -> str:
        return self._paths[index].numpy().decode()


def find(path: str, spec: str) -> str:
    """The folder that holds ImageSets/Main."""
    root = (os.path.expanduser(path) if "://" not in path else path).rstrip("/")
    try:
        inner = files.matching(root, ".*")
    except files.errors() as error:
        raise UserError(f"{spec}: {one_line(error)}") from error
    found = [f for f in (root, *inner) if tf.io.gfile.isdir(f"{f}/{_LISTS}")]
    if not found:
        raise UserError(
            f"{spec}: no folder {_LISTS} in {root!r}; give the folder that holds it, as "
            "VOCdevkit/VOC2007"
        )
    if len(found) > 1 and found[0] != root:
        raise UserError(f"{spec}: give one of {', '.join(found)}")
    return found[0]


def _read(root: str, spec: str) -> tuple[Mapping[str, dict[str, dict[str, int]]], list[str]]:
    """({split: {image: {class: 1, -1 or 0}}}, names of the classes)."""
    marks: Mapping[str, dict[str, dict[str, int]]] = collections.defaultdict(
        lambda: collections.defaultdict(dict)
    )
    classes = set()
    for file in files.matching(f"{root}/{_LISTS}", r".*_.*\.txt"):
        of_class, _, split = os.path.basename(file)[: -len(".txt")].rpartition("_")
        classes.add(of_class)
        for line in filter(None, map(str.split, read_lines(file, spec))):
            if len(line) != 2 or line[1] not in ("1", "-1", "0"):
                raise UserError(
                    f"{spec}: {file!r} holds {' '.join(line)[:40]!r}; each line is an image's "
                    "name, and 1, -1 or 0"
                )
            marks[split][line[0]][of_class] = int(line[1])
    if not marks:
        raise UserError(
            f"{spec}: no lists of images in {root}/{_LISTS}; expected files such as cat_train.txt"
        )
    return marks, sorted(classes)

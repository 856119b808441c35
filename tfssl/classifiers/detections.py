"""Predictions of detectors that `tfssl.export.save_detector` wrote: boxes of each image, as a table
and drawn."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfssl.classifiers import table
from tfssl.data.ops import image
from tfssl.data.segments import readable
from tfssl.data.sources.base import Source
from tfssl.downstream import pictures
from tfssl.errors import UserError
from tfssl.hub.load import Module
from tfssl.storage import files

KIND = "detector"  # "kind" in its tfssl.json
COLUMNS = ("name", "class", "score", "ymin", "xmin", "ymax", "xmax", "error")
_AT_ONCE = 1 << 27  # bytes of the images that are decoded together


class Found(NamedTuple):
    """What a detector finds in an image.

    Attributes:
      number: of the image in the split.
      pixels: uint8 [H, W, 3].
      boxes: float32 [n, 4], (ymin, xmin, ymax, xmax) in pixels.
      scores: float32 [n], descending.
      classes: int32 [n].
      reason: why the image is refused, which then has no boxes; "": it is not.
    """

    number: int
    pixels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    reason: str = ""


def is_detector(module: Module) -> bool:
    """Whether a loaded module is a detector of ours."""
    return module.facts.get("kind") == KIND


def class_names(module: Module) -> list[str]:
    """Of a detector; UserError where it is damaged."""
    names, count = module.facts.get("class_names") or [], module.facts.get("num_classes")
    if not names or len(names) != count:
        raise UserError(
            f"module {module.handle!r} is damaged: it names {len(names)} classes and tells {count} "
            "apart"
        )
    return names


def detections(module: Module, source: Source, batch_size: int = 64) -> Iterator[Found]:
    """What is found in all readable images, in the order of the split.

    Args:
      module: a detector, loaded by `modules.load` outside of a strategy's scope.
      source: a `tfssl.data.Source`.
      batch_size: successive images of one size that the module gets at once, at most; of large
        images fewer.
    """
    source.check_readable()

    def load(record: Any) -> tuple[tf.Tensor, tf.Tensor]:
        example = source.fetch(record)
        # serialized: rows of equal shape, whatever the image's, as batches require
        return example["index"], tf.io.serialize_tensor(image.decode(example["image"]))

    data = readable(source, load, 8).unbatch()
    data = data.map(lambda index, pixels: (index, tf.io.parse_tensor(pixels, tf.uint8)))
    waiting: list[tuple[int, np.ndarray]] = []
    for index, pixels in data.prefetch(1).as_numpy_iterator():
        height, width = pixels.shape[:2]
        if max(height, width) > image.LONGEST * min(height, width):
            none = np.zeros([0, 4], np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
            reason = f"one side is more than {image.LONGEST} times the other: {height} x {width}"
            yield from _of_images(module, waiting)
            waiting = []
            yield Found(int(index), pixels, *none, reason)
            continue
        most = min(batch_size, max(1, _AT_ONCE // pixels.size))
        if waiting and (waiting[0][1].shape != pixels.shape or len(waiting) >= most):
            yield from _of_images(module, waiting)
            waiting = []
        waiting.append((int(index), pixels))
    yield from _of_images(module, waiting)


def _of_images(module: Module, images: list[tuple[int, np.ndarray]]) -> Iterator[Found]:
    """Of images of one size."""
    if not images:
        return
    found = module.model(tf.constant(np.stack([pixels for _, pixels in images])))
    arrays = {name: value.numpy() for name, value in found.items()}
    for row, (index, pixels) in enumerate(images):
        count = int(arrays["count"][row])
        parts = (arrays[name][row, :count] for name in ("boxes", "scores", "classes"))
        yield Found(index, pixels, *parts)


def write(
    path: str,
    found: Iterable[Found],
    source: Source,
    names: list[str],
    min_score: float = 0.5,
    folder: str | None = None,
) -> list[tuple[str, str]]:
    """Write the table, a row for each box; returns (name, reason) of the images without prediction,
    its last rows.

    Args:
      path: of the table: JSON where it ends in .json, a list of rows {"name", "class", "score",
        "box": [ymin, xmin, ymax, xmax]}; else CSV, with COLUMNS. An image in which nothing is found
        has a row with its name alone, one without prediction name and error.
      found: as of `detections`.
      source: of the images.
      names: of the classes.
      min_score: least score of a box.
      folder: for pictures of the images with their boxes, NUMBER_NAME_boxes.jpg; None: none.
    """
    refused: list[tuple[str, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        seen = np.zeros(source.num_examples, bool)
        for one in found:
            seen[one.number], name = True, source.name(one.number)
            if one.reason:
                refused.append((name, one.reason))
                continue
            sure = one.scores >= min_score
            boxes, scores, classes = one.boxes[sure], one.scores[sure], one.classes[sure]
            if folder:
                files.write_file(
                    os.path.join(folder, picture_name(one.number, name)),
                    pictures.labeled(one.pixels, boxes, classes, scores, names),
                )
            if not len(boxes):
                yield {"name": name}
            for box, score, c in zip(boxes, scores, classes):
                rounded = [round(float(end), 2) for end in box]
                yield {
                    "name": name, "class": names[c], "score": round(float(score), 4), "box": rounded
                }  # fmt: skip
        refused.extend(table.unreadable(source, seen))
        yield from ({"name": name, "error": reason} for name, reason in refused)

    def as_csv(file: Any) -> None:
        lines = table.writer(file)
        lines.writerow(COLUMNS)
        for row in rows():
            ends = row.get("box", [""] * 4)
            texts = (table.safe(row.get(name, "")) for name in ("name", "class", "error"))
            name, kind, error = texts
            lines.writerow([name, kind, row.get("score", ""), *ends, error])

    def as_json(file: Any) -> None:
        begin = b"[\n"
        for row in rows():
            file.write(begin + json.dumps(row, ensure_ascii=False).encode())
            begin = b",\n"
        file.write(b"\n]\n")

    files.write_file(path, as_json if path.endswith(".json") else as_csv)
    return refused


def picture_name(index: int, name: str) -> str:
    """Of the picture of an image: its number in the split, and its name without folders and
    ending."""
    stem = re.sub(r"[^\w.-]", "_", os.path.splitext(os.path.basename(name))[0])
    return f"{index:06d}_{stem[:100]}_boxes.jpg"

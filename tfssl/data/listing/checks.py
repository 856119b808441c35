"""Looking at a source's images before a run depends on them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfssl.data.gaps import Gaps
from tfssl.data.ops.image import decode_to_crop
from tfssl.data.segments import readable
from tfssl.errors import UserError

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source


def _decoded(source: Source) -> Gaps:
    # what a crop refuses, too: training would replace it
    return Gaps(source, lambda record: decode_to_crop(source.fetch(record)["image"]))


def check_readable(source: Source, limit: int = 256) -> None:
    """Raises UserError if none of the first `limit` images can be decoded and cropped, naming the
    first and the reason; or if one cannot be reached.

    Training replaces an unreadable image by the next readable one: with no readable one it would
    look for ever.
    """
    first, count, images = None, 0, _decoded(source)
    for record in source.first_records(limit):
        _, reason = images.read(record)
        if reason is None:
            return
        first = first or (source.name_in_graph(record).numpy().decode(), reason)
        count += 1
    if first is None:
        raise UserError(f"{source.spec}, split {source.split}, has no images")
    raise UserError(
        f"none of the first {count} images of {source.spec} can be read; {first[0]}: {first[1]}"
    )


@dataclasses.dataclass
class Scan:
    """What `scan` found.

    Attributes:
      images: how many images there are, unreadable ones included.
      per_class: dict of class name -> images; empty without labels.
      unlabelled: images without a label.
      unreadable: list of (name, reason) of images that cannot be decoded, or are too thin to crop.
      duplicates: list of lists of names, each of images with the same content (bytes of the file,
        or pixels).
      ignored: dict of file name ending -> files passed over.
      sizes: dict of (height, width) -> images, the readable ones.
    """

    images: int
    per_class: dict[str, int]
    unlabelled: int
    unreadable: list[tuple[str, str]]
    duplicates: list[list[str]]
    ignored: dict[str, int]
    sizes: dict[tuple[int, ...], int]


def scan(source: Source, progress: Callable[[int, int], object] | None = None) -> Scan:
    """Reads and decodes every image of a source once, in parallel.

    Args:
      source: a Source.
      progress: function (images done, images in all), called now and then.

    Returns:
      A Scan. Duplicates are found by two 64-bit hashes of the content.

    Raises:
      tf.errors.OpError: an image cannot be reached for a while; it quotes the `UserError` that
        names it.
    """

    def examine(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = source.fetch(record)
        image = example["image"]
        content = image if image.dtype == tf.string else tf.io.serialize_tensor(image)
        hashes = [
            tf.strings.to_hash_bucket_fast(content, tf.int64.max),
            tf.strings.to_hash_bucket_strong(content, tf.int64.max, [1, 2]),
        ]
        return {
            "index": example["index"],
            "label": example["label"],
            "content": tf.stack(hashes),
            "size": tf.shape(decode_to_crop(image))[:2],
        }

    count = source.num_examples
    read = np.zeros(source.places, bool)
    labels = np.full(source.places, -1, np.int64)
    content = np.zeros((source.places, 2), np.int64)
    sizes: collections.Counter[tuple[int, ...]] = collections.Counter()
    for batch in readable(source, examine, 256).prefetch(1).as_numpy_iterator():
        index = batch["index"]
        read[index], labels[index], content[index] = True, batch["label"], batch["content"]
        sizes.update(map(tuple, batch["size"].tolist()))
        if progress:
            progress(int(read.sum()), count)

    return Scan(
        images=count,
        per_class=_per_class(source, labels[read]),
        unlabelled=int((labels[read] < 0).sum()),
        unreadable=reasons(source, ~read),
        duplicates=_duplicates(source, content, np.flatnonzero(read)),
        ignored=dict(source.ignored),
        sizes=dict(sizes),
    )


def _per_class(source: Source, labels: np.ndarray) -> dict[str, int]:
    if source.num_classes is None:  # names alone are those of `targets`
        return {}
    names = source.class_names or [str(label) for label in range(source.num_classes)]
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    return {name: int(number) for name, number in zip(names, counts)}


def reasons(source: Source, missing: np.ndarray) -> list[tuple[str, str]]:
    """(name, reason) of each image of the split that is `missing`, bool [places]: these few are
    read again, one by one."""
    if not missing.any():
        return []
    with tf.device("CPU"):
        missing = tf.constant(missing)
    found, images = [], _decoded(source)
    for record in source.records().filter(
        lambda record: tf.gather(missing, source.index_of(record))
    ):
        _, reason = images.read(record)
        found.append(
            (
                source.name_in_graph(record).numpy().decode(),
                reason or "readable only on the second attempt",
            )
        )
    return found


def _duplicates(source: Source, content: np.ndarray, index: np.ndarray) -> list[list[str]]:
    """Groups of two or more names, in split order, whose images have equal content."""
    if not len(index):
        return []
    _, group, sizes = np.unique(content[index], axis=0, return_inverse=True, return_counts=True)
    groups = collections.defaultdict(list)
    group = group.reshape(-1)  # NumPy 2.0 gave it the shape of its input
    for position in np.flatnonzero(sizes[group] > 1):
        groups[group[position]].append(source.name(int(index[position])))
    return list(groups.values())


def unlabelled(source: Source) -> str | None:
    """Why labels cannot be had of a source: one line; None if the first image that can be read has
    one."""
    images = Gaps(source, lambda record: source.fetch(record)["label"])
    labels = (images.read(record)[0] for record in source.first_records(source.num_examples))
    if next((label for label in labels if label is not None), 0) >= 0:
        return None
    return (
        f"--dataset={source.spec} ({source.split}) has no labels, and accuracy needs them: "
        f"{source.unlabelled_because}, "
        "or evaluate on another data set"
    )

"""Some of a source's images, some of its labels, or its images in another order, as a source."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.sources.base import Rows, Source, kept, numbered, sift
from tfssl.data.sources.identity import Parts
from tfssl.errors import UserError


class Derived(Source):
    """A source that is made of another: the same images, but for what a subclass changes.

    Args:
      source: a `Source`.
      num_examples: how many of its images.
    """

    def __init__(self, source: Source, num_examples: int) -> None:
        super().__init__(
            source.spec, source.split, num_examples, source.num_classes, source.class_names
        )
        self._source, self.provides, self.places = source, source.provides, source.places
        self.pixels, self.foreign = source.pixels, source.foreign
        self.in_python = source.in_python
        self.ignored, self.left_out, self.remarks = source.ignored, source.left_out, source.remarks
        self.random_access, self.splits_overlap = source.random_access, source.splits_overlap

    def records(
        self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None
    ) -> tf.data.Dataset:
        return self._source.records(seed, start, rows)

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        return self._source.shardable_epoch(seed, epoch)

    def index_of(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._source.index_of(record)

    def at(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._source.at(index)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._source.fetch(record)

    def read_again(
        self, record: dict[str, tf.Tensor], stand_in: bool = False
    ) -> dict[str, tf.Tensor]:
        return self._source.read_again(record, stand_in)

    def targets(self) -> np.ndarray | None:
        return self._source.targets()

    def sequences(self) -> np.ndarray:
        return self._source.sequences()

    def indices(self, record: dict[str, tf.Tensor]) -> list[int]:
        return self._source.indices(record)

    def culprit(self, record: dict[str, tf.Tensor], error: Any) -> tuple[dict[str, tf.Tensor], Any]:
        return self._source.culprit(record, error)

    def parts(self) -> Parts:
        return self._source.parts()

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._source.name_in_graph(record)

    def name(self, index: int) -> str:
        return self._source.name(index)


class Subset(Derived):
    """Those images of a source whose places in the split are `index`; in split order, or in the
    order of the source's epochs.

    Args:
      source: a `Source`.
      index: int [n], without repetition.
      renumber: "index" counts the subset's images from 0; otherwise it stays the place in the
        source's split.
    """

    def __init__(self, source: Source, index: np.ndarray, renumber: bool = False) -> None:
        super().__init__(source, len(index))
        self.places = len(index) if renumber else source.places
        self._index, self._renumbered = np.sort(index), renumber
        place = np.full(source.places, -1, np.int32)
        place[self._index] = np.arange(len(index))
        with tf.device("CPU"):
            self._place = tf.constant(place)

    @property
    def positions(self) -> np.ndarray:
        """int [n], the places of its images in the split of the source, rising."""
        return self._index

    def records(
        self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None
    ) -> tf.data.Dataset:
        return Source.records(self, seed, start, rows)

    def _epoch(
        self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None
    ) -> tf.data.Dataset:
        count = self.num_examples
        numbers = tf.data.Dataset.range(epoch * count, (epoch + 1) * count)
        mine = self._chosen(self._source.shardable_epoch(seed, epoch))
        records = tf.data.Dataset.zip((numbers, mine)).skip(skip)
        if rows is not None:
            records = sift(records, lambda number, _: kept(number, rows))
        return records.map(lambda number, record: {**record, "number": number})

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        first = epoch * self.num_examples
        records = self._chosen(self._source.shardable_epoch(seed, epoch))
        return records.map(lambda record: {**record, "number": first + self._place_of(record)})

    def _chosen(self, records: tf.data.Dataset) -> tf.data.Dataset:
        return sift(records, lambda record: self._place_of(record) >= 0)

    def _place_of(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        """The number of a record's image in the subset, -1 of one that is not in it."""
        return tf.cast(tf.gather(self._place, self._source.index_of(record)), tf.int64)

    def index_of(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._place_of(record) if self._renumbered else self._source.index_of(record)

    def at(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._source.at(
            tf.gather(tf.constant(self._index, tf.int64), index) if self._renumbered else index
        )

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**self._source.fetch(record), "index": self.index_of(record)}

    def sequences(self) -> np.ndarray:
        if self._renumbered:
            raise UserError(
                f"{self.spec}: --train_subset chooses single images, and the task takes several "
                "frames of a sequence: take a part of the split, such as train[:50%], which keeps "
                "sequences whole"
            )
        return super().sequences()

    def targets(self) -> np.ndarray | None:
        targets = self._source.targets()
        return targets[self._index] if self._renumbered and targets is not None else targets

    def parts(self) -> Parts:
        parts = self._source.parts()
        chosen = hashlib.sha256(self._index.astype(np.int64).tobytes()).hexdigest()
        return dataclasses.replace(parts, reading={"subset": chosen, "of": parts.reading})

    def name(self, index: int) -> str:
        return self._source.name(int(self._index[index]) if self._renumbered else index)


class LabelledAt(Derived):
    """A source whose images have no labels but for those at `index`, int [n], places in its
    split."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        super().__init__(source, source.num_examples)
        keeps = np.zeros(source.places, bool)
        keeps[index] = True
        with tf.device("CPU"):
            self._keeps = tf.constant(keeps)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = self._source.fetch(record)
        keeps = tf.gather(self._keeps, example["index"])
        return {**example, "label": tf.where(keeps, example["label"], tf.constant(-1, tf.int64))}

    def targets(self) -> np.ndarray | None:
        return None

    def parts(self) -> Parts:
        parts = self._source.parts()
        labelled = hashlib.sha256(self._keeps.numpy().tobytes()).hexdigest()
        return dataclasses.replace(parts, reading={"labelled": labelled, "of": parts.reading})


class Ordered(Derived):
    """A source whose images a run sees in an order of the task's own, in which they may be repeated
    or left out: see `Pretext.order`.

    Examples are numbered as without it, and so epochs, rates and logs mean what they did. One pass
    in split order is what it was.

    Args:
      source: a `Source` of random access.
      block: graph function: int64 [2], (run seed, k) -> int64 [size], the indices of the images
        that are the examples k * size to (k + 1) * size - 1. It is a pure function; what it reads
        of variables it has from their values when the source is made.
      size: of a block; 0: the number of images.

    Raises:
      UserError: the source is read one record after the other.
    """

    def __init__(
        self, source: Source, block: Callable[[tf.Tensor], tf.Tensor], size: int = 0
    ) -> None:
        if not source.random_access:
            raise UserError(
                f"{source.spec}: the task orders the images itself, and records are read one after "
                "the other: take a kind of data set that "
                "can be read in any order, such as folder:PATH"
            )
        super().__init__(source, source.num_examples)
        self._block, self.block_size = block, size or source.num_examples
        self.unreadable = source.unreadable  # of which the run tells

    def records(
        self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None
    ) -> tf.data.Dataset:
        return (
            super().records(None, start, rows)
            if seed is None
            else Source.records(self, seed, start, rows)
        )

    def _epoch(
        self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None
    ) -> tf.data.Dataset:
        index = self._block(tf.stack([tf.cast(seed, tf.int64), epoch]))
        return numbered(
            self._source.at(index), epoch * self.block_size, self.block_size, skip, rows
        )

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        raise UserError(
            "--data_service delivers images in an order of its own, and the task has its own too: "
            "leave it out"
        )


def evenly_spaced(source: Source, count: int, renumber: bool = False) -> Subset:
    """At most `count` images, spread evenly over a source; of records, which would all have to be
    read for that, the first."""
    count = min(count, source.num_examples)
    reach = source.num_examples if source.random_access else count
    return Subset(source, np.linspace(0, reach - 1, count).round().astype(int), renumber)


def nested(source: Source, count: int, seed: int = 0) -> Subset:
    """`count` images chosen at random, of which those of a smaller `count` are a part: the first of
    one order of all, by `seed`.

    Raises:
      UserError: there are fewer images.
    """
    if not 1 <= count <= source.num_examples:
        raise UserError(
            f"a subset of {count} images: {source.spec} {source.split} has {source.num_examples}"
        )
    if not source.random_access and 2 * count < source.num_examples:
        share = 100 * count / source.num_examples
        logging.warning(
            "%d of %d records: each epoch reads all of them; were the files written in a random "
            "order, a slice such as %s[:%.2g%%] would read its own files only",
            *(count, source.num_examples, source.split, share),
        )
    return Subset(
        source, np.random.default_rng(seed).permutation(source.num_examples)[:count], renumber=True
    )

"""Some of a source's images, or some of its labels, as a source."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.sources.base import Rows, Source, kept, sift
from tfssl.data.sources.identity import Parts
from tfssl.errors import UserError


class Subset(Source):
    """Those images of a source whose places in the split are `index`; in split order, or in the order of the source's epochs.

    Args:
      source: a `Source`.
      index: int [n], without repetition.
      renumber: "index" counts the subset's images from 0; otherwise it stays the place in the source's split.
    """

    def __init__(self, source: Source, index: np.ndarray, renumber: bool = False) -> None:
        super().__init__(source.spec, source.split, len(index), source.num_classes, source.class_names)
        self._source, self.annotations = source, source.annotations
        self.ignored, self.left_out, self.remarks = source.ignored, source.left_out, source.remarks
        self.random_access, self.splits_overlap = source.random_access, source.splits_overlap
        self.places = len(index) if renumber else source.places
        self._index, self._renumbered = np.sort(index), renumber
        place = np.full(source.places, -1, np.int32)
        place[self._index] = np.arange(len(index))
        with tf.device("CPU"):
            self._place = tf.constant(place)

    def _epoch(self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None) -> tf.data.Dataset:
        count = self.num_examples
        numbers = tf.data.Dataset.range(epoch * count, (epoch + 1) * count)
        mine = self._chosen(self._source.epoch_to_share(seed, epoch))
        records = tf.data.Dataset.zip((numbers, mine)).skip(skip)
        if rows is not None:
            records = sift(records, lambda number, _: kept(number, rows))
        return records.map(lambda number, record: {**record, "number": number})

    def epoch_to_share(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        def numbered(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {
                **record,
                "number": epoch * self.num_examples + tf.cast(tf.gather(self._place, record["index"]), tf.int64),
            }

        return self._chosen(self._source.epoch_to_share(seed, epoch)).map(numbered)

    def _chosen(self, records: tf.data.Dataset) -> tf.data.Dataset:
        return sift(records, lambda record: tf.gather(self._place, record["index"]) >= 0)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        fetched = self._source.fetch(record)
        if self._renumbered:
            fetched["index"] = tf.cast(tf.gather(self._place, record["index"]), tf.int64)
        return fetched

    def read_again(self, record: dict[str, tf.Tensor], stand_in: bool = False) -> dict[str, tf.Tensor]:
        return self._source.read_again(record, stand_in)

    def targets(self) -> np.ndarray | None:
        targets = self._source.targets()
        return targets[self._index] if self._renumbered and targets is not None else targets

    def parts(self) -> Parts:
        parts = self._source.parts()
        chosen = hashlib.sha256(self._index.astype(np.int64).tobytes()).hexdigest()
        return dataclasses.replace(parts, reading={"subset": chosen, "of": parts.reading})

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._source.name_in_graph(record)

    def name(self, index: int) -> str:
        return self._source.name(int(self._index[index]) if self._renumbered else index)


class LabelledAt(Source):
    """A source whose images have no labels but for those at `index`, int [n], places in its split."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        super().__init__(source.spec, source.split, source.num_examples, source.num_classes, source.class_names)
        self._source, self.random_access, self.places = source, source.random_access, source.places
        self.ignored, self.left_out, self.remarks = source.ignored, source.left_out, source.remarks
        keeps = np.zeros(source.places, bool)
        keeps[index] = True
        with tf.device("CPU"):
            self._keeps = tf.constant(keeps)

    def records(self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None) -> tf.data.Dataset:
        return self._source.records(seed, start, rows)

    def epoch_to_share(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        return self._source.epoch_to_share(seed, epoch)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = self._source.fetch(record)
        keeps = tf.gather(self._keeps, example["index"])
        return {**example, "label": tf.where(keeps, example["label"], tf.constant(-1, tf.int64))}

    def read_again(self, record: dict[str, tf.Tensor], stand_in: bool = False) -> dict[str, tf.Tensor]:
        return self._source.read_again(record, stand_in)

    def parts(self) -> Parts:
        parts = self._source.parts()
        labelled = hashlib.sha256(self._keeps.numpy().tobytes()).hexdigest()
        return dataclasses.replace(parts, reading={"labelled": labelled, "of": parts.reading})

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._source.name_in_graph(record)

    def name(self, index: int) -> str:
        return self._source.name(index)


def spread(source: Source, count: int, renumber: bool = False) -> Subset:
    """At most `count` images, spread evenly over a source; of records, which would all have to be read for that, the first."""
    count = min(count, source.num_examples)
    reach = source.num_examples if source.random_access else count
    return Subset(source, np.linspace(0, reach - 1, count).round().astype(int), renumber)


def nested(source: Source, count: int, seed: int = 0) -> Subset:
    """`count` images chosen at random, of which those of a smaller `count` are a part: the first of one order of all, by `seed`.

    Raises:
      UserError: there are fewer images.
    """
    if not 1 <= count <= source.num_examples:
        raise UserError(f"a subset of {count} images: {source.spec} {source.split} has {source.num_examples}")
    if not source.random_access and 2 * count < source.num_examples:
        share = 100 * count / source.num_examples
        logging.warning(
            "%d of %d records: each epoch reads all of them; were the files written in a random order, "
            "a slice such as %s[:%.2g%%] would read its own files only", count, source.num_examples, source.split, share,
        )  # fmt: skip
    return Subset(source, np.random.default_rng(seed).permutation(source.num_examples)[:count], renumber=True)

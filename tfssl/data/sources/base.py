"""Sources of images: what they promise, and the two ways to order them.

Example number n is the (n mod N)-th of data epoch n // N. Which image that is depends on (seed, n)
alone, so that a run can begin at any step, and several input pipelines can share a batch, without
state to save.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.listing import checks
from tfssl.data.ops.pixels import Pixels
from tfssl.data.sources.identity import Parts, relative
from tfssl.data.sources.splits import Range
from tfssl.errors import UserError, reason_of

Rows = tuple[
    int, int, int
]  # (B, low, high): of each B successive examples those from `low` on, below `high`

# What sources may provide beside an image, its label and index: {name: {key of an example: its
# form}}. A side of None is one of the image, or a number of objects.
ANNOTATIONS: Mapping[str, Mapping[str, tf.TensorSpec]] = {
    "mask": {"mask": tf.TensorSpec([None, None], tf.uint8)},  # a class for each pixel
    # of objects: (ymin, xmin, ymax, xmax) as fractions of the image's sides, and their classes
    "boxes": {
        "boxes": tf.TensorSpec([None, 4], tf.float32),
        "classes": tf.TensorSpec([None], tf.int64),
    },
    "normals": {
        "normals": tf.TensorSpec([None, None, 3], tf.float32)
    },  # of length 1, or 0 where not known
    "frames": {},  # no more of an image itself: see `Source.sequences`
}


class Source:
    """One split of a data set.

    Attributes:
      spec, split: what was asked for.
      num_examples: N.
      num_classes, class_names: int and list of str; None where there are no labels, or no names.
        With `targets` there are names alone.
      random_access: whether one record can be found without reading those before it.
      splits_overlap: whether splits of different names may have images in common (VOC: trainval is
        train and val).
      ranges: list of (name of a split, start, stop): what `split` is a part of, in whole splits'
        examples; None where that is not known.
      ignored: dict of file name ending -> files that were passed over.
      unread: names of images in formats that are not read.
      left_out: dict of reason -> what was left out of the whole data set for it: list of str.
      remarks: list of str, on how the data set was read.
      unlabelled_because: what to do where there are no labels, in words; see `checks.unlabelled`.
      provides: what examples have beside image, label and index: names in `ANNOTATIONS`, or keys of
        a source's own. That of the class is what its sources may provide, that of a source is what
        it does.
      form: of the class: how its specs are written, for messages: "folder:PATH".
      places: each image's index is below this; N, but for a part of a split.
      block_size: examples whose order is decided at once; N, but where a task has an order of its
        own.
      pixels: how the images' values are read, a `Pixels` (see `open_source`).
      in_python: whether Python reads its records, which a tf.data service cannot.
      foreign: whether some images are in a format that TensorFlow does not decode (`formats`).
      unreadable: dict of name -> reason: the images that training has met and cannot decode, in
        that order.
    """

    random_access = splits_overlap = foreign = in_python = False
    pixels = Pixels()
    provides: tuple[str, ...] = ()
    form = ""
    ranges: list[Range] | None = None
    unread: Sequence[str] = ()
    unlabelled_because = "sort the images into a folder per class"

    def __init__(
        self,
        spec: str,
        split: str,
        num_examples: int,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        self.spec, self.split, self.num_examples = spec, split, num_examples
        self.num_classes, self.class_names = num_classes, class_names
        self.ignored: dict[str, int] = {}
        self.left_out: dict[str, list[str]] = {}
        self.remarks: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.places = self.block_size = num_examples

    def __repr__(self) -> str:
        return (
            f"<{self.spec} {self.split}: {self.num_examples} images, {self.num_classes or 'no'} "
            "classes>"
        )

    def records(
        self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None
    ) -> tf.data.Dataset:
        """Undecoded records, in order.

        Args:
          seed: int: endless epochs, each in another order. None: one pass in split order.
          start: number of the first example (int or int64 tensor).
          rows: (B, low, high): only the numbers n with low <= n mod B < high, one input pipeline's
            rows of each global batch of B.

        Returns:
          A data set of dicts with at least "number", int64, the example's number n; `fetch` takes
          them.
        """
        start = tf.cast(start, tf.int64)
        first_epoch = start // self.block_size

        # has no branch on a tensor, and to look for one takes longer than tracing
        @tf.autograph.experimental.do_not_convert
        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            skip = tf.where(number == first_epoch, start % self.block_size, 0)
            return self._epoch(seed, number, skip, rows)

        return tf.data.Dataset.range(first_epoch, tf.int64.max if seed is not None else 1).flat_map(
            epoch
        )

    def _epoch(
        self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None
    ) -> tf.data.Dataset:
        """The records of one epoch (int64 tensor) but the first `skip`: what a kind of source
        adds."""
        raise NotImplementedError

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        """All records of one epoch (int64 tensor), cut so that several machines can take parts of
        it: see `tfssl.data.service`."""
        return self._epoch(seed, epoch, 0, None)

    def read(self, image: tf.Tensor) -> tf.Tensor:
        """An image as `fetch` returns it, of one that is encoded (a scalar string), or an array."""
        return self.pixels.read(image, self.foreign)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The example of a record; graph code, which a pipeline calls in parallel.

        Returns:
          {"image": what `read` returns: string (encoded), uint8 [H, W, 3], or, where `pixels` says
          so, float32 [H, W, C] in [0, 1]; "label": int64 (-1: none), "index": int64,
          0..N-1 in split order} and what else the source has. An unreadable file raises a
          tf.errors.OpError.
        """
        raise NotImplementedError

    def index_of(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        """The "index" that the example of a record has: int64; graph code."""
        return record["index"]

    def at(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """The records of images by their indices, int64 [n], where `random_access`: a dict of
        tensors [n], without "number"; graph code."""
        raise NotImplementedError

    def read_again(
        self, record: dict[str, tf.Tensor], stand_in: bool = False
    ) -> dict[str, tf.Tensor]:
        """The record (scalar tensors) as it can be read now. Where its file is damaged for good,
        and that is to be borne (see `open_source`), one that `stand_in`s for it, which has another
        "index"; a tf.errors.DataLossError if none is to, or there is none.

        Raises:
          UserError: the file is damaged.
          tf.errors.OpError: it cannot be read.
        """
        return record

    def targets(self) -> np.ndarray | None:
        """int8 [N, C] in split order, where an image may show several classes: 1 shown, -1 not, 0
        hard to tell ("difficult"); labels are -1 then. None where an image has one label, or
        none."""
        return None

    def sequences(self) -> np.ndarray:
        """int64 [N], of a source that provides "frames" and has random access: the number of the
        sequence that each image belongs to; in split order those of one are in the order of time.
        """
        raise NotImplementedError

    def indices(self, record: dict[str, tf.Tensor]) -> list[int]:
        """The images that the record's example is made of, by their indices; of eager tensors."""
        return [int(record["index"])]

    def culprit(self, record: dict[str, tf.Tensor], error: Any) -> tuple[dict[str, tf.Tensor], Any]:
        """Which of a record's images cannot be read, where its example cannot be made for an
        `error`: (the record of that image, why it cannot)."""
        return record, error

    def parts(self) -> Parts:
        """What the examples are made of, by which `identity.of` knows them again: `identity.Parts`.
        A source of one's own that does not say so is known by its names alone, and its features are
        not cached."""
        return Parts(reading={"names": self.names()})

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        """What a person would call the record: scalar string; graph code."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a person would call the image at `index` of the split: str."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Those of all images, in split order: list of str."""
        return [self.name(i) for i in range(self.num_examples)]

    def notes(self) -> list[str]:
        """What somebody who reads these images should know, in a few lines: list of str."""
        left_out = [
            f"left out: {reason}: {first(names)}" for reason, names in self.left_out.items()
        ]
        return [f"{self.spec}: {line}" for line in [*left_out, *self.remarks]]

    def first_records(self, limit: int) -> Iterable[dict[str, tf.Tensor]]:
        """The first records of the split, in its order, as eager tensors."""
        return self.records().take(limit)

    def check_readable(self, limit: int = 256) -> None:
        """Raises UserError if none of the first `limit` images can be decoded, naming the first and
        the reason."""
        checks.check_readable(self, limit)

    def scan(self, progress: Callable[[int, int], object] | None = None) -> checks.Scan:
        """Reads and decodes every image once; see `tfssl.data.listing.checks.scan`."""
        return checks.scan(self, progress)


def first(names: Sequence[str], shown: int = 3) -> str:
    """The first of several names, and how many there are beside them."""
    return ", ".join(names[:shown]) + (
        f" and {len(names) - shown} more" if len(names) > shown else ""
    )


def kept(number: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Whether example `number` belongs to the rows (B, low, high) of its global batch."""
    batch_size, low, high = rows
    return tf.logical_and(number % batch_size >= low, number % batch_size < high)


def numbered(
    records: dict[str, tf.Tensor],
    first: tf.Tensor,
    count: int,
    skip: int | tf.Tensor,
    rows: Rows | None,
) -> tf.data.Dataset:
    """The records [count, ...] of a block but the first `skip`, numbered from `first` on; of those
    the `rows` of each global batch."""
    records = {
        **{key: value[skip:] for key, value in records.items()},
        "number": first + tf.range(skip, count, dtype=tf.int64),
    }
    if rows is not None:  # for the whole block at once: one row in hundreds may be ours
        mine = kept(records["number"], rows)
        records = {key: tf.boolean_mask(value, mine) for key, value in records.items()}
    return tf.data.Dataset.from_tensor_slices(records)


def sift(records: tf.data.Dataset, keep: Callable[..., tf.Tensor]) -> tf.data.Dataset:
    """The records that `keep`, a function of a batch of them to bool [n], chooses.

    256 at a time: `filter`, which asks for each, takes 2.5 times as long as reading does.
    """

    def choose(*batch: Any) -> Any:
        mine = keep(*batch)
        return tf.nest.map_structure(
            lambda x: tf.boolean_mask(x, mine), batch if len(batch) > 1 else batch[0]
        )

    return records.batch(256).map(choose).unbatch()


def _permutation(size: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """0 .. size-1 (int64) in an order that depends on (seed, epoch) alone.

    Not `index_shuffle`, whose four cipher rounds (up to TensorFlow 2.21) leave the orders of
    neighboring epochs correlated (r = 0.3 for 20,000 images). This takes 25 ms for ImageNet, and
    less memory than the names of its files.
    """
    seed = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.stateless_shuffle(tf.range(size, dtype=tf.int64), seed)


class IndexedSource(Source):
    """Images that can be read in any order: a full shuffle, and a resume that costs nothing."""

    random_access = True

    def first_records(self, limit: int) -> Iterable[dict[str, tf.Tensor]]:
        for place in range(
            min(limit, self.num_examples)
        ):  # no pipeline, which would take longer than the records
            yield dict.fromkeys(("number", "index"), tf.constant(place, tf.int64))

    def _epoch(
        self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None
    ) -> tf.data.Dataset:
        count = self.num_examples
        order = (
            tf.range(count, dtype=tf.int64) if seed is None else _permutation(count, seed, epoch)
        )
        return numbered(self.at(order), epoch * count, count, skip, rows)

    def at(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"index": index}


class StreamSource(Source):
    """Records in TFRecord files, shuffled by file order, by reading several files in turn, and by a
    buffer.

    All of that depends on (seed, epoch) alone. The files of an epoch come in groups of 128, each
    shuffled by itself, so that to start within an epoch means to read, undecoded, the records
    before in one group.

    Args:
      shards: list of (file name, skip, take), in split order.
      shuffle_buffer: records held to shuffle.
      skip_damaged: see `open_source`.

    A file delivers as many records as were counted in it: those that cannot be read are empty, so
    that all others have their numbers.
    """

    _GROUP, _FILES_AT_ONCE, _BLOCK, _READ_BYTES = 128, 16, 16, 4 << 20
    reading: dict[str, str | int | None] = {}  # keys and offsets by which records are parsed

    def __init__(
        self,
        spec: str,
        split: str,
        shards: Sequence[tuple[str, int, int]],
        shuffle_buffer: int,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        skip_damaged: bool = False,
    ) -> None:
        takes = [take for _, _, take in shards]
        super().__init__(spec, split, sum(takes), num_classes, class_names)
        self.shuffle_buffer = max(1, min(shuffle_buffer, self.num_examples))
        self._shards, self._skip_damaged = shards, skip_damaged
        self._readable = functools.lru_cache(64)(_readable)
        self._begins = [0, *itertools.accumulate(takes)][:-1]  # index of each shard's first record
        with tf.device("CPU"):
            self._files = tf.constant([name for name, _, _ in shards])
            self._begin = tf.constant(self._begins, tf.int64)
            self._skip = tf.constant([skip for _, skip, _ in shards], tf.int64)
            self._take = tf.constant(takes, tf.int64)

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        # Who reads a shard cannot tell what stands before it: an image's place in the split takes
        # the place of its place in the order.
        first = epoch * self.num_examples
        records = self._ordered(self._order(seed, epoch), seed, epoch)
        return records.map(lambda index, read: {"number": first + index, **_plain((index, read))})

    def _order(self, seed: int | None, epoch: tf.Tensor) -> tf.Tensor:
        """The numbers of the files: int64 [F]."""
        count = len(self._shards)
        return tf.range(count, dtype=tf.int64) if seed is None else _permutation(count, seed, epoch)

    def _ordered(
        self, files: tf.Tensor, seed: int | None, epoch: tf.Tensor, group: int | tf.Tensor = 0
    ) -> tf.data.Dataset:
        shards = tf.data.Dataset.from_tensor_slices(files)
        if seed is None:
            return shards.flat_map(self._read)
        records = shards.interleave(
            self._read,
            self._FILES_AT_ONCE,
            self._BLOCK,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        # `shuffle` mixes the global seed into its own. This function is a graph, and this sets that
        # graph's seed only: the order does not depend on `tf.random.set_seed`.
        tf.compat.v1.set_random_seed(1)
        buffer_seed = tf.stack(
            [tf.cast(seed, tf.int64), -1 - epoch]
        )  # not the seed of the files' order
        buffer_seed = tf.random.stateless_uniform([group + 1], buffer_seed, 1, 2**31 - 1, tf.int64)[
            group
        ]
        return records.shuffle(self.shuffle_buffer, buffer_seed, reshuffle_each_iteration=False)

    def _epoch(
        self, seed: int | None, epoch: tf.Tensor, skip: int | tf.Tensor, rows: Rows | None
    ) -> tf.data.Dataset:
        files = self._order(seed, epoch)
        groups = -(-len(self._shards) // self._GROUP)
        sizes = tf.math.segment_sum(
            tf.gather(self._take, files), tf.range(len(self._shards)) // self._GROUP
        )
        begins = tf.cumsum(sizes, exclusive=True)
        first = (
            tf.searchsorted(begins, [skip], side="right", out_type=tf.int64)[0] - 1
        )  # the group of the first record

        def group(number: tf.Tensor) -> tf.data.Dataset:
            return self._ordered(files[number * self._GROUP :][: self._GROUP], seed, epoch, number)

        records = tf.data.Dataset.range(first, groups).flat_map(group)
        begin = epoch * self.num_examples + begins[first]
        numbers = tf.data.Dataset.range(begin, (epoch + 1) * self.num_examples)
        records = tf.data.Dataset.zip((numbers, records)).skip(skip - begins[first])
        if rows is not None:
            records = sift(records, lambda number, _: kept(number, rows))
        return records.map(lambda number, record: {"number": number, **_plain(record)})

    def _read(self, shard: tf.Tensor) -> tf.data.Dataset:
        # Three gathers, not one unstacked: with an op of several outputs, tf.data's rewriting of
        # take and skip ends in a segmentation fault (up to TensorFlow 2.21).
        records = tf.data.TFRecordDataset(
            tf.gather(self._files, shard), buffer_size=self._READ_BYTES
        )
        records = records.skip(tf.gather(self._skip, shard)).take(tf.gather(self._take, shard))
        # An error is an attempt, too, and there are as many of them as records: a file that cannot
        # be opened is not tried for ever.
        attempts = tf.data.Dataset.range(tf.gather(self._take, shard))
        read = tf.data.Dataset.zip((attempts, records)).ignore_errors()
        empty = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), b"")).repeat()
        index = tf.data.Dataset.range(tf.gather(self._begin, shard), tf.int64.max)
        return tf.data.Dataset.zip(
            (index, read.concatenate(empty).take(tf.gather(self._take, shard)))
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Where the image at `index` of the split lies: (number of the shard, number of the record
        in its file)."""
        shard = bisect.bisect_right(self._begins, index) - 1
        return shard, index - self._begins[shard] + self._shards[shard][1]

    def read_again(
        self, record: dict[str, tf.Tensor], stand_in: bool = False
    ) -> dict[str, tf.Tensor]:
        if len(record["serialized"].numpy()):
            return record
        index = int(record["index"])
        shard, place = self._place(index)
        file, skip, take = self._shards[shard]
        ends, reason = self._readable(file, skip + take)
        count = len(ends) - 1
        if place >= count:
            if not self._skip_damaged:
                raise UserError(
                    f"{file!r} is damaged: {reason} after {count} records (at byte {ends[-1]}), "
                    f"where {skip + take} or more were "
                    "counted; put the whole file back, or take --skip_damaged_shards, by which its "
                    "other records stand in for those "
                    "that are lost: the same command then goes on from the last checkpoint"
                )
            if not stand_in or count <= skip:
                raise tf.errors.DataLossError(None, None, f"{reason} at byte {ends[-1]} of {file}")
            place = skip + (place - skip) % (count - skip)
        with tf.io.gfile.GFile(file, "rb") as f:
            f.seek(ends[place] + 12)  # behind the length and its checksum
            serialized = f.read(ends[place + 1] - ends[place] - 16)
        index = tf.constant(self._begins[shard] + place - skip, tf.int64)
        return {**record, "index": index, "serialized": tf.constant(serialized)}

    def parts(self) -> Parts:
        files = [file for file, _, _ in self._shards]
        ranges = [
            [name, skip, take] for name, (_, skip, take) in zip(relative(files)[1], self._shards)
        ]
        return Parts(files, reading={"shards": ranges, **self.reading})

    def name(self, index: int) -> str:
        """Counts from 0 in its file: "record 17 of train-00003-of-01024"."""
        shard, place = self._place(index)
        return f"record {place} of {self._shards[shard][0]}"

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        shard = tf.searchsorted(self._begin, record["index"][None], side="right")[0] - 1
        position = record["index"] - tf.gather(self._begin, shard) + tf.gather(self._skip, shard)
        return tf.strings.join(
            ["record ", tf.strings.as_string(position), " of ", tf.gather(self._files, shard)]
        )


def _plain(record: tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """(index, (attempt, serialized)), as a file is read, to what `Source.fetch` takes."""
    index, (_, serialized) = record
    return {"index": index, "serialized": serialized}


def _readable(file: str, most: int) -> tuple[list[int], str]:
    """Of the first `most` records of a TFRecord file: the bytes at which they end, beginning with
    0, up to the first that is damaged, and what is wrong with that, or None.

    Raises:
      tf.errors.OpError: the file cannot be read.
    """
    ends = [0]
    try:
        for record in tf.data.TFRecordDataset(file, buffer_size=4 << 20).take(most):
            ends.append(
                ends[-1] + len(record.numpy()) + 16
            )  # length, payload, and the checksums of both
    except tf.errors.DataLossError as error:
        return ends, reason_of(error)
    return ends, "it ends"

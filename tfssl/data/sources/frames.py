"""`frames:PATH`: sequences of images, as videos and camera traps leave them, a folder for each.

    PATH/walk/0001.jpg  PATH/run/0001.jpg                    by sequence; all is the split `train`
    PATH/train/walk/0001.jpg  PATH/test/run/0001.jpg         by split and sequence
    PATH/train/cat/walk/0001.jpg                             by split, class and sequence

A sequence is a folder that holds images, its frames, and no further such folders; a lone folder
within it (PATH/walk/frames/0001.jpg) is a part of its name. Frames are in the natural order of
their names: frame_2 before frame_10. Splits and classes are found as `folder:` finds those of
images, and a slice counts sequences, in the order of a hash of their paths: it never cuts one in
two. Each frame is an image of the split, in which those of a sequence are spread evenly, in the
order of time: batches of an evaluation, like those of training, are of many sequences. `Clips` puts
several frames of one into an example, for tasks that ask for them.

What `--val_fraction` holds out of labeled frames are whole sequences too; a random subset of the
images (`--train_labels`, `--train_subset`) is of single frames.

Videos become such folders by `ffmpeg -i walk.mp4 -q:v 2 PATH/walk/%06d.jpg` (`-vf fps=5`: five
frames a second).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.listing import layout, roles
from tfssl.data.ops import image as image_ops
from tfssl.data.sources.base import Rows, Source, first
from tfssl.data.sources.folder import FolderSource, order_key
from tfssl.data.sources.subset import Derived
from tfssl.errors import UserError

# (position in its sequence of an example's image, length of that, seed int64 [2]) -> int64 [T]
Clip = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
_ITSELF = "."  # the name of a sequence within a folder that is the sequence, and a split


class FrameSource(FolderSource):
    """Image files, a folder for each sequence; labels are those of their sequences."""

    form = "frames:PATH"
    provides = ("frames",)
    unit = "sequences"
    unlabelled_because = "sort the sequences into a folder per class"

    def __init__(
        self, spec: str, path: str, split: str = "train", data_dir: str | None = None
    ) -> None:
        self._frames: dict[str, list[str]] = {}  # of each sequence, by the layout's name of it
        self._beside: list[str] = []
        super().__init__(spec, path, split, data_dir)
        self._frames.clear()  # those of all splits
        lengths = np.bincount(self._numbers)
        least, most = lengths.min(), lengths.max()
        between = f"{least:,} to {most:,}, {np.median(lengths):g} in the median"
        length = between if least < most else f"{least:,}"
        self.remarks.append(f"sequences: {len(lengths):,}, of length {length}")
        alone = [name for name, length in zip(self._chosen, lengths) if length == 1]
        if alone:
            self.remarks.append(f"sequences of one frame: {first(alone)}")
        if self._beside:
            self.left_out["images beside the folders of sequences"] = self._beside

    def sequences(self) -> np.ndarray:
        return self._numbers

    def _arrange(self, images: list[str]) -> layout.Layout:
        folders: dict[str, list[str]] = {}
        for name in images:
            folder, _, file = name.rpartition("/")
            folders.setdefault(folder, []).append(file)
        above = {folder[:end] for folder in folders for end in _ends(folder)}
        for folder in sorted(above & set(folders)):
            self._beside += [f"{folder}/{file}" if folder else file for file in folders.pop(folder)]
        names = _names(list(folders))
        found = layout.arrange(list(names))
        if len(found.splits) == 1 and not any("/" in name for name in names):
            # the folder of a split may be a sequence: PATH/train/0001.jpg, PATH/test/0001.jpg
            other = layout.arrange([f"{name}/{_ITSELF}" for name in names])
            if len({roles.read(split)[0] for split in other.splits}) > 1:
                found, names = other, {f"{name}/{_ITSELF}": f for name, f in names.items()}
        for name, folder in names.items():
            start = f"{folder}/" if folder else ""
            self._frames[name] = [start + file for file in sorted(folders[folder], key=natural)]
        return found

    def _images(self, units: Sequence[str]) -> Iterable[tuple[str, int]]:
        self._chosen = units
        lengths = [len(self._frames[unit]) for unit in units]
        # the fraction of its sequence at which each frame stands, by an offset of the sequence
        offsets = [int.from_bytes(order_key(unit)[:4], "big") / 2**32 for unit in units]
        when = [(np.arange(n) + offset) / n for n, offset in zip(lengths, offsets)]
        order = np.argsort(np.concatenate(when), kind="stable")
        numbers = np.repeat(np.arange(len(units), dtype=np.int64), lengths)[order]
        self._numbers = numbers
        frames = [frame for unit in units for frame in self._frames[unit]]
        return zip([frames[i] for i in order], numbers.tolist())


def _ends(folder: str) -> list[int]:
    """Where the names of the folders above a folder end."""
    return [0, *(match.start() for match in re.finditer("/", folder))] if folder else []


def _names(folders: Sequence[str]) -> dict[str, str]:
    """{name: folder} of sequences: without a folder that is alone in the one above it, in all of
    them."""
    names = {folder or _ITSELF: folder for folder in folders}
    while all("/" in name for name in names):
        shorter = {name.rpartition("/")[0]: folder for name, folder in names.items()}
        if len(shorter) < len(names):
            break
        names = shorter
    return names


def natural(name: str) -> tuple[list[Any], str]:
    """A key that sorts names by the numbers in them: frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


class Clips(Derived):
    """A source whose examples have several frames of a sequence.

    Beside what the source's have, with "image" the first of the frames: "frames", a tuple of T
    images, each as "image" is; "positions", int64 [T], where they stand in their sequence, from 0
    on; and "sequence", int32, its number. Label and index are those of the example's own image.

    Args:
      source: of random access; it provides "frames".
      clip: graph code: which frames an example takes, by the position of its image in its sequence,
        the sequence's length, and a seed, int64 [2]: (run seed, example number) in training, (0,
        position in the split) else. Positions int64 [T], T the same for all; beyond the ends of the
        sequence they stand for its first and its last frame.

    Raises:
      UserError: records are read one after the other.
    """

    def __init__(self, source: Source, clip: Clip) -> None:
        if not source.random_access:
            raise UserError(
                f"{source.spec}: the task takes several frames of a sequence, and records are read "
                "one after the other: take frames:PATH"
            )
        super().__init__(source, source.num_examples)
        self.block_size, self.unreadable, self._clip = source.block_size, source.unreadable, clip
        _, numbers, lengths = np.unique(source.sequences(), return_inverse=True, return_counts=True)
        begins = np.cumsum(lengths) - lengths
        order = np.argsort(numbers, kind="stable")
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order)) - begins[numbers[order]]
        with tf.device("CPU"):
            self._number = tf.constant(numbers, tf.int32)  # of each image: of its sequence, and
            self._position = tf.constant(positions, tf.int64)  # where it stands in it
            self._begin = tf.constant(begins, tf.int64)  # of each sequence, among
            self._images = tf.constant(order, tf.int64)  # the images, sequence by sequence
            self._length = tf.constant(lengths, tf.int64)

    def records(
        self, seed: int | None = None, start: int | tf.Tensor = 0, rows: Rows | None = None
    ) -> tf.data.Dataset:
        return self._with_frames(super().records(seed, start, rows), seed)

    def shardable_epoch(self, seed: int | None, epoch: tf.Tensor) -> tf.data.Dataset:
        return self._with_frames(super().shardable_epoch(seed, epoch), seed)

    def _with_frames(self, records: tf.data.Dataset, seed: int | None) -> tf.data.Dataset:
        """Records with "frames", int64 [T]: their indices."""

        @tf.autograph.experimental.do_not_convert
        def choose(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            index = self.index_of(record)
            number = tf.gather(self._number, index)
            length = tf.gather(self._length, number)
            own = tf.stack([tf.constant(seed or 0, tf.int64), record["number"]])
            positions = self._clip(tf.gather(self._position, index), length, own)
            positions = tf.clip_by_value(positions, 0, length - 1)
            frames = tf.gather(self._images, tf.gather(self._begin, number) + positions)
            return {**record, "frames": frames}

        return records.map(choose)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        frames = record["frames"]
        examples = [self._source.fetch(self._at(frames[i], record)) for i in range(frames.shape[0])]
        return {
            **examples[0],
            "index": self.index_of(record),
            "frames": tuple(example["image"] for example in examples),
            "positions": tf.gather(self._position, frames),
            "sequence": tf.gather(self._number, self.index_of(record)),
        }

    def _at(self, index: tf.Tensor, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The record of the image at an index, numbered as a record is."""
        one = {key: value[0] for key, value in self._source.at(index[None]).items()}
        return {**one, "number": record["number"]}

    def at(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        raise NotImplementedError  # which frames an example has depends on its number

    def indices(self, record: dict[str, tf.Tensor]) -> list[int]:
        return [int(record["index"]), *map(int, record["frames"])]

    def culprit(self, record: dict[str, tf.Tensor], error: Any) -> tuple[dict[str, tf.Tensor], Any]:
        for index in record["frames"]:
            one = self._at(index, record)
            try:
                image_ops.decode(self._source.fetch(one)["image"])
            except tf.errors.OpError as own:
                return one, own
        return record, error

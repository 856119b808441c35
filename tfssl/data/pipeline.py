"""From a source to batches: parallel decoding in a fixed order, bad images replaced in place,
static shapes.

Row r of global batch s is example number n = s * batch_size + r, and it is a pure function of
(seed, n). So a pipeline can begin at any step, and several can share a batch, without any state to
save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfssl.data.gaps import Gaps
from tfssl.data.ops import image
from tfssl.data.segments import SEGMENT, Segment, plain, readable, segment_of, segments
from tfssl.data.service import examples as service_examples
from tfssl.data.sources.base import Source
from tfssl.errors import UserError

# Tensors, and nested structures of them; a source's has "image", "label", "index" and what it
# provides.
Example = dict[str, Any]
MakeExample = Callable[
    [Example, Any], Any
]  # (a source's example, seed) -> what the batch has of it


def training_batches(
    source: Source,
    example: MakeExample,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    rows: tuple[int, int] | None = None,
    chunk: int | None = None,
    endless: bool = False,
    service: tuple[str, str | None] | None = None,
) -> tf.data.Dataset:
    """The batches of a training run, from step `start_step` on.

    Args:
      source: a `tfssl.data.Source`.
      example: function (example, seed) -> example, of one image: from what `Source.fetch` returns,
        whose "image" is encoded (a string) or uint8 [H, W, 3], to a dict of tensors of static
        shapes, or nested structures of them; `seed` is int64 [2].
      batch_size: images of one global batch, B.
      seed: seed of the run: of the order and of each example's augmentation.
      start_step: the first step.
      steps: how many steps; None for an endless data set.
      rows: (low, high), the rows of each global batch that this input pipeline delivers; all by
        default.
      chunk: images per element, a divisor of the number of rows (one replica's share); all rows by
        default.
      endless: do not stop after `steps`: several workers' strategies keep static shapes only where
        they know that data do not end.
      service: (address, job) of a tf.data service that makes the examples (see `data.service`), in
        an order of its own. The run then begins with the data epoch in which `start_step` lies.

    Returns:
      A data set of what `example` returns [chunk, ...], with {"label" int64, "index" int64} of the
      source where it has none of its own, and "number" int64 (global example number), "seed" int64
      (of the run), "weight" float32 (1), "replaced" bool (an unreadable image stood here), each of
      shape [chunk].
    """
    low, high = rows or (0, batch_size)
    chunk = chunk or high - low

    load = _loader(source, example, seed)

    @plain
    def numbered(
        position: tf.Tensor, replaced: tf.Tensor, rows: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        return {
            **rows,
            "replaced": replaced,
            "number": (start_step + position // (high - low)) * batch_size
            + low
            + position % (high - low),
            "seed": tf.fill(tf.shape(position), tf.cast(seed, tf.int64)),
            "weight": tf.ones_like(position, tf.float32),
        }

    @plain
    def fill(
        last: tf.Tensor,
        loaded: tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor, tf.Tensor, dict[str, tf.Tensor]],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Each position without an image gets that of the next one that has any: those up to `last`
        have been filled before."""
        segment = Segment(gaps, *loaded)

        def filled_up() -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
            position, rows, others = segment.closed(last)
            filled = tf.range(last + 1, tf.concat([last[None], position], 0)[-1] + 1)
            by = tf.searchsorted(position, filled)
            replaced = tf.gather(others, by) | (tf.gather(position, by) != filled)
            return filled, replaced, tf.nest.map_structure(lambda x: tf.gather(x, by), rows)

        def whole() -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
            return segment.positions, tf.zeros_like(segment.positions, tf.bool), segment.rows

        batch = tf.cond(segment.is_whole & (last + 1 == segment.first), whole, filled_up)
        return tf.concat([last[None], batch[0]], 0)[-1], numbered(*batch)

    if service is None:
        records = source.records(
            seed=seed,
            start=start_step * batch_size,
            rows=None if rows is None else (batch_size, low, high),
        )
        gaps = Gaps(source, load, in_a_row=batch_size)
        data = segments(records, load, segment_of(chunk)).scan(tf.constant(-1, tf.int64), fill)
        data = data.rebatch(chunk, drop_remainder=True)
    else:
        if source.foreign or source.in_python:
            raise UserError(
                f"--data_service: {source.spec} is read by Python (webdataset, WebP, TIFF, .npy, "
                "DICOM), which a service's workers do not have: leave the service out"
            )
        first = start_step * batch_size // source.num_examples
        # One more than the steps take: unreadable images are missing, and one of several consumers
        # may be ahead of the others.
        epochs = (
            1
            if steps is None
            else -(-(start_step + steps) * batch_size // source.num_examples) - first + 1
        )
        made = service_examples(source, load, seed, first, epochs, *service).repeat()
        none = tf.zeros([chunk], tf.bool)
        data = made.batch(chunk, drop_remainder=True).enumerate()
        data = data.map(
            plain(lambda i, rows: numbered(i * chunk + tf.range(chunk, dtype=tf.int64), none, rows))
        )
    if steps is not None and not endless:
        data = data.take(steps * ((high - low) // chunk))
    options = tf.data.Options()
    options.experimental_warm_start = True  # the first batch is made while the first step is traced
    return _known_to_be(endless, data).prefetch(tf.data.AUTOTUNE).with_options(options)


def first_examples(
    source: Source, example: MakeExample, count: int, seed: int = 0
) -> tf.data.Dataset:
    """The first examples of a run that can be read, up to `count`, as one batch, to look at: what
    `example` returns, "number", "seed".

    No batch where none of the first ones can: the run itself tries again, and says why.
    """
    load = _loader(source, example, seed)

    @plain
    def numbered(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**load(record), "number": record["number"], "seed": tf.cast(seed, tf.int64)}

    records = source.records(seed=seed).take(count + SEGMENT)
    return records.map(numbered, tf.data.AUTOTUNE).ignore_errors().take(count).batch(count)


def row(example: MakeExample, fetched: Example, seed: tf.Tensor | None) -> Example:
    """What a batch has of a source's example: what `example` makes of it, and its label and index.

    Raises:
      UserError: `example` returns no dict.
    """
    made = example(fetched, seed)
    if not isinstance(made, Mapping):
        name = getattr(example, "__qualname__", "example")
        raise UserError(
            f"{name}(example, seed) returns {type(made).__name__}, not a dict, such as "
            "{'image': ...}"
        )
    return {"label": fetched["label"], "index": fetched["index"], **made}


def _loader(
    source: Source, example: MakeExample, seed: int
) -> Callable[[dict[str, tf.Tensor]], Example]:
    """A function (record) -> one training example, by the seed and its number."""

    @plain
    def load(record: dict[str, tf.Tensor]) -> Example:
        return row(
            example, source.fetch(record), tf.stack([tf.cast(seed, tf.int64), record["number"]])
        )

    return load


def evaluation_batches(
    source: Source,
    example: MakeExample,
    batch_size: int,
    rows: tuple[int, int] | None = None,
    chunk: int | None = None,
    endless: bool = False,
) -> tf.data.Dataset:
    """One pass over a source in split order, without randomness; images that cannot be decoded are
    left out.

    The last batch is filled with blank rows of weight 0, so that all batches have one static shape.
    `example` is called with seed None.
    """
    low, high = rows or (0, batch_size)
    chunk = chunk or high - low

    @plain
    def load(record: dict[str, tf.Tensor]) -> Example:
        extra = {
            "number": record["number"],
            "seed": tf.constant(0, tf.int64),
            "weight": 1.0,
            "replaced": False,
        }
        return {
            **row(example, source.fetch(record), None),
            **{k: tf.convert_to_tensor(v) for k, v in extra.items()},
        }

    part = None if rows is None else (batch_size, low, high)
    data = readable(source, load, segment_of(chunk), part)
    blank = tf.nest.map_structure(
        lambda spec: tf.zeros([chunk, *spec.shape[1:]], spec.dtype), data.element_spec
    )
    data = data.concatenate(tf.data.Dataset.from_tensors(blank).repeat()).rebatch(
        chunk, drop_remainder=True
    )
    if not endless:
        data = data.take(-(-source.num_examples // batch_size) * ((high - low) // chunk))
    return _known_to_be(endless, data).prefetch(tf.data.AUTOTUNE)


def evaluation_crops(
    source: Source, size: int, resize: int, batch_size: int, **rows: Any
) -> tf.data.Dataset:
    """`evaluation_batches` of central crops: uint8 [B, size, size, 3] of images whose shorter side
    is brought to `resize`; `rows` are its other arguments."""

    def crop(example: Example, _: None) -> Example:
        return {"image": image.resize_central_crop(example["image"], size, resize)}

    return evaluation_batches(source, crop, batch_size, **rows)


def crops_spec(source: Source, batch_size: int, size: int) -> tf.TensorSpec:
    """What a batch of `evaluation_crops` is: uint8 [B, size, size, 3]; or of a source in full depth
    float32 [B, size, size, C] in [0, 1]."""
    dtype = tf.uint8 if source.pixels.plain else tf.float32
    return tf.TensorSpec([batch_size, size, size, source.pixels.channels], dtype)


def as_floats(images: tf.Tensor) -> tf.Tensor:
    """Bytes as float32 in [0, 1]; floats as they are."""
    return images if images.dtype.is_floating else tf.cast(images, tf.float32) / 255.0


def _known_to_be(endless: bool, data: tf.data.Dataset) -> tf.data.Dataset:
    return (
        data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        if endless
        else data
    )

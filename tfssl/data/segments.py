"""Records loaded in parallel, segment by segment, in a fixed order; those that fail are seen at
once, and closed by `gaps`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfssl.data.gaps import Gaps, Load

if TYPE_CHECKING:
    from tfssl.data.sources.base import Rows, Source

# images at least that are loaded together: to begin with that takes a tenth of a millisecond
SEGMENT = 64
_AT_ONCE = 2  # segments: while the last images of one are loaded, the first of the next

# tf.data's tuning is left off: now and then the end of a pass waits for the next look of the thread
# that it runs in, which comes as late as the pass took (TensorFlow 2.15 to 2.21).
FIXED = tf.data.Options()
FIXED.autotune.enabled = False
# Nor do its rewritings find anything in our pipelines: a tenth of a second for each.
FIXED.experimental_optimization.apply_default_optimizations = False
_CALLS = max(16, os.cpu_count() or 1)  # images under way; how many are computed, threads decide

# What examples are made by has no Python branch on a tensor: to look for one would take longer than
# tracing does.
plain = tf.autograph.experimental.do_not_convert


def readable(source: Source, load: Load, size: int, rows: Rows | None = None) -> tf.data.Dataset:
    """One pass over a source in split order; images that cannot be decoded are left out, and such
    as cannot be reached are awaited.

    Args:
      source: a `tfssl.data.Source`.
      load: graph code: a record -> its row, of equal shapes for all records.
      size: records that are loaded together.
      rows: see `Source.records`.

    Returns:
      A data set of rows [n, ...], n <= size, possibly 0.
    """
    gaps = Gaps(source, load)

    @plain
    def close(*parts: Any) -> Any:
        segment = Segment(gaps, *parts)
        return tf.cond(
            segment.is_whole, lambda: segment.rows, lambda: segment.closed(segment.first - 1)[1]
        )

    return segments(source.records(rows=rows), load, size).map(close)


def segment_of(chunk: int) -> int:
    """Records of a segment: a multiple of `chunk`."""
    return chunk * -(-SEGMENT // chunk)


def segments(records: tf.data.Dataset, load: Load, size: int) -> tf.data.Dataset:
    """The rows of records, in segments of `size`: a data set of what `Segment` takes.

    Within a segment images are loaded in parallel, and those that fail are left out. However many
    fail, a segment comes to its end, so that who reads it sees at once what is missing.
    """

    @plain
    def load_segment(
        position: tf.Tensor, records: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, Any, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        records = {**records, "position": position}
        rows = tf.data.Dataset.from_tensor_slices(records)
        rows = rows.map(
            lambda record: (record["position"], load(record)), _CALLS, deterministic=True
        )
        rows = rows.ignore_errors().batch(size).with_options(FIXED)
        none = tf.nest.map_structure(
            lambda spec: tf.zeros([0, *(side or 0 for side in spec.shape[1:])], spec.dtype),
            rows.element_spec,
        )
        loaded, rows = (
            rows.concatenate(tf.data.Dataset.from_tensors(none)).take(1).get_single_element()
        )
        there = (
            tf.scatter_nd(
                (loaded - position[0])[:, None], tf.ones_like(loaded), tf.shape(position, tf.int64)
            )
            > 0
        )
        missing = tf.nest.map_structure(lambda x: tf.boolean_mask(x, ~there), records)
        return loaded, rows, position[0], tf.size(position, tf.int64), missing

    segments = records.enumerate().batch(size).map(load_segment, _AT_ONCE, deterministic=True)
    return segments.with_options(FIXED)


class Segment:
    """Successive records of which some may have failed to load; graph tensors.

    Attributes:
      positions: int64 [n].
      first: the first of them.
      is_whole: whether all could be loaded.
      rows: rows of those that could be [m, ...].
    """

    def __init__(
        self,
        gaps: Gaps,
        position: tf.Tensor,
        rows: Any,
        first: tf.Tensor,
        count: tf.Tensor,
        missing: dict[str, tf.Tensor],
    ) -> None:
        self._gaps, self._position, self._count, self._missing = gaps, position, count, missing
        self.rows, self.first = rows, first
        self.positions = tf.range(first, first + count)
        self.is_whole = tf.size(position, tf.int64) == count

    def closed(self, last: tf.Tensor) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """(positions, rows, whether another image stands in) of all that can be loaded after all;
        see `Gaps.close`."""
        specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), self.rows)
        again, rows, others = self._gaps.close(
            last, (self.first, self._count), self._missing, specs
        )
        positions = tf.concat([self._position, again], 0)
        others = tf.concat([tf.zeros_like(self._position, tf.bool), others], 0)
        order = tf.argsort(positions)
        rows = tf.nest.map_structure(
            lambda a, b: tf.gather(tf.concat([a, b], 0), order), self.rows, rows
        )
        return tf.gather(positions, order), rows, tf.gather(others, order)

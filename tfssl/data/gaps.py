"""Images that an input pipeline could not load: they are read again, replaced, or
the run ends and says why.

What cannot be reached (a disk, a server, a folder that is gone) is no property of the image: it is
tried again, and an outage that passes changes nothing. What cannot be decoded never can be, and
gives way to another image, within bounds. All of this runs in Python, and only where something is
missing.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError, one_line, reason_of, trouble

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source

Load = Callable[[dict[str, tf.Tensor]], Any]  # a record -> its row of the batch
PATIENCE = 40  # seconds for which something is tried again
_LONGEST_PAUSE = 5  # seconds between two tries
_THREADS = 8  # images that are read again at once
_NAMED = 100  # unreadable images that are named; further ones are counted only
_LEAST = 8  # undecodable images in a row that are borne, however small the batch

# What says something about the content; all other errors are about the way to it.
_OF_CONTENT = (
    tf.errors.InvalidArgumentError,
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,  # a folder that is called like an image
    tf.errors.OutOfRangeError,
    tf.errors.UnimplementedError,
)


class Patience:
    """Waits while something cannot be reached, for PATIENCE seconds in all; several threads may
    share it."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the present outage began
        self._over = -1e9  # when the last one was over
        self._lock = threading.Lock()

    def reached(self) -> None:
        """The outage is over, if there was one."""
        if self._since is not None:
            self._since, self._over = None, time.monotonic()

    def wait(self, name: str, error: OSError | tf.errors.OpError, tries: int) -> None:
        """Wait before another try, after so many.

        Raises:
          UserError: the patience has run out.
        """
        with self._lock:
            since, now = (
                self._since,
                time.monotonic(),
            )  # once, for another thread may set it meanwhile
            begun = since is None
            self._since = now if since is None else since
            left = self._since + PATIENCE - now
        reason = (
            (error.strerror or one_line(error)) if isinstance(error, OSError) else reason_of(error)
        )
        what = (
            f"{name} cannot be read: "
            f"{reason[len(name) + 2 :] if reason.startswith(name) else reason}{_link(name)}"
        )
        if begun and now - self._over > _LONGEST_PAUSE:  # else another thread's try of before
            print(f"{what}; trying again for {PATIENCE} s", file=sys.stderr, flush=True)
        if left <= 0:
            lasting = UserError(
                f"{what}; it was tried for {PATIENCE} s. Once it can be read again, use the same "
                f"command again: it goes on from what is saved{_or_else(name)}"
            )
            lasting.lasting = True
            raise lasting from None
        time.sleep(min(0.1 * 2**tries, _LONGEST_PAUSE, left))


def _link(name: str) -> str:
    """Where a link leads that leads nowhere, as a part of a line."""
    if os.path.islink(name) and not os.path.exists(name):
        return f" (it is a link to {os.readlink(name)}, which is not there)"
    return ""


def _or_else(name: str) -> str:
    """What to do where a file alone is away, and not its folder, as the end of a line."""
    folder = os.path.dirname(name)
    try:
        return "; or take it out of the data" if folder and tf.io.gfile.isdir(folder) else ""
    except tf.errors.OpError:
        return ""


class Gaps:
    """Loads what a pipeline could not.

    Args:
      source: a `tfssl.data.Source`.
      load: graph code: a record -> its row of the batch.
      in_a_row: in training, undecodable images in a row that are borne; None: any number, and
        nothing stands in for them.
    """

    def __init__(self, source: Source, load: Load, in_a_row: int | None = None) -> None:
        self._source, self._eager, self._graph = source, load, tf.function(load, autograph=False)
        self._load: Load | None = None  # the graph of one record
        self._most = None if in_a_row is None else max(in_a_row, _LEAST)
        self._undecodable: dict[int, str] = {}  # index -> reason
        self._patience, self._lock = Patience(), threading.Lock()

    def read(self, record: dict[str, tf.Tensor]) -> tuple[Any, str | None]:
        """(what `load` makes of a record, None); or (None, why it cannot be decoded). Of eager
        tensors, one at a time.

        Raises:
          UserError: it cannot be reached.
        """
        found = self._load_one({"position": record["number"], **record}, self._eager)
        return (found[1], None) if found else (None, self._undecodable[int(record["index"])])

    def close(
        self,
        last: tf.Tensor,
        segment: tuple[tf.Tensor, tf.Tensor],
        missing: dict[str, tf.Tensor],
        row_spec: dict[str, tf.TensorSpec],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """Graph code: (positions int64 [k], rows of them [k, ...], whether another image stands in,
        bool [k]) of what can be loaded now.

        Args:
          last: int64; positions up to here are done with.
          segment: (first, number of positions) int64.
          missing: the records that could not be loaded, {"position": int64 [m], ...}.
          row_spec: the `tf.TensorSpec`s of a row.
        """
        specs, records = tf.nest.flatten(row_spec), tf.nest.flatten(missing)

        def again(
            last: tf.Tensor, first: tf.Tensor, count: tf.Tensor, *flat: tf.Tensor
        ) -> list[tf.Tensor]:
            records = tf.nest.pack_sequence_as(missing, flat)
            if self._load is None:  # here, once, and not by all threads
                one = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), records)
                self._load = self._graph.get_concrete_function(one)
            loaded = self._load_all(
                [_row(records, i) for i in range(len(records["position"]))], self._load
            )
            positions = np.array([position for position, _, _ in loaded], np.int64)
            lost = np.setdiff1d(records["position"].numpy(), positions)
            self._check(int(last), int(first), int(count), lost)
            rows = [tf.nest.flatten(row) for _, row, _ in loaded]
            columns = [
                tf.stack(column)
                if rows
                else tf.zeros([0, *(side or 0 for side in spec.shape)], spec.dtype)
                for spec, column in zip(specs, zip(*rows) if rows else [()] * len(specs))
            ]
            return [positions, np.array([other for _, _, other in loaded], bool), *columns]

        types = [tf.int64, tf.bool, *(spec.dtype for spec in specs)]
        positions, others, *columns = tf.py_function(again, [last, *segment, *records], types)
        for tensor, spec in zip((positions, others, *columns), (None, None, *specs)):
            tensor.set_shape([None, *(spec.shape if spec is not None else ())])
        return positions, tf.nest.pack_sequence_as(row_spec, columns), others

    def _load_all(
        self, records: list[dict[str, tf.Tensor]], load: Load
    ) -> list[tuple[int, dict[str, tf.Tensor], bool]]:
        """[(position, row, whether another stands in)] of those that can be loaded."""
        pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
        try:
            loaded = list(pool.map(lambda record: self._load_one(record, load), records))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [found for found in loaded if found is not None]

    def _load_one(self, record: dict[str, tf.Tensor], load: Load) -> tuple[int, Any, bool] | None:
        position, index, tries = int(record["position"]), int(record["index"]), 0
        made_of = self._source.indices(record)
        while not any(image in self._undecodable for image in made_of):
            try:
                read = self._source.read_again(record, stand_in=self._most is not None)
                row = load(read)
                self._patience.reached()
                return position, row, int(read["index"]) != index
            except (
                tf.errors.OpError,
                UnicodeDecodeError,
            ) as error:  # the latter where TensorFlow's message quotes a record
                image, reason = self._source.culprit(record, error)
                if is_of_content(reason):
                    self._patience.reached()
                    self._note(image, int(image["index"]), reason)
                else:
                    self._patience.wait(self._name(image), reason, tries)
                    tries += 1
        return None

    def _note(self, record: dict[str, tf.Tensor], index: int, error: Exception) -> None:
        """Remember, and name on stderr, an image that cannot be decoded; once for all pipelines of
        the source."""
        reason = (
            reason_of(error) if isinstance(error, tf.errors.OpError) else "not a tf.train.Example"
        )
        with self._lock:
            self._undecodable[index] = reason
            name = self._name(record)
            if self._most is None or name in self._source.unreadable:
                return  # who evaluates names what is left out
            self._source.unreadable[name] = reason
            number = len(self._source.unreadable)
            if number <= _NAMED:
                more = " (further ones are counted, not named)" if number == _NAMED else ""
                print(
                    f"skipped unreadable image: {name}: {reason}{more}", file=sys.stderr, flush=True
                )

    def _name(self, record: dict[str, tf.Tensor]) -> str:
        return self._source.name_in_graph(record).numpy().decode(errors="replace")

    def _check(self, last: int, first: int, count: int, lost: np.ndarray) -> None:
        """Refuse a gap of more than a batch; positions last + 1 .. first - 1, and `lost`, stay
        without an image of their own."""
        if self._most is None:
            return
        there = np.setdiff1d(np.arange(first, first + count), lost)
        longest = np.diff([last, *there, first + count]).max() - 1
        if longest > self._most and self._undecodable:
            name, reason = next(reversed(self._source.unreadable.items()))
            raise UserError(
                f"{longest} images in a row cannot be decoded, more than a batch; the last of them "
                f"is {name}: {reason}; repair them, "
                "or take them out (--dry_run lists all): the same command then goes on from the "
                "last checkpoint"
            )


def _row(records: dict[str, tf.Tensor], i: int) -> dict[str, tf.Tensor]:
    return tf.nest.map_structure(lambda x: x[i], records)


def is_of_content(error: BaseException) -> bool:
    """Whether an exception of reading says something about the content, and not about the way to
    it."""
    if isinstance(error, UnicodeDecodeError):
        return True
    if trouble(error):
        return False
    if isinstance(
        error, tf.errors.UnknownError
    ):  # also of an I/O error; and of what a source's own Python code raises
        return "Traceback (most recent call last)" in str(
            error
        ) and "tensorflow.python.framework.errors" not in str(error)
    return isinstance(error, _OF_CONTENT)

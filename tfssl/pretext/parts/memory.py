"""Embeddings that outlive their step: a queue of the latest, and a bank with one for each image.

Both are variables, the same on every replica, and so part of every checkpoint: a resumed run
remembers what an uninterrupted one would. Each replica computes the same values for its own copy,
and none is sent: an aggregation of copies is what XLA on several GPUs, and scattered writes on a
TPU, do not have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.losses import replicas


def _directions(shape: Sequence[int]) -> Callable[[], tf.Tensor]:
    """Random rows of norm 1 [..., D]."""
    return lambda: tf.math.l2_normalize(
        tf.random.normal(shape, dtype=tf.keras.backend.floatx()), -1
    )


def _variable(name: str, initial: Any) -> tf.Variable:
    return tf.Variable(
        initial,
        trainable=False,
        name=name,
        dtype=tf.keras.backend.floatx(),
    )


class Queue(tf.Module):
    """The latest `size` rows, newest first: [size, D] (He et al., arXiv 1911.05722).

    Args:
      size: how many rows; at least those of a step.
      features: D.
      filled: start with random directions, as MoCo does; otherwise with zeros, and `count` tells
        how many rows are there.
    """

    def __init__(self, size: int, features: int, filled: bool = True) -> None:
        super().__init__(name="queue")
        self.size = size
        self.rows = _variable(
            "rows",
            _directions([size, features])
            if filled
            else tf.zeros([size, features], tf.keras.backend.floatx()),
        )
        self.count = tf.Variable(
            size if filled else 0,
            trainable=False,
            name="count",
            dtype=tf.int64,
        )

    trainable_variables = ()

    @property
    def non_trainable_variables(self) -> tuple[tf.Variable, ...]:
        return (self.rows, self.count)

    def check_step(self, new: int) -> None:
        """UserError where so many rows of a step, of all replicas, are more than the queue has."""
        if new > self.size:
            raise UserError(
                f"queue_size={self.size} does not hold the {new} embeddings of one step: take a "
                "larger one"
            )

    def push(self, rows: tf.Tensor) -> None:
        """This replica's rows [n, D] and those of the others take the place of the oldest."""
        rows = tf.cast(replicas.gather(tf.stop_gradient(rows)), self.rows.dtype)  # RNxD
        new = rows.shape[0]
        self.check_step(new)
        # Moved as a whole, not written at a pointer: static slices, on which compilers do best.
        self.rows.assign(tf.concat([rows, self.rows[: self.size - new]], 0))
        self.count.assign(tf.minimum(self.count + new, self.size))


class Bank(tf.Module):
    """One direction for each image of the data set: [images, D] (Wu et al., arXiv 1805.01978).

    Args:
      images: how many.
      features: D.
      momentum: share of an entry that an update keeps (0.5).
    """

    trainable_variables = ()

    def __init__(self, images: int, features: int, momentum: float = 0.5) -> None:
        super().__init__(name="bank")
        self.momentum = momentum
        self.entries = _variable("entries", _directions([images, features]))

    @property
    def non_trainable_variables(self) -> tuple[tf.Variable, ...]:
        return (self.entries,)

    def update(self, index: tf.Tensor, rows: tf.Tensor) -> None:
        """Moves the entries of images `index` [n] towards `rows` [n, D], of all replicas, and back
        to norm 1.

        An image that stands in the batch twice (an epoch's last and the next one's first batch can
        be one) is moved by its first row.
        """
        index, rows = (
            replicas.gather(index),
            tf.cast(replicas.gather(tf.stop_gradient(rows)), self.entries.dtype),
        )
        moved = self.momentum * tf.gather(self.entries, index) + (1 - self.momentum) * rows
        moved = tf.math.l2_normalize(moved, 1)
        # Every row of an image writes the same values, so that the order of writing does not
        # matter.
        first = tf.argmax(tf.cast(index[:, None] == index[None, :], tf.int32), 1)
        moved = tf.gather(moved, first)
        self.entries.scatter_update(tf.IndexedSlices(moved, index))

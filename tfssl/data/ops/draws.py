"""Random numbers for a batch on the device, equal for every way of splitting the batch over
replicas and hosts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import tensorflow as tf


def fork(seed: tf.Tensor, view: int) -> tf.Tensor:
    """An independent seed for the `view`-th use of `seed` (int64 [2], whose second word is an
    example number or a step)."""
    return seed + tf.constant(
        [0, (view + 1) << 40], tf.int64
    )  # beyond any number that is ever reached


class Draws:
    """Stateless draws for the rows of one (local) batch, seeded by (run seed, step, view).

    They are drawn for the whole global batch, and each replica takes the rows that it holds: so 1,
    2 or 8 replicas see the same numbers. (Not so a step compiled with XLA and one that is not:
    TensorFlow's stateless generators differ between the two.)

    Args:
      batch: a batch of `training_batches`; its "seed" and "number" are read.
      replicas: how many replicas share the global batch.
    """

    def __init__(self, batch: dict[str, tf.Tensor], replicas: int = 1) -> None:
        self.replicas = replicas
        self.global_rows = batch["number"].shape[0] * replicas
        step = batch["number"][0] // tf.cast(self.global_rows, tf.int64)
        self.row = tf.cast(batch["number"] % tf.cast(self.global_rows, tf.int64), tf.int32)
        self.seed = tf.stack([batch["seed"][0], step])

    def of(self, row: tf.Tensor) -> Draws:
        """The draws for other rows of the same global batch: `row` [n], their numbers."""
        other = copy.copy(self)
        other.row = row
        return other

    def permutation(self, view: int = 0) -> tf.Tensor:
        """A random order of the global batch's rows, int32 [rows]: the same on every replica."""
        return tf.argsort(tf.random.stateless_uniform([self.global_rows], fork(self.seed, view)))

    def integers(
        self, high: int | tf.Tensor, shape: Sequence[int] = (), view: int = 0
    ) -> tf.Tensor:
        """int32 [n, *shape] in [0, high), uniform up to a share high / 2^32; `view` as of
        `uniform`."""
        seed = fork(self.seed, view)
        drawn = tf.random.stateless_uniform([self.global_rows, *shape], seed, 0, high, tf.int32)
        return tf.gather(drawn, self.row)

    def keep(self, probability: float, shape: Sequence[int] = (), view: int = 0) -> tf.Tensor:
        """bool [n, *shape], each true with a probability: masks for dropout.

        Each element is a hash (murmur3's finalizer, twice) of seed, step, row and place: a replica
        computes its own rows only, for masks are too large to be drawn for the whole batch.
        """
        return hashed(self.keys(view), shape) < int(probability * 2**32)

    def keys(self, view: int = 0) -> tf.Tensor:
        """A hash of seed, step, view and row: int64 [n] in [0, 2^32), for `hashed`."""
        return hash32(
            hash32(hash32(self.seed[0] + 1) + self.seed[1] + view * 0x1000003)
            + tf.cast(self.row, tf.int64)
        )

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = (), view: int = 0
    ) -> tf.Tensor:
        """[n, *shape] of Keras's floatx in [low, high); `view` tells apart independent draws of one
        step."""
        drawn = tf.random.stateless_uniform(
            [self.global_rows, *shape], fork(self.seed, view), low, high
        )
        return tf.cast(tf.gather(drawn, self.row), tf.keras.backend.floatx())


def hashed(keys: tf.Tensor, shape: Sequence[int] = ()) -> tf.Tensor:
    """Random bits of each row, by its key [n] and the element's place: int64 [n, *shape] in
    [0, 2^32)."""
    place = tf.reshape(tf.range(math.prod(shape), dtype=tf.int64), shape)
    return hash32(hash32(place) + tf.reshape(keys, [-1] + [1] * len(shape)))


def rows_of(keys: tf.Tensor, rows: int, use: int = 0) -> tf.Tensor:
    """Keys of the rows that a network sees of a batch whose images have `keys` [n]: int64 [rows],
    image-major, each with as many successive rows as another. `use` tells apart successive uses of
    the same keys."""
    image = tf.range(rows) * keys.shape[0] // rows
    place = tf.range(rows) - image * (rows // keys.shape[0])
    return hash32(tf.gather(keys, image) + hash32(tf.cast(place, tf.int64) + (use << 20)))


def hash32(x: tf.Tensor) -> tf.Tensor:
    """murmur3's 32-bit finalizer, of int64s: GPUs have kernels for these."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = tf.bitwise.bitwise_and(x, 0xFFFFFFFF)
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, shift)) * factor
    return tf.bitwise.bitwise_and(x, 0xFFFFFFFF)

"""What losses need of other replicas: their rows, in shapes that are static and by operations that
every strategy and XLA have."""

from __future__ import annotations

import math

import tensorflow as tf


def count() -> int:
    """How many replicas compute this step together: int."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def gather(x: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in the order of the replicas: [n, ...] -> [count() * n, ...]; call
    it on each replica.

    Each replica puts its rows into its own slot of zeros, and the slots are summed. That is
    differentiable: a row's gradient is the sum of what all replicas do with it. (`tf.distribute`'s
    own gather has neither a static shape nor a form for every strategy.) A TPU does not add int64:
    it travels as two int32 there, whose sums with zeros are exact.
    """
    replicas = count()
    if replicas == 1:
        return x
    if x.dtype == tf.int64 and _on_tpu():
        return tf.bitcast(gather(tf.bitcast(x, tf.int32)), tf.int64)
    context = tf.distribute.get_replica_context()
    mine = tf.equal(tf.range(replicas), tf.cast(context.replica_id_in_sync_group, tf.int32))
    mine = tf.reshape(mine, [replicas] + [1] * x.shape.rank)
    slots = tf.where(
        mine, x[None], tf.zeros_like(x)[None]
    )  # not a product: one replica's NaN stays its own
    return tf.reshape(context.all_reduce("SUM", slots), [replicas * x.shape[0], *x.shape[1:]])


def _on_tpu() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def gather_bytes(x: tf.Tensor) -> tf.Tensor:
    """`gather` of uint8 [n, ...], such as images, in a quarter of the traffic of floats: eight
    bytes travel as one integer, whose sum with zeros is exact. (No strategy adds bytes; GPUs have
    few kernels for int32.)"""
    rows, size = x.shape[0], math.prod(x.shape[1:])
    flat = tf.pad(tf.reshape(x, [rows, size]), [[0, 0], [0, -size % 8]])
    words = gather(tf.bitcast(tf.reshape(flat, [rows, -1, 8]), tf.int64))
    flat = tf.reshape(tf.bitcast(words, tf.uint8), [words.shape[0], -1])[:, :size]
    return tf.reshape(flat, [words.shape[0], *x.shape[1:]])


def first_row(rows: int) -> tf.Tensor:
    """Where this replica's rows begin among the gathered ones; `rows` is n, the rows of one
    replica. An int32 scalar."""
    if count() == 1:
        return tf.constant(0)
    return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32) * rows


def mean(x: tf.Tensor) -> tf.Tensor:
    """The mean over replicas of a tensor that each replica has for itself."""
    return total(x) / count() if count() > 1 else x


def total(x: tf.Tensor) -> tf.Tensor:
    """The sum over replicas of a tensor that each replica has for itself; a gradient flows to all
    of them."""
    return x if count() == 1 else tf.distribute.get_replica_context().all_reduce("SUM", x)


def share(x: tf.Tensor) -> tf.Tensor:
    """This replica's part of rows that all replicas have: [count() * n, ...] -> [n, ...]."""
    rows = x.shape[0] // count()
    return (
        x
        if count() == 1
        else tf.slice(x, [first_row(rows)] + [0] * (x.shape.rank - 1), [rows, *x.shape[1:]])
    )

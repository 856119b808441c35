"""Random numbers for a batch on the device, equal for every way of splitting the batch over replicas and hosts."""

import tensorflow as tf


def fork(seed, view):
    """An independent seed for the `view`-th use of `seed` (int64 [2], whose second word is an example number or a step)."""
    return seed + tf.constant([0, (view + 1) << 40], tf.int64)  # beyond any number that is ever reached


class Draws:
    """Stateless draws for the rows of one (local) batch, seeded by (run seed, step, view).

    They are drawn for the whole global batch, and each replica takes the rows that it holds: so 1, 2 or 8 replicas see the same
    numbers. (Not so a step compiled with XLA and one that is not: TensorFlow's stateless generators differ between the two.)

    Args:
      batch: a batch of `training_batches`; its "seed" and "number" are read.
      replicas: how many replicas share the global batch.
    """

    def __init__(self, batch, replicas=1):
        self.global_rows = batch["number"].shape[0] * replicas
        step = batch["number"][0] // tf.cast(self.global_rows, tf.int64)
        self.row = tf.cast(batch["number"] % tf.cast(self.global_rows, tf.int64), tf.int32)
        self.seed = tf.stack([batch["seed"][0], step])

    def uniform(self, low=0.0, high=1.0, shape=(), view=0):
        """[n, *shape] of Keras's floatx in [low, high); `view` tells apart independent draws of one step."""
        drawn = tf.random.stateless_uniform([self.global_rows, *shape], fork(self.seed, view), low, high)
        return tf.cast(tf.gather(drawn, self.row), tf.keras.backend.floatx())

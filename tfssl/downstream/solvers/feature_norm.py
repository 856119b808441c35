"""Batch normalization of pooled maps before a linear classifier (Goyal et al. 2019, arXiv
1905.01235)."""

from typing import Optional

import tensorflow as tf

from tfssl.losses import replicas

KINDS = ("none", "fixed", "learned")


class FeatureNorm(tf.Module):
    """Batch normalization; in inference by the statistics of all rows so far.

    The backbone is frozen, so that the statistics of its features do not change while a classifier
    learns. Hence the exact mean and variance over all rows since the start, not a moving average,
    which covers the last ten batches only. A batch is that of all replicas.

    Args:
      channels: C; features [B, D] are maps [B, D / C locations, C], which share their statistics
        over the locations.
      learned: with a scale (1 at first) and a shift (0) of each channel.
      dtype: of the computation; sums over many batches are float64.
      epsilon: added to the variance.
    """

    def __init__(
        self, channels: int, learned: bool = False, dtype: str = "float32", epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self.channels, self.epsilon = channels, epsilon
        # Every replica computes the same value for its own copy, of all replicas' rows.
        self.count = tf.Variable(tf.zeros([], tf.float64), False)  # of rows
        # Sums over the rows of their means and mean squares.
        self.sums = tf.Variable(tf.zeros([2, channels], tf.float64), False)
        if learned:
            self.scale = tf.Variable(tf.ones([channels], dtype))
            self.shift = tf.Variable(tf.zeros([channels], dtype))
        self.learned = learned

    def __call__(self, x: tf.Tensor, weight: Optional[tf.Tensor] = None) -> tf.Tensor:
        """[B, D] -> [B, D]; with `weight` [B] in training mode: rows of weight 0 are left out of
        the statistics."""
        maps = tf.reshape(x, [-1, x.shape[1] // self.channels, self.channels])  # BxPxC
        mean, variance = self._over_all() if weight is None else self._over_batch(maps, weight)
        factor = tf.math.rsqrt(tf.cast(variance, x.dtype) + self.epsilon)
        maps = (maps - tf.cast(mean, x.dtype)) * factor
        return tf.reshape(maps * self.scale + self.shift if self.learned else maps, tf.shape(x))

    def _over_batch(self, maps: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = replicas.total(tf.reduce_sum(weight))
        fraction = tf.math.divide_no_nan(weight, rows)[:, None, None] / maps.shape[1]  # Bx1x1
        mean = replicas.total(tf.reduce_sum(fraction * maps, [0, 1]))  # C
        variance = replicas.total(tf.reduce_sum(fraction * (maps - mean) ** 2, [0, 1]))
        rows, exact = (
            tf.cast(rows, tf.float64),
            [tf.cast(value, tf.float64) for value in (mean, variance)],
        )
        self.count.assign_add(rows)
        self.sums.assign_add(rows * tf.stack([exact[0], exact[1] + exact[0] ** 2]))
        return mean, variance

    def _over_all(self) -> tuple[tf.Tensor, tf.Tensor]:
        mean, square = tf.unstack(tf.math.divide_no_nan(self.sums, self.count))
        return mean, tf.maximum(square - mean**2, 0)

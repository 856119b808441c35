"""Running means of what a step measures, and counts of what went wrong in it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf


class Measures:
    """The running metrics; a plain object, so that Keras keeps them out of the model's weights and
    checkpoints.

    Args:
      names: of the metrics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.means = {name: tf.keras.metrics.Mean(name) for name in names}
        self.counters = {
            name: tf.keras.metrics.Sum(name) for name in ("replaced", "nonfinite_steps")
        }
        self.all = [*self.means.values(), *self.counters.values()]

    def track(self, weight: tf.Tensor, measured: Mapping[str, Any]) -> None:
        """Add a batch to the means.

        Args:
          weight: [n], 0 for the blank rows of an evaluation.
          measured: {metric: values, or (values, weights)}, each [n * m] for the m examples that
            became of each image.
        """
        for name, values in measured.items():
            values, own = values if isinstance(values, tuple) else (values, 1.0)
            rows = tf.repeat(weight, values.shape[0] // weight.shape[0])
            # where: the blank rows of an evaluation must not turn 0 * NaN into NaN
            values = tf.where(rows > 0, values, tf.zeros_like(values))
            self.means[name].update_state(values, rows * tf.cast(own, rows.dtype))

    def count(self, name: str, value: tf.Tensor) -> None:
        """Add to the counter "replaced" (unreadable images) or "nonfinite_steps" (steps whose loss
        was NaN or infinite)."""
        self.counters[name].update_state(value)

    def results(self) -> dict[str, tf.Tensor]:
        """{metric: its mean since metrics were last reset}; NaN of no image."""
        return {
            name: tf.where(mean.count > 0, mean.result(), math.nan)
            for name, mean in self.means.items()
        }

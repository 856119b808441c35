"""Lengths in steps: what epochs and a batch size mean for so many images."""

import dataclasses
import fractions
import math

from tfssl.config.schema import Optimization


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is, and how fast it learns.

    Attributes:
      images: of one epoch.
      epoch_steps: steps of one epoch; may be fractional.
      total_steps: of the whole run.
      start, peak, end: the learning rate before and after warm-up, and where a cosine ends.
      warmup_steps: over which it rises; may be fractional.
      decay_steps: after which a piecewise schedule falls; may be fractional.
    """

    images: int
    epoch_steps: float
    total_steps: int
    start: float
    peak: float
    end: float
    warmup_steps: float
    decay_steps: tuple[float, ...]


def plan(optimization: Optimization, images: int) -> Plan:
    """The `Plan` of training on so many images."""
    o, epoch = optimization, images / optimization.batch_size
    scale = o.batch_size / o.lr_scaling if o.lr_scaling else 1.0
    return Plan(
        images=images,
        epoch_steps=epoch,
        total_steps=o.train_steps
        or math.ceil(fractions.Fraction(str(o.epochs)) * images / o.batch_size),
        start=o.initial_rate * scale,
        peak=o.learning_rate * scale,
        end=o.final_rate * scale,
        warmup_steps=o.warmup_epochs * epoch,
        decay_steps=tuple(e * epoch for e in o.decay_epochs),
    )

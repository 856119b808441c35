"""Schedules over steps, of learning rates and more: linear warm-up, then piecewise constant or
cosine."""

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

import tensorflow as tf

from tfssl.errors import UserError, check_choice

SCHEDULES = ("piecewise", "cosine", "constant")


def schedule(
    name: str,
    peak: float,
    total_steps: float,
    warmup_steps: float = 0,
    decay_steps: Sequence[float] = (),
    decay_factor: float = 0.1,
    start: float = 0.0,
    end: float = 0.0,
) -> "Schedule":
    """A `LearningRateSchedule`. It serves other quantities as well: weight decay along half a
    cosine is ("cosine", 0.04, steps, end=0.4), a teacher's decay that approaches 1 ("cosine",
    0.996, steps, end=1.0), a temperature that warms up and stays ("constant", 0.07, steps,
    warmup_steps, start=0.04).

    Args:
      name: "piecewise": `peak * decay_factor**i` after the i-th of `decay_steps` (that step itself
        still has the earlier rate); "cosine": from `peak` to `end` at `total_steps` along half a
        cosine that begins when warm-up ends; "constant".
      peak: the rate at the end of warm-up.
      total_steps: length of the run.
      warmup_steps: the rate rises linearly from `start` at step 0 to the schedule's at this step.
      decay_steps: ascending steps of "piecewise".
      decay_factor: its factor.
      start: the rate at step 0, where there is a warm-up.
      end: the rate at the end of "cosine".

    Raises:
      UserError: unknown name; decay steps that do not ascend; an end or a start that the schedule
        does not have.
    """
    check_choice("schedule", name, SCHEDULES)
    if list(decay_steps) != sorted(decay_steps):
        raise UserError(f"the epochs of decay must ascend, not {', '.join(map(str, decay_steps))}")
    if end and name != "cosine":
        raise UserError(
            f"a final rate of {end:g} is the end of a cosine: choose schedule=cosine, not {name}, "
            "or leave it out"
        )
    if start and not warmup_steps:
        raise UserError(
            f"an initial rate of {start:g} is where warm-up begins, and there is none: leave it out"
        )
    steps = tuple(decay_steps) if name == "piecewise" else ()
    return Schedule(
        peak,
        total_steps if name == "cosine" else None,
        warmup_steps,
        steps,
        decay_factor,
        start,
        end,
    )


class Schedule(tf.keras.optimizers.schedules.LearningRateSchedule):
    """See `schedule`; `cosine_steps` None: piecewise constant."""

    def __init__(
        self,
        peak: float,
        cosine_steps: Optional[float] = None,
        warmup_steps: float = 0,
        decay_steps: Sequence[float] = (),
        decay_factor: float = 0.1,
        start: float = 0.0,
        end: float = 0.0,
    ) -> None:
        self.peak, self.cosine_steps, self.warmup_steps = peak, cosine_steps, warmup_steps
        self.decay_steps, self.decay_factor = tuple(decay_steps), decay_factor
        self.start, self.end = start, end

    def __call__(self, step: Union[int, tf.Tensor]) -> tf.Tensor:
        """The float32 value at a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        if self.cosine_steps is not None:
            length = max(1, self.cosine_steps - self.warmup_steps)
            progress = tf.clip_by_value((step - self.warmup_steps) / length, 0.0, 1.0)
            rate = self.end + (self.peak - self.end) * 0.5 * (1.0 + tf.cos(math.pi * progress))
        else:
            passed = tf.add_n(
                [tf.cast(step > boundary, tf.float32) for boundary in self.decay_steps]
                or [tf.zeros([])]
            )
            rate = self.peak * tf.pow(self.decay_factor, passed)
        warmup = self.start + (self.peak - self.start) * step / max(1, self.warmup_steps)
        return tf.where(step < self.warmup_steps, warmup, rate)

    def get_config(self) -> dict[str, Any]:
        keys = (
            "peak",
            "cosine_steps",
            "warmup_steps",
            "decay_steps",
            "decay_factor",
            "start",
            "end",
        )
        return {key: getattr(self, key) for key in keys}

"""Learning-rate schedules over steps: linear warm-up, then piecewise constant or cosine."""

import math

import tensorflow as tf

from tfssl.errors import UserError

NAMES = ("piecewise", "cosine", "constant")


def schedule(name, peak, total_steps, warmup_steps=0, decay_steps=(), decay_factor=0.1):
    """A `LearningRateSchedule`.

    Args:
      name: "piecewise": `peak * decay_factor**i` after the i-th of `decay_steps` (that step itself still has the earlier rate);
        "cosine": from `peak` down to 0 at `total_steps` along half a cosine that begins when warm-up ends; "constant".
      peak: the rate at the end of warm-up.
      total_steps: length of the run.
      warmup_steps: the rate rises linearly from 0 at step 0 to the schedule's at this step.
      decay_steps: ascending steps of "piecewise".
      decay_factor: its factor.

    Raises:
      UserError: unknown name; decay steps that do not ascend.
    """
    if name not in NAMES:
        raise UserError(f"unknown schedule {name!r}: choose one of {', '.join(NAMES)}")
    if list(decay_steps) != sorted(decay_steps):
        raise UserError(f"the epochs of decay must ascend, not {', '.join(map(str, decay_steps))}")
    steps = tuple(decay_steps) if name == "piecewise" else ()
    return Schedule(peak, total_steps if name == "cosine" else None, warmup_steps, steps, decay_factor)


class Schedule(tf.keras.optimizers.schedules.LearningRateSchedule):
    """See `schedule`; `cosine_steps` None: piecewise constant."""

    def __init__(self, peak, cosine_steps=None, warmup_steps=0, decay_steps=(), decay_factor=0.1):
        self.peak, self.cosine_steps, self.warmup_steps = peak, cosine_steps, warmup_steps
        self.decay_steps, self.decay_factor = tuple(decay_steps), decay_factor

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        if self.cosine_steps is not None:
            length = max(1, self.cosine_steps - self.warmup_steps)
            progress = tf.clip_by_value((step - self.warmup_steps) / length, 0.0, 1.0)
            rate = self.peak * 0.5 * (1.0 + tf.cos(math.pi * progress))
        else:
            passed = tf.add_n([tf.cast(step > boundary, tf.float32) for boundary in self.decay_steps] or [tf.zeros([])])
            rate = self.peak * tf.pow(self.decay_factor, passed)
        warmup = self.peak * step / max(1, self.warmup_steps)
        return tf.where(step < self.warmup_steps, warmup, rate)

    def get_config(self):
        keys = ("peak", "cosine_steps", "warmup_steps", "decay_steps", "decay_factor")
        return {key: getattr(self, key) for key in keys}

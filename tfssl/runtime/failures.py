"""TensorFlow's errors that a user can do something about, as one line each."""

import os

import tensorflow as tf

from tfssl.errors import one_line


def explain(error):
    """What to tell the user of an exception: one line with cause and remedy, or None where only a traceback helps."""
    text = " ".join(str(error).split())
    if "No space left on device" in text or "File too large" in text or "Disk quota exceeded" in text:
        return f"the disk is full ({one_line(text)}); make room, and the same command goes on from the last checkpoint"
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)) or "RESOURCE_EXHAUSTED" in text:
        return (
            "out of memory: --batch_size (smaller), --accumulate_steps (the same batch in parts), --rematerialize, "
            f"--precision=mixed_bfloat16 or a smaller --image_size helps ({one_line(text)})"
        )
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    if isinstance(error, lost) and "TF_CONFIG" in os.environ:
        return (
            "another worker has ended or cannot be reached; start all workers again with the same command: "
            f"they go on from the last checkpoint ({one_line(text)})"
        )
    return None

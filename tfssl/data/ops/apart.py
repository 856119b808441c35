"""Functions that graphs call as one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that a graph calls as one op, and that is traced once. What is within a branch
    that is not taken would still be passed through, op by op, which takes longer than to decode a
    small image; and it would be traced and optimized anew for each pipeline."""
    return tf.function(
        function,
        autograph=False,
        reduce_retracing=True,
        experimental_attributes={"_noinline": True},
    )

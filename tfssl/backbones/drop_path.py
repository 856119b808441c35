"""Stochastic depth: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016 (arXiv
1603.09382). In training a residual branch is left out of some examples.

What is left out is no state: a training step gives `drawn` random bits that depend on its seed, its
number and the example alone, so that a resumed run, and any number of replicas, leave out the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

# (rows, shape, use) -> random bits, int64 [rows, *shape] in [0, 2^32), of the `use`-th forward pass
Bits = Callable[[int, Sequence[int], int], tf.Tensor]

_local = threading.local()  # replicas are traced in threads of their own


@contextlib.contextmanager
def drawn(bits: Bits | None) -> Iterator[None]:
    """In here networks leave out what the bits say. The same bits leave out the same, as the second
    forward pass of gradient caching needs it. Outside of it, or with None, all paths are kept."""
    before = getattr(_local, "bits", None), getattr(_local, "uses", 0)
    _local.bits, _local.uses = bits, 0
    try:
        yield
    finally:
        _local.bits, _local.uses = before


def rates(last: float, depth: int) -> list[float]:
    """The rate of each block: linear in depth, from 0 in the first to `last` in the last one (Huang
    et al., Equation 4; counted as in DeiT's, timm's and MAE's code)."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def factors(last: float, depth: int, rows: int, branches: int = 2) -> tf.Tensor | None:
    """What the residual branches of each block are multiplied by: [rows, depth, branches] of
    Keras's floatx, 0 where one is left out and 1 / (1 - rate) where it is kept, so that its
    expectation is the branch. None where all are kept."""
    bits = getattr(_local, "bits", None)
    if bits is None or not last:
        return None
    use, _local.uses = _local.uses, _local.uses + 1
    per_block = rates(last, depth)
    least = tf.constant([int(rate * 2**32) for rate in per_block], tf.int64)[:, None]
    scale = tf.constant([1 / (1 - rate) for rate in per_block], tf.keras.backend.floatx())
    kept = bits(rows, [depth, branches], use) >= least
    return tf.where(kept, scale[:, None], tf.zeros([], scale.dtype))

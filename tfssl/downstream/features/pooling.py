"""Pooling of feature maps for linear classifiers, by the rules of the 2019 study (Kolesnikov et
al., section 4.1 and its code).

A map of H x W x C is pooled only where it has more than `target` = 9000 values.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfssl.errors import UserError

MODES = ("max", "avg", "adaptive_max", "adaptive_avg")


def check(mode: str) -> None:
    """Raise UserError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise UserError(f"unknown pooling {mode!r}; there is: {', '.join(MODES)}")


def pooled_shape(shape: Sequence[int], mode: str = "max", target: int = 9000) -> tuple[int, ...]:
    """Shape (without the batch) after `pool` and before flattening: (H, W, C) may shrink to (h, w,
    C); a vector keeps its shape."""
    if len(shape) != 3 or math.prod(shape) <= target:
        return tuple(shape)
    height, width, channels = shape
    if mode.startswith("adaptive"):
        side = _adaptive_side(channels, target)
        return min(side, height), min(side, width), channels
    stride = _stride(height, width, channels, target)
    return height // min(stride, height), width // min(stride, width), channels


def pool(features: tf.Tensor, mode: str = "max", target: int = 9000) -> tf.Tensor:
    """Pool a batch of feature maps to at most `target` values each, and flatten.

    `max` and `avg`: kernel = stride = clip(ceil(sqrt(H*W*C / target)), 1, side), no padding.
    `adaptive_max` and `adaptive_avg`: a grid whose side is the floor or the ceiling of sqrt(target
    / C), whichever comes nearer to `target` (and may exceed it slightly); the regions are fixed,
    whereas the study's fractional pooling drew them at random.

    Args:
      features: float [N, H, W, C] with static H, W and C, or [N, D].
      mode: one of MODES.
      target: the largest number of values per image without pooling.

    Returns:
      float [N, h*w*C] or [N, D].
    """
    check(mode)
    shape = tuple(features.shape[1:])
    height, width, channels = (
        pooled_shape(shape, mode, target)[-3:] if len(shape) == 3 else (1, 1, 1)
    )
    if len(shape) == 3 and (height, width, channels) != shape:
        if mode.startswith("adaptive"):
            reduce = tf.reduce_max if mode == "adaptive_max" else tf.reduce_mean
            # N x h x w x C
            features = _regions(_regions(features, height, 1, reduce), width, 2, reduce)
        else:
            kernel = [min(_stride(*shape, target), side) for side in shape[:2]]
            # N x h x w x C
            features = tf.nn.pool(features, kernel, mode.upper(), strides=kernel, padding="VALID")
    return tf.reshape(features, [-1, math.prod(features.shape[1:])])


def _stride(height: int, width: int, channels: int, target: int) -> int:
    return max(math.ceil(math.sqrt(height * width * channels / target)), 1)


def _adaptive_side(channels: int, target: int) -> int:
    exact = math.sqrt(target / channels)
    low, high = math.floor(exact), math.ceil(exact)
    near = low if abs(channels * low**2 - target) < abs(channels * high**2 - target) else high
    return max(near, 1)


def _regions(
    features: tf.Tensor, count: int, axis: int, reduce: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """Reduce `axis` to `count` regions that cover it: region i is [floor(i*n/count),
    ceil((i+1)*n/count))."""
    n = features.shape[axis]
    bounds = [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
    parts = [
        reduce(tf.gather(features, tf.range(*bound), axis=axis), axis, keepdims=True)
        for bound in bounds
    ]
    return tf.concat(parts, axis)

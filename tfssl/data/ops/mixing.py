"""Batches whose images are mixed in pairs: mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) and
CutMix (Yun et al., ICCV 2019, arXiv 1905.04899)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError

_POINTS = 4097  # of the table of a Beta distribution's quantiles


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
      images: [N, H, W, C].
      own: [N], how much of each image is its own; 1 - `own` is its `partner`'s.
    """

    images: tf.Tensor
    own: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How the images of a batch are mixed: rows 2 i and 2 i + 1 with one another, by one draw for
    both (timm's mode "pair"; MAE's and DeiT's code draw once for each device's batch). A pair never
    spans two replicas, so that any number of them mixes the same.

    Args:
      mixup: alpha of mixup, whose weight is drawn from Beta(alpha, alpha); 0: no mixup.
      cutmix: likewise of CutMix, where 1 minus the weight is the area of the box that comes from
        the partner; 0: no CutMix.
      switch: probability of CutMix where there are both.
      probability: of a pair's being mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix) and self.probability > 0

    def mix(self, images: tf.Tensor, draws: Draws) -> Mixed:
        """Images [N, H, W, C] in any float dtype, mixed.

        Raises:
          UserError: N is odd.
        """
        rows, height, width, _ = images.shape
        if rows % 2:
            raise UserError(
                f"mixup and cutmix mix pairs of images, and each replica has {rows}: give an even "
                "number for each (--batch_size)"
            )
        numbers = draws.uniform(shape=[5])[::2]  # of each pair
        applied, kind, weight, *center = tf.unstack(tf.repeat(numbers, 2, 0), axis=1)
        cut = (
            kind < (self.switch if self.mixup else 1.0) if self.cutmix else tf.zeros_like(kind) > 0
        )
        alphas = {alpha for alpha in (self.mixup, self.cutmix) if alpha}
        drawn = {alpha: beta(weight, alpha) for alpha in alphas}
        own = (
            tf.where(cut, drawn[self.cutmix], drawn[self.mixup])
            if self.mixup and self.cutmix
            else drawn[self.mixup or self.cutmix]
        )
        own = tf.where(applied < self.probability, own, tf.ones_like(own))
        inside, area = box(own, center[0], center[1], height, width)
        own_of_box = tf.where(inside, tf.zeros([], own.dtype), tf.ones([], own.dtype))  # NxHxW
        weights = tf.where(cut[:, None, None], own_of_box, own[:, None, None])[..., None]
        weights = tf.cast(weights, images.dtype)
        mixed = weights * images + (1 - weights) * partner(images)
        return Mixed(mixed, tf.where(cut, 1 - area, own))


def partner(rows: tf.Tensor) -> tf.Tensor:
    """The rows [N, ...] of what each is mixed with: 1, 0, 3, 2, ..."""
    pairs = tf.reshape(rows, [-1, 2, *rows.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), rows.shape)


def beta(uniform: tf.Tensor, alpha: float) -> tf.Tensor:
    """Numbers drawn from Beta(alpha, alpha), of the shape and dtype of `uniform`, in [0, 1): its
    inverse distribution function, interpolated in a table. (TensorFlow's samplers of it neither
    compile with XLA nor are stateless.)"""
    points = np.arange(_POINTS) / (_POINTS - 1)
    table = tf.constant(scipy.special.betaincinv(alpha, alpha, points), uniform.dtype)
    at = uniform * (_POINTS - 1)
    low = tf.minimum(tf.cast(at, tf.int32), _POINTS - 2)
    below, above = tf.gather(table, low), tf.gather(table, low + 1)
    return below + (at - tf.cast(low, at.dtype)) * (above - below)


def box(
    own: tf.Tensor, y: tf.Tensor, x: tf.Tensor, height: int, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """CutMix's boxes: sides of sqrt(1 - own) of the image's, rounded down to even numbers of
    pixels, about a pixel drawn of all, and cut off at the border.

    Args:
      own, y, x: [N]; the latter two uniform in [0, 1).
      height, width: of the images, in pixels.

    Returns:
      (bool [N, H, W], whether a pixel is inside; [N], fraction of the image that is).
    """

    def side(place: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
        half = tf.cast(length * tf.sqrt(1 - own), tf.int32) // 2
        center = tf.minimum(tf.cast(place * length, tf.int32), length - 1)
        low, high = tf.maximum(center - half, 0), tf.minimum(center + half, length)
        pixels = tf.range(length)[None]
        return (pixels >= low[:, None]) & (pixels < high[:, None]), high - low

    rows, tall = side(y, height)
    columns, wide = side(x, width)
    area = tf.cast(tall * wide, own.dtype) / (height * width)
    return rows[:, :, None] & columns[:, None, :], area

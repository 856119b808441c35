"""Colors as lightness and two chroma axes: CIE L*a*b* of sRGB images (IEC 61966-2-1, white D65, 2
degree observer), and back.

L is 0 to 100; of sRGB colors a is -86.2 to 98.3 and b -107.9 to 94.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfssl.precision import at_least_float32

# sRGB's primaries in XYZ, a row for each of X, Y, Z; and its white.
_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_WHITE = (0.95047, 1.0, 1.08883)
_SMALL, _SLOPE = (
    (6 / 29) ** 3,
    (29 / 6) ** 2 / 3,
)  # below the former the cube root is a line of this slope
_TINY = 1e-8  # powers have no gradient at 0


def from_rgb(images: tf.Tensor) -> tf.Tensor:
    """sRGB [..., 3] in [0, 1] -> L*a*b* [..., 3], in float32 at least."""
    x = at_least_float32(images)
    linear = tf.where(x > 0.04045, ((tf.maximum(x, _TINY) + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = _product(linear, _TO_XYZ) / tf.constant(_WHITE, x.dtype)
    f = tf.where(xyz > _SMALL, tf.maximum(xyz, _TINY) ** (1 / 3), _SLOPE * xyz + 4 / 29)
    fx, fy, fz = tf.unstack(f, axis=-1)
    return tf.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


def to_rgb(images: tf.Tensor) -> tf.Tensor:
    """L*a*b* [..., 3] -> sRGB [..., 3] in [0, 1]; what lies outside is clipped."""
    lightness, a, b = tf.unstack(at_least_float32(images), axis=-1)
    fy = (lightness + 16) / 116
    f = tf.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = tf.where(f > 6 / 29, f**3, (f - 4 / 29) / _SLOPE) * tf.constant(_WHITE, f.dtype)
    linear = _product(xyz, _FROM_XYZ)
    srgb = tf.where(
        linear > 0.0031308, 1.055 * tf.maximum(linear, _TINY) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return tf.clip_by_value(srgb, 0.0, 1.0)


def _product(x: tf.Tensor, matrix: npt.ArrayLike) -> tf.Tensor:
    """Each color [..., 3] times a matrix, in sums that no accelerator rounds to ten bits of a
    factor."""
    rows = tf.constant(matrix, x.dtype)
    return tf.stack([tf.reduce_sum(x * row, -1) for row in tf.unstack(rows)], -1)

"""RandAugment (arXiv 1909.13719) in the forms that InfoMin and CLSA train with, and DeiT and MAE
fine-tune with, for one image on the host.

Their ops and ranges are those of their code (InfoMin's is timm's port, DeiT's timm's "increasing"
ops), and act on levels 0 to 255 as Pillow's do. Other than there, geometric ops always interpolate
bilinearly: TensorFlow has no bicubic kernel for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfssl.errors import UserError

DRAWS = 5  # uniform numbers for each layer: op, coin, two for the magnitude, sign
_FILL = (124.0, 116.0, 104.0)  # ImageNet's mean
_BLACK = (0.0, 0.0, 0.0)
_Op = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@tf.function(autograph=False)  # traced once, however many views
def rand_augment(
    image: tf.Tensor,
    numbers: tf.Tensor,
    magnitude: float = 10.0,
    deviation: float = 0.5,
    pool: str = "infomin",
) -> tf.Tensor:
    """Ops drawn with replacement, each applied with probability 1/2 and at a magnitude of its own.

    Args:
      image: float [H, W, 3] in [0, 1]; rounded to 8 bits.
      numbers: uniform in [0, 1), [layers, DRAWS] (InfoMin: 2 layers).
      magnitude: mean of the magnitude, in [0, 10] (InfoMin: 10).
      deviation: its standard deviation; it is cut to [0, 10] (InfoMin: 0.5).
      pool: one of POOLS: infomin; increasing, whose ops all change the image the more the greater
        the magnitude is; or clsa, whose magnitudes are 1 to 9, all as likely.

    Returns:
      float [H, W, 3] in [0, 1] of the image's dtype, on 8-bit levels.
    """
    if image.shape[-1] != 3:
        raise UserError(
            f"RandAugment of images with {image.shape[-1]} channels: it needs 3 (RGB); leave it out"
        )
    levels = tf.round(tf.cast(image, tf.float32) * 255)
    for op, coin, radius, angle, sign in (
        tf.unstack(tf.cast(layer, tf.float32)) for layer in tf.unstack(numbers)
    ):
        if pool == "clsa":
            level = (1 + tf.floor(9 * radius)) / 10
        else:  # Box and Muller's normal number
            normal = tf.sqrt(-2 * tf.math.log(1 - radius)) * tf.cos(2 * math.pi * angle)
            level = tf.clip_by_value(magnitude + deviation * normal, 0, 10) / 10
        signed = tf.where(sign < 0.5, level, -level)
        # noqa: B023 below: what is made here is called at once.
        ways = [lambda run=run: run(levels, level, signed) for run in POOLS[pool].values()]  # noqa: B023
        number = tf.minimum(tf.cast(op * len(ways), tf.int32), len(ways) - 1)
        drawn = functools.partial(tf.switch_case, number, ways)
        levels = tf.cond(coin < 0.5, drawn, functools.partial(tf.identity, levels))
        levels = tf.ensure_shape(levels, image.shape)
    return tf.cast(levels / 255, image.dtype)


@tf.function(autograph=False)
def enhance(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """PIRL's photometric step (Misra and van der Maaten, CVPR 2020; VISSL's
    ImgPilRandomPhotometric), all four of its ops: posterized to 4 to 8 bits, sharpened by a factor
    of 0.1 to 1.9, solarized from a threshold of 0 to 256 on, and stretched by autocontrast.

    Args:
      image: float [H, W, C] in [0, 1]; rounded to 8 bits.
      numbers: uniform in [0, 1), [3]: of bits, factor and threshold.

    Returns:
      float [H, W, C] in [0, 1] of the image's dtype, on 8-bit levels.
    """
    bits, factor, threshold = tf.unstack(tf.cast(numbers, tf.float32))
    levels = tf.round(tf.cast(image, tf.float32) * 255)
    levels = sharpness(posterize(levels, 4 + tf.floor(5 * bits)), 0.1 + 1.8 * factor)
    levels = autocontrast(solarize(levels, tf.floor(257 * threshold)))
    return tf.cast(levels / 255, image.dtype)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Each channel stretched to 0 to 255."""
    low, high = tf.reduce_min(image, [0, 1]), tf.reduce_max(image, [0, 1])
    scale = 255 / tf.maximum(high - low, 1)
    return tf.where(
        high > low, tf.floor(tf.clip_by_value(image * scale - low * scale + 1e-3, 0, 255)), image
    )


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Each channel's histogram made flat."""

    def one(channel: tf.Tensor) -> tf.Tensor:
        channel = tf.cast(channel, tf.int32)
        counts = tf.math.bincount(tf.reshape(channel, [-1]), minlength=256, maxlength=256)
        step = (tf.reduce_sum(counts) - counts[tf.reduce_max(channel)]) // 255
        table = tf.minimum(
            (step // 2 + tf.cumsum(counts, exclusive=True)) // tf.maximum(step, 1), 255
        )
        return tf.where(step > 0, tf.gather(table, channel), channel)

    return tf.cast(
        tf.stack([one(channel) for channel in tf.unstack(image, axis=-1)], -1), image.dtype
    )


def posterize(image: tf.Tensor, bits: int | tf.Tensor) -> tf.Tensor:
    """Keeps the upper bits, 0 to 8."""
    step = 2.0 ** (8 - tf.cast(bits, tf.float32))
    return tf.floor(image / step) * step


def solarize(image: tf.Tensor, threshold: float | tf.Tensor) -> tf.Tensor:
    return tf.where(image < threshold, image, 255 - image)


def solarize_add(image: tf.Tensor, shift: float | tf.Tensor) -> tf.Tensor:
    return tf.where(image < 128, tf.minimum(image + shift, 255), image)


def color(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    return _blend(_luma(image), image, factor)


def contrast(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    return _blend(tf.floor(tf.reduce_mean(_luma(image)) + 0.5), image, factor)


def brightness(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    return _blend(0.0, image, factor)


def sharpness(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Against the image smoothed by Pillow's 3x3 kernel; the border stays."""
    height, width, _ = image.shape
    parts = [image[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    smooth = tf.floor((tf.add_n(parts) + 4 * parts[4]) / 13 + 0.5)
    inner = _blend(smooth, parts[4], factor)
    middle = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], 1)
    return tf.concat([image[:1], middle, image[-1:]], 0)


def rotate(
    image: tf.Tensor, degrees: float | tf.Tensor, fill: Sequence[float] = _FILL
) -> tf.Tensor:
    """To the left, about the center."""
    height, width, _ = image.shape
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    return _affine(image, [[cos, -sin], [sin, cos]], (width / 2, height / 2), fill=fill)


def shear_x(
    image: tf.Tensor, factor: float | tf.Tensor, fill: Sequence[float] = _FILL
) -> tf.Tensor:
    return _affine(image, [[1.0, factor], [0.0, 1.0]], fill=fill)


def shear_y(
    image: tf.Tensor, factor: float | tf.Tensor, fill: Sequence[float] = _FILL
) -> tf.Tensor:
    return _affine(image, [[1.0, 0.0], [factor, 1.0]], fill=fill)


def translate(
    image: tf.Tensor, x: float | tf.Tensor, y: float | tf.Tensor, fill: Sequence[float] = _FILL
) -> tf.Tensor:
    """Shows what lies x and y, as shares of width and height, to the right and below."""
    height, width, _ = image.shape
    return _affine(image, [[1.0, 0.0], [0.0, 1.0]], shift=(x * width, y * height), fill=fill)


def _affine(
    image: tf.Tensor,
    matrix: Sequence[Sequence[float | tf.Tensor]],
    center: tuple[float | tf.Tensor, float | tf.Tensor] = (0.0, 0.0),
    shift: tuple[float | tf.Tensor, float | tf.Tensor] = (0.0, 0.0),
    fill: Sequence[float] = _FILL,
) -> tf.Tensor:
    """out[p] = image[matrix (p - center) + center + shift], p = (x, y) of a pixel's middle, which
    is at 0.5 in the first one."""
    (a, b), (c, d) = matrix
    x, y = 0.5 - center[0], 0.5 - center[1]
    right, down = a * x + b * y - x + shift[0], c * x + d * y - y + shift[1]
    transform = tf.stack([tf.cast(t, tf.float32) for t in (a, b, right, c, d, down, 0, 0)])[None]
    around = tf.constant(fill)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=(image - around)[None],
        transforms=transform,
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.round(moved[0] + around)


def _luma(image: tf.Tensor) -> tf.Tensor:
    """[H, W, 1], rounded as Pillow does."""
    return tf.floor(
        tf.reduce_sum(image * tf.constant([19595.0, 38470.0, 7471.0]) / 65536, -1, keepdims=True)
        + 0.5
    )


def _blend(other: float | tf.Tensor, image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    return tf.floor(tf.clip_by_value(other + factor * (image - other) + 1e-3, 0, 255))


def _enhanced(
    op: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], least: float = 0.1, reach: float = 1.8
) -> _Op:
    return lambda image, level, signed: op(image, least + reach * level)


def _whole(x: tf.Tensor) -> tf.Tensor:
    """Rounded down, where tenths may be a little short."""
    return tf.floor(x + 1e-3)


# name -> (image, level in [0, 1], the level with a random sign) -> image
OPS = {
    "autocontrast": lambda image, level, signed: autocontrast(image),
    "equalize": lambda image, level, signed: equalize(image),
    "invert": lambda image, level, signed: 255 - image,
    "rotate": lambda image, level, signed: rotate(image, 30 * signed),
    "posterize": lambda image, level, signed: posterize(image, tf.floor(4 * level)),
    "solarize": lambda image, level, signed: solarize(image, tf.floor(256 * level)),
    "solarize_add": lambda image, level, signed: solarize_add(image, tf.floor(110 * level)),
    "color": _enhanced(color),
    "contrast": _enhanced(contrast),
    "brightness": _enhanced(brightness),
    "sharpness": _enhanced(sharpness),
    "shear_x": lambda image, level, signed: shear_x(image, 0.3 * signed),
    "shear_y": lambda image, level, signed: shear_y(image, 0.3 * signed),
    "translate_x": lambda image, level, signed: translate(image, 0.45 * signed, 0.0),
    "translate_y": lambda image, level, signed: translate(image, 0.0, 0.45 * signed),
}


def _away(op: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> _Op:
    """A factor that leaves 1, which changes nothing, for both sides: 0.1 to 1.9."""
    return lambda image, level, signed: op(image, 1 + 0.9 * signed)


INCREASING_OPS = {
    **OPS,
    "posterize": lambda image, level, signed: posterize(image, 4 - _whole(4 * level)),
    "solarize": lambda image, level, signed: solarize(image, 256 - _whole(256 * level)),
    "color": _away(color),
    "contrast": _away(contrast),
    "brightness": _away(brightness),
    "sharpness": _away(sharpness),
}
_darker = functools.partial(_enhanced, least=0.05, reach=0.9)  # never beyond the original
CLSA_OPS = {  # FixMatch's, in the ranges of CLSA's code, and black where there is no image
    "autocontrast": OPS["autocontrast"],
    "equalize": OPS["equalize"],
    "identity": lambda image, level, signed: image,
    "brightness": _darker(brightness),
    "color": _darker(color),
    "contrast": _darker(contrast),
    "sharpness": _darker(sharpness),
    "posterize": lambda image, level, signed: posterize(image, 4 + _whole(4 * level)),
    "rotate": lambda image, level, signed: rotate(
        image, tf.sign(signed) * _whole(30 * level), _BLACK
    ),
    "shear_x": lambda image, level, signed: shear_x(image, 0.3 * signed, _BLACK),
    "shear_y": lambda image, level, signed: shear_y(image, 0.3 * signed, _BLACK),
    "solarize": lambda image, level, signed: solarize(image, 256 - _whole(256 * level)),
    "translate_x": lambda image, level, signed: translate(image, 0.3 * signed, 0.0, _BLACK),
    "translate_y": lambda image, level, signed: translate(image, 0.0, 0.3 * signed, _BLACK),
}
POOLS = {"infomin": OPS, "increasing": INCREASING_OPS, "clsa": CLSA_OPS}

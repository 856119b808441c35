"""Operations on a batch of float images [N, H, W, C], for the device: colours, blur, mirroring,
quarter turns and the like.

What is random is drawn by the caller, one value per image, and passed in. All keep the dtype, need
static H and W, and compile with XLA. They are written for plain TensorFlow on the CPU as well,
where each op is a pass over the memory. Colors are those of `tf.image`, and want three channels;
the other ops take any number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.ops.draws import hash32
from tfssl.errors import UserError

Jitter = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]  # what `plan_jitter` returns

GRAY = (0.2989, 0.5870, 0.1140)  # the luma weights of tf.image.rgb_to_grayscale
_MARGIN = [[0, 0], [0, 0], [2, 2]]


def adjust_brightness(images: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Adds delta [N] to every pixel of each image, as `tf.image.adjust_brightness` does to floats:
    not clipped."""
    return images + _per_image(delta, images)


def scale_brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies each image by its factor [N] >= 0, the brightness of torchvision and of SimCLR's
    second code: not clipped."""
    return images * _per_image(factor, images)


def adjust_contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`tf.image.adjust_contrast` with a factor [N] per image: the distance from each channel's mean
    times the factor; not clipped."""
    return _by_rows(lambda rows: _contrast(rows, factor, images.shape[-1]), images)


def adjust_saturation(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`tf.image.adjust_saturation` with a factor [N] >= 0 per image: HSV's S times the factor, cut
    to 1; H and V stay.

    V is the largest channel and S = (V - smallest) / V; with H and V fixed, the distances V -
    channel are proportional to S. Values outside [0, 1] are treated as by that op: S above 1 (a
    negative channel) is cut to 1, and V <= 0 gives gray.
    """
    _needs_rgb(images, "saturation")
    channels = tf.transpose(
        images, [3, 0, 1, 2]
    )  # 3xNxHxW: a last axis of three slows every op down on the CPU
    red, green, blue = tf.unstack(channels)
    value = tf.maximum(tf.maximum(red, green), blue)  # NxHxW
    spread = value - tf.minimum(tf.minimum(red, green), blue)
    to_full_saturation = tf.math.divide_no_nan(tf.nn.relu(value), spread)  # 1 / S
    ratio = tf.minimum(tf.cast(factor, images.dtype)[:, None, None], to_full_saturation)
    return tf.transpose(ratio * channels + (1 - ratio) * value, [1, 2, 3, 0])


def adjust_hue(images: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """`tf.image.adjust_hue` with a delta [N] in [-1, 1] per image, in turns of the colour circle;
    of a pixel, the largest and the smallest value stay."""
    _needs_rgb(images, "hue")
    delta = tf.convert_to_tensor(delta)
    change = tf.stack([tf.ones_like(delta), 6 * (delta - tf.round(delta))], 1)
    return _by_rows(lambda rows: _recolour(rows, change), images)


def drop_color(images: tf.Tensor) -> tf.Tensor:
    """Gray images [N, H, W, 3]: each pixel's luma, three times, with the weights of
    `tf.image.rgb_to_grayscale`."""
    _needs_rgb(images, "gray")
    return _by_rows(lambda rows: _luma(tf.pad(rows, _MARGIN)), images)


def color_jitter(
    images: tf.Tensor,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
    hue: tf.Tensor,
    times: tf.Tensor,
    additive: bool = False,
) -> tf.Tensor:
    """The four ops of `tf.image` on images [N, H, W, 3] in [0, 1], each image in an order of its
    own; clipped to [0, 1] after each.

    Args:
      images: float [N, H, W, 3] in [0, 1]; computed in float32 at least.
      brightness: [N], factors >= 0, or, if additive, shifts.
      contrast: [N], factors >= 0.
      saturation: [N], factors >= 0.
      hue: [N] in [-1, 1], in turns of the colour circle.
      times: [N, 4], when brightness, contrast, saturation and hue have their turn: the smallest is
        first. Uniform draws make all orders equally likely.
      additive: brightness is added (SimCLR's first code, BYOL) and not multiplied (its second
        code).
    """
    return run_jitter(
        images, plan_jitter(brightness, contrast, saturation, hue, times, additive), additive
    )


def plan_jitter(
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
    hue: tf.Tensor,
    times: tf.Tensor,
    additive: bool = False,
) -> Jitter:
    """What `run_jitter` does to N images: a tuple of tensors [N, ...]. Arguments: see
    `color_jitter`.

    Saturation and hue, where one follows the other, commute, because each keeps what the other
    changes. So with both as one step, "colours", each of the 24 orders is a part of: colours,
    brightness, colours, contrast, colours, brightness, colors. An image sits out the steps that
    its order does not have.
    """
    brightness_at, contrast_at = times[:, 0:1], times[:, 1:2]  # Nx1
    colour_at = times[:, 2:]  # Nx2: saturation, hue
    after_brightness, after_contrast = colour_at >= brightness_at, colour_at >= contrast_at
    brightness_first = brightness_at < contrast_at
    turns = (
        ~after_brightness & ~after_contrast,
        after_brightness & ~after_contrast,
        after_contrast & ~after_brightness,
        after_brightness & after_contrast,
    )
    turns = tf.stack(turns, 1)  # Nx4x2
    hue = 6 * (hue - tf.round(hue))  # in sixths of a turn, -3 to 3
    colours = tf.where(
        turns, tf.stack([saturation, hue], -1)[:, None], tf.constant([1, 0], hue.dtype)
    )  # Nx4x2
    bright = tf.concat([brightness_first, ~brightness_first], 1)  # Nx2
    shades = tf.where(
        bright, brightness[:, None], tf.constant(0 if additive else 1, brightness.dtype)
    )
    return tf.reduce_any(turns, 2), colours, bright, shades, contrast


def run_jitter(images: tf.Tensor, plan: Jitter, additive: bool = False) -> tf.Tensor:
    """Images [N, H, W, 3] after a `plan_jitter` for them; of other than three channels, brightness
    and contrast alone. For one image alone, the steps that it sits out are not computed."""
    alone, channels = images.shape[0] == 1, images.shape[-1]
    coloured, colours, bright, shades, contrast = plan
    coloured, bright = (
        tf.unstack(turn[0]) if alone else [None] * turn.shape[1] for turn in (coloured, bright)
    )
    colours, shades = tf.unstack(colours, 4, axis=1), tf.unstack(shades, 2, axis=1)

    def unless_sitting_out(
        turn: tf.Tensor | None, step: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor
    ) -> tf.Tensor:
        return tf.cond(turn, lambda: step(rows), lambda: rows) if alone else step(rows)

    def colour(rows: tf.Tensor, i: int) -> tf.Tensor:
        if channels != 3:
            return rows
        return unless_sitting_out(coloured[i], lambda rows: _recolour(rows, colours[i]), rows)

    def shade(rows: tf.Tensor, i: int) -> tf.Tensor:
        change = _per_row(shades[i], rows)
        step = (
            (lambda rows: clip(rows + change))
            if additive
            else (lambda rows: tf.minimum(rows * change, 1))
        )
        return unless_sitting_out(bright[i], step, rows)

    def run(rows: tf.Tensor) -> tf.Tensor:
        rows = colour(shade(colour(rows, 0), 0), 1)
        rows = _scale_and_clip_kernel(rows, *_contrast_terms(rows, contrast, channels))
        return colour(shade(colour(rows, 2), 1), 3)

    return _by_rows(run, images)


def scale_components(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Scales the colours of each image [N, H, W, 3] along the principal components of its own
    pixels, about their mean, by the factors [N, 3], the smallest component's first (Dosovitskiy et
    al., arXiv 1406.6909, "contrast"); not clipped."""
    _needs_rgb(images, "principal components")
    pixels = tf.reshape(_wide(images), [-1, images.shape[1] * images.shape[2], 3])
    return tf.cast(
        tf.reshape(
            _scale_components_kernel(pixels, tf.cast(factors, pixels.dtype)), tf.shape(images)
        ),
        images.dtype,
    )


def adjust_hsv(
    images: tf.Tensor, powers: tf.Tensor, factors: tf.Tensor, offsets: tf.Tensor, hue: tf.Tensor
) -> tf.Tensor:
    """S and V of each image to a power, times a factor, plus an offset, and cut to [0, 1]; H is
    turned (Dosovitskiy et al., arXiv 1406.6909).

    Args:
      images: float [N, H, W, 3] in [0, 1].
      powers, factors, offsets: [N, 2], for S and for V.
      hue: [N], in turns of the colour circle.
    """
    _needs_rgb(images, "hue, saturation and value")
    wide = _wide(images)
    change = tf.stack([tf.cast(x, wide.dtype) for x in (powers, factors, offsets)], 1)[
        :, :, None, None
    ]  # Nx3x1x1x2
    return tf.cast(_adjust_hsv_kernel(wide, change, _per_image(hue, wide)), images.dtype)


def inception_color(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """The fast colour distortion of TF-slim's Inception recipe, which the 2019 study trains with
    (arXiv 1901.09005).

    Brightness by -32/255 to 32/255 and saturation times 0.5 to 1.5, not clipped between, then
    clipped to [0, 1]; of other than three channels, brightness alone. The recipe draws one of four
    orders, of which in its fast mode one is brightness first and three are saturation first.

    Args:
      images: float [N, H, W, 3] in [0, 1].
      draws: [N, 3] uniform in [0, 1): for the brightness, the saturation, and their order.
    """
    delta, factor, order = (2 * draws[:, 0] - 1) * (32 / 255), 0.5 + draws[:, 1], draws[:, 2]
    zero = tf.zeros_like(delta)
    images = adjust_brightness(images, tf.where(order < 0.25, delta, zero))
    images = adjust_saturation(images, factor) if images.shape[-1] == 3 else images
    images = adjust_brightness(images, tf.where(order < 0.25, zero, delta))
    return tf.clip_by_value(images, 0, 1)


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts, x -> 1 - x, the values of each image that are not below its threshold [N] (BYOL:
    0.5)."""
    return tf.where(images < _per_image(threshold, images), images, 1 - images)


def blur_taps(size: int) -> int:
    """The published width of the Gaussian's window for images of `size` pixels: 23 taps at 224, 3
    at 32; none below 20 (1 tap)."""
    return 2 * (size // 10 // 2) + 1


def gaussian_blur(
    images: tf.Tensor, sigma: tf.Tensor, taps: int | None = None, edges: str = "zero"
) -> tf.Tensor:
    """Each image [N, H, W, C] under a Gaussian window of its own sigma [N], in pixels.

    Args:
      images: float [N, H, W, C].
      sigma: [N] > 0, in pixels (SimCLR: 0.1 to 2 at all sizes).
      taps: odd width of the window, in pixels; None: `blur_taps` of the height. The weights within
        it sum to 1.
      edges: what lies beyond the border: "zero", as published (SimCLR's code pads with zeros, so
        that a border gets darker), or "reflect", the image mirrored about its outermost pixels (as
        the PyTorch ports).
    """
    if edges not in ("zero", "reflect"):
        raise UserError(f"a blur with edges={edges!r}: choose zero or reflect")
    _, height, width, channels = images.shape
    radius = (taps or blur_taps(height)) // 2

    def blurred(rows: tf.Tensor) -> tf.Tensor:
        apart = tf.range(-radius, radius + 1)
        weights = tf.nn.softmax(
            -0.5 * (tf.cast(apart, rows.dtype) / tf.cast(sigma, rows.dtype)[:, None]) ** 2
        )  # N x taps
        rows = _blur_kernel(_padded(rows, radius, 1, edges, height), weights, 1)
        return _blur_kernel(_padded(rows, radius, 2, edges, width, channels), weights, 2, channels)

    return _by_rows(blurred, images)


def _padded(
    rows: tf.Tensor, radius: int, axis: int, edges: str, size: int, step: int = 1
) -> tf.Tensor:
    """`radius` pixels more at both ends of an axis of rows [N, H, WC], which has `size` pixels of
    `step` values each."""
    if edges == "zero":
        return tf.pad(rows, [[radius * step] * 2 if i == axis else [0, 0] for i in range(3)])
    pixel = np.r_[-radius:0, size : size + radius]
    pixel = (size - 1) - np.abs((size - 1) - np.abs(pixel) % max(2 * (size - 1), 1))
    place = (pixel[:, None] * step + np.arange(step)).reshape(2, -1)
    left, right = (tf.gather(rows, end, axis=axis) for end in place)
    return tf.concat([left, rows, right], axis)


def gaussian_noise(images: tf.Tensor, scale: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Adds normal noise of standard deviation scale [N] to each image; not clipped.

    Args:
      images: float [N, H, W, C].
      scale: [N].
      key: [N] uniform in [0, 1): the noise of an image is a function of its key, so that no replica
        draws for the others.
    """
    shape = images.shape[1:]
    key = tf.cast(tf.cast(key, tf.float32) * 2**24, tf.int64)  # all the bits of a drawn float32
    place = tf.range(2 * math.prod(shape), dtype=tf.int64)
    bits = hash32(hash32(place) + hash32(key + 1)[:, None])
    uniform = tf.reshape((tf.cast(bits, tf.float64) + 0.5) / 2**32, [-1, 2, *shape])
    normal = tf.sqrt(-2 * tf.math.log(uniform[:, 0])) * tf.cos(
        2 * math.pi * uniform[:, 1]
    )  # Box and Muller's
    return images + _per_image(scale, images) * tf.cast(normal, images.dtype)


def sobel(images: tf.Tensor) -> tf.Tensor:
    """The strength of the edges, per channel: |(dx, dy)| / 4 of `tf.image.sobel_edges`, so that a
    straight edge from 0 to 1 gives 1; cut to 1."""
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    rows = [padded[:, i : i + height] for i in range(3)]
    columns = [padded[:, :, i : i + width] for i in range(3)]
    smooth, steep = columns[0] + 2 * columns[1] + columns[2], rows[0] + 2 * rows[1] + rows[2]
    dy, dx = smooth[:, 2:] - smooth[:, :height], steep[:, :, 2:] - steep[:, :, :width]
    return tf.minimum(tf.sqrt(dx * dx + dy * dy) / 4, 1)


def cutout(images: tf.Tensor, center: tf.Tensor, side: float, fill: float = 0.5) -> tf.Tensor:
    """Fills a square of each image; what of it lies beyond the border is cut off (arXiv
    1708.04552).

    Args:
      images: float [N, H, W, C].
      center: [N, 2] in [0, 1]: (y, x), as shares of the height and the width.
      side: of the square, in pixels.
      fill: its value; 0.5 is the zero of images normalized to [-1, 1].
    """
    inside = []
    for axis, size in enumerate(images.shape[1:3]):
        begin = tf.floor(tf.cast(center[:, axis], tf.float32) * size - side / 2 + 0.5)[
            :, None
        ]  # Nx1
        place = tf.range(size, dtype=tf.float32)
        inside.append((place >= begin) & (place < begin + side))
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return tf.where(mask[..., None], tf.constant(fill, images.dtype), images)


def flip_lr(images: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right those images [N, H, W, C] whose mask [N] (bool) is true."""
    return tf.where(mask[:, None, None, None], mirror(images), images)


def four_rotations(images: tf.Tensor) -> tf.Tensor:
    """[N, S, S, C] -> [4N, S, S, C], image-major: each image turned by k = 0..3 quarters to the
    left, as `np.rot90`."""
    _needs_square(images)
    _, height, width, channels = images.shape
    transposed = tf.transpose(images, [0, 2, 1, 3])
    # One transposition serves two quarters, and the CPU has a fast kernel for reversals of the
    # middle axis of rank 3: together it takes half the time of the plain four.
    upside_down = tf.reverse(tf.reshape(transposed, [-1, height, width * channels]), [1])
    half = tf.reverse(tf.reshape(images, [-1, height * width, channels]), [1])
    turns = [
        images,
        *(tf.reshape(turn, tf.shape(images)) for turn in (upside_down, half)),
        mirror(transposed),
    ]
    return tf.reshape(tf.stack(turns, axis=1), [-1, height, width, channels])


def quarter_turns(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turns each image [N, S, S, C] by its number of quarters [N] (0 to 3) to the left, as
    `np.rot90`."""
    _needs_square(images)
    turns = tf.cast(turns, tf.int32)[:, None, None, None]
    images = tf.where(turns % 2 == 1, tf.transpose(images, [0, 2, 1, 3]), images)
    images = tf.where((turns == 1) | (turns == 2), tf.reverse(images, [1]), images)
    return tf.where(turns >= 2, mirror(images), images)


def mirror(images: tf.Tensor) -> tf.Tensor:
    """Reverses the width of images [N, H, W, C]; as rank 3, because that kernel is fast on the
    CPU."""
    rows = tf.reshape(images, [-1, *images.shape[2:]])  # (NH)xWxC
    return tf.reshape(tf.reverse(rows, [1]), tf.shape(images))


# Colors are computed on rows [N, H, 3W]: a last axis of three slows every op down on the CPU, and
# so would taking the channels apart. Where a value wants the others of its pixel, they are up to
# two places away.


def _by_rows(function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """function([N, H, WC] of float32 at least), as images again."""
    _, height, width, channels = images.shape
    rows = function(tf.reshape(_wide(images), [-1, height, width * channels]))
    return tf.cast(tf.reshape(rows, [-1, height, width, channels]), images.dtype)


def _contrast(rows: tf.Tensor, factor: tf.Tensor, channels: int) -> tf.Tensor:
    """Not clipped. rows: [N, H, WC]."""
    factor, shift = _contrast_terms(rows, factor, channels)
    return rows * factor + shift


def _contrast_terms(
    rows: tf.Tensor, factor: tf.Tensor, channels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """(factor [N, 1, 1], what is added [N, 1, WC])."""
    width = rows.shape[2] // channels
    mean = tf.reduce_mean(tf.reshape(tf.reduce_mean(rows, 1), [-1, width, channels]), 1)  # NxC
    factor = _per_row(factor, rows)
    return factor, tf.tile(mean[:, None] * (1 - factor), [1, 1, width])


def _recolour(rows: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    """rows [N, H, 3W] with saturation times change[:, 0] and hue plus change[:, 1], in sixths of a
    turn, -3 to 3."""
    return _recolour_kernel(tf.pad(rows, _MARGIN), tf.cast(change, rows.dtype)[:, :, None, None])


def _kernel(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """One pass over memory, by XLA, in whatever graph it is called; eagerly op by op, since to
    compile would take longer. On a TPU's core the whole step is compiled anyway."""
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def kernel(*args: Any) -> tf.Tensor:
        context = tf.distribute.get_replica_context()  # None on the host of a strategy
        on_core = context and isinstance(context.strategy, tf.distribute.TPUStrategy)
        return function(*args) if tf.executing_eagerly() or on_core else compiled(*args)

    return kernel


@_kernel
def _recolour_kernel(padded: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    """With V the largest channel of a pixel and h its hue, both as seen from one channel (its own
    pure colour is at h = 0, in sixths of a turn), the channel is V where |h| < 1, V - spread where
    |h| > 2, and linear between; a saturation changes the spread."""
    saturation, hue = change[:, 0], change[:, 1]
    own, following, previous = _pixel(padded)
    value = tf.maximum(tf.maximum(own, following), previous)  # NxHx3W
    lowest = tf.minimum(tf.minimum(own, following), previous)
    spread = value - lowest
    is_own, is_following = own >= value, following >= value
    rise = tf.where(
        is_own, following - previous, tf.where(is_following, previous - own, own - following)
    )
    away = tf.abs(
        tf.where(is_own, hue, tf.where(is_following, hue + 2, hue - 2)) * spread + rise
    )  # |h| * spread
    away = tf.minimum(away, 6 * spread - away)
    below = tf.minimum(tf.nn.relu(away - spread), spread)
    recoloured = value - below * tf.minimum(
        saturation, tf.math.divide_no_nan(tf.nn.relu(value), spread)
    )  # S is at most 1
    return tf.maximum(recoloured, tf.minimum(lowest, 0))  # rounding errors do not leave [0, 1]


@_kernel
def _scale_and_clip_kernel(rows: tf.Tensor, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(rows * factor + shift, 0, 1)


@_kernel
def _scale_components_kernel(pixels: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """pixels [N, P, 3]. A kernel, because outside XLA a GPU computes the eigenvectors of one image
    after those of another."""
    mean = tf.reduce_mean(pixels, 1, keepdims=True)
    apart = pixels - mean
    _, axes = tf.linalg.eigh(tf.matmul(apart, apart, transpose_a=True))  # Nx3x3, one in each column
    return mean + tf.matmul(tf.matmul(apart, axes * factors[:, None]), axes, transpose_b=True)


@_kernel
def _adjust_hsv_kernel(images: tf.Tensor, change: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    turned = tf.image.rgb_to_hsv(images)
    angle, rest = turned[..., :1] + hue, turned[..., 1:]
    power, factor, offset = tf.unstack(change, axis=1)
    rest = clip(rest**power * factor + offset)
    return tf.image.hsv_to_rgb(tf.concat([angle - tf.floor(angle), rest], -1))


@_kernel
def _luma(padded: tf.Tensor) -> tf.Tensor:
    at, is_red, is_green = _shifts(padded)
    red = tf.where(is_red, at(0), tf.where(is_green, at(-1), at(-2)))
    green = tf.where(is_red, at(1), tf.where(is_green, at(0), at(-1)))
    blue = tf.where(is_red, at(2), tf.where(is_green, at(1), at(0)))
    return red * GRAY[0] + green * GRAY[1] + blue * GRAY[2]


def _pixel(padded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of each value in rows [N, H, 3W]: itself, the channel that follows in the circle red, green,
    blue, and the one before."""
    at, is_red, is_green = _shifts(padded)
    return at(0), tf.where(is_red | is_green, at(1), at(-2)), tf.where(is_red, at(2), at(-1))


def _shifts(padded: tf.Tensor) -> tuple[Callable[[int], tf.Tensor], tf.Tensor, tf.Tensor]:
    """(function: k -> what is k places further, whether a value is red, green) of rows with
    `_MARGIN`."""
    length = padded.shape[2] - 4
    channel = np.arange(length) % 3
    return (
        lambda k: padded[:, :, 2 + k : 2 + k + length],
        tf.constant(channel == 0),
        tf.constant(channel == 1),
    )


@_kernel
def _blur_kernel(padded: tf.Tensor, weights: tf.Tensor, axis: int, step: int = 1) -> tf.Tensor:
    """One pass of the blur along an axis of rows, by weights [N, taps] of values that are `step`
    apart. Each pass is a kernel: in one, XLA would compute the first pass anew for each tap of the
    second."""
    taps = weights.shape[1]
    size = padded.shape[axis] - (taps - 1) * step

    def shifted(k: int) -> tf.Tensor:
        return padded[:, k : k + size] if axis == 1 else padded[:, :, k * step : k * step + size]

    total = shifted(taps // 2) * weights[:, taps // 2, None, None]
    for k in range(taps // 2):  # the weights are symmetric
        total += (shifted(k) + shifted(taps - 1 - k)) * weights[:, k, None, None]
    return total


def _per_row(values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, rows.dtype)[:, None, None]


def _per_image(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, images.dtype)[:, None, None, None]


def _wide(images: tf.Tensor) -> tf.Tensor:
    """In float32 at least."""
    return tf.cast(images, tf.float64 if images.dtype == tf.float64 else tf.float32)


def clip(images: tf.Tensor) -> tf.Tensor:
    """To [0, 1], float32 or float64; in one pass, where tf.clip_by_value takes two."""
    low, high = tf.constant(0, images.dtype), tf.constant(1, images.dtype)
    return tf.raw_ops.ClipByValue(t=images, clip_value_min=low, clip_value_max=high)


def _needs_rgb(images: tf.Tensor, what: str) -> None:
    if images.shape[-1] != 3:
        raise UserError(
            f"{what} of images with {images.shape[-1]} channels: colours need 3 (RGB); leave out "
            "the colour ops"
        )


def _needs_square(images: tf.Tensor) -> None:
    _, height, width, _ = images.shape
    if height != width:
        raise UserError(
            f"images of {height} x {width} cannot be turned by 90 degrees in a batch: they must be "
            "square"
        )

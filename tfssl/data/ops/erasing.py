"""Random erasing: Zhong et al., AAAI 2020 (arXiv 1708.04896)."""

from __future__ import annotations

import math

import tensorflow as tf

from tfssl.data.ops.draws import fork

ATTEMPTS = 10  # at a rectangle that fits


def random_erasing(
    image: tf.Tensor,
    seed: tf.Tensor,
    probability: float,
    area_range: tuple[float, float] = (0.02, 1 / 3),
    aspect_range: tuple[float, float] = (0.3, 1 / 0.3),
) -> tf.Tensor:
    """With a probability, noise in place of one rectangle of an image: in every pixel and channel a
    value of its own, uniform over all (the paper's RE-R).

    Area and the logarithm of the aspect ratio are uniform, as in timm's code, whose defaults these
    are; a rectangle that does not fit is drawn again, up to ten times.

    Args:
      image: uint8 [H, W, C], or float in [0, 1], of static shape.
      seed: int64 [2].
      area_range: of the rectangle, as fractions of the image's.
      aspect_range: height by width.
    """
    height, width, channels = image.shape
    numbers = tf.random.stateless_uniform([2 * ATTEMPTS], fork(seed, 0), dtype=tf.float32)
    area = area_range[0] + (area_range[1] - area_range[0]) * numbers[:ATTEMPTS]
    least, most = map(math.log, aspect_range)
    aspect = tf.exp(least + (most - least) * numbers[ATTEMPTS:])
    tall = tf.cast(tf.round(tf.sqrt(area * height * width * aspect)), tf.int32)
    wide = tf.cast(tf.round(tf.sqrt(area * height * width / aspect)), tf.int32)
    fits = (tall < height) & (wide < width)
    chosen = tf.argmax(tf.cast(fits, tf.int32))  # the first
    tall, wide = tall[chosen], wide[chosen]
    places = tf.random.stateless_uniform([3], fork(seed, 1), dtype=tf.float32)
    applied = (places[2] < probability) & tf.reduce_any(fits)

    def side(place: tf.Tensor, extent: tf.Tensor, length: int) -> tf.Tensor:
        room = length - extent + 1
        first = tf.minimum(tf.cast(place * tf.cast(room, tf.float32), tf.int32), room - 1)
        pixels = tf.range(length)
        return (pixels >= first) & (pixels < first + extent)

    def erased() -> tf.Tensor:
        inside = side(places[0], tall, height)[:, None] & side(places[1], wide, width)[None]
        shape = [height, width, channels]
        if image.dtype == tf.uint8:
            noise = tf.random.stateless_uniform(shape, fork(seed, 2), 0, 256, tf.int32)
        else:
            noise = tf.random.stateless_uniform(shape, fork(seed, 2))
        return tf.where(inside[..., None], tf.cast(noise, image.dtype), image)

    return tf.cond(applied, erased, lambda: image)

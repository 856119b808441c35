"""Patches of images: on a regular grid, cut with jitter on the host or out of whole images on the
device; one by itself, where there is something to see, moved and turned; standardized."""

from __future__ import annotations

import math

import tensorflow as tf


def grid_offsets(seed: tf.Tensor | None, side: int, crop: int, grid: int, size: int) -> tf.Tensor:
    """Where patches lie in a square image: one in each cell of a crop.

    A crop of crop x crop, at a random place, has grid x grid cells of crop // grid pixels, and each
    cell a patch of size x size at a random place of its own, all uniform.

    Args:
      seed: int64 [2], or None: the crop and every patch lie in the center (of an odd margin the
        smaller half is above and to the left).
      side, crop, grid, size: the image's side, the crop's, cells per side, a patch's side; side >=
        crop, crop // grid >= size.

    Returns:
      int32 [grid * grid, 2], (y, x) of the patches' upper left corners, in raster order.
    """
    cell = crop // grid
    corners = tf.constant(
        [(cell * i, cell * j) for i in range(grid) for j in range(grid)], tf.int32
    )
    if seed is None:
        return corners + (side - crop) // 2 + (cell - size) // 2
    bits = tf.raw_ops.StatelessRandomUniformFullInt(
        shape=[1 + grid * grid, 2], seed=seed, dtype=tf.int64
    )
    return corners + tf.cast(bits[:1] % (side - crop + 1) + bits[1:] % (cell - size + 1), tf.int32)


def cut(image: tf.Tensor, offsets: tf.Tensor, size: int) -> tf.Tensor:
    """[H, W, C] and int32 [P, 2] -> [P, size, size, C]: the squares whose upper left corners are at
    `offsets`."""
    begins = tf.unstack(tf.pad(offsets, [[0, 0], [0, 1]]))
    return tf.stack([tf.slice(image, begin, [size, size, image.shape[-1]]) for begin in begins])


def salient_corner(image: tf.Tensor, uniform: float | tf.Tensor, size: int) -> tf.Tensor:
    """A place for a square patch, with a probability proportional to the gradients in it: their
    magnitudes, of the mean of the channels, summed over the patch. (Of an image of one color all
    places are alike.)

    Args:
      image: [H, W, C], H and W at least `size`.
      uniform: a number in [0, 1), which chooses the place.
      size: side of the patch, in pixels; at least 2.

    Returns:
      int32 [2], (y, x) of its upper left corner.
    """
    levels = tf.reduce_mean(tf.cast(image, tf.float64), -1)
    down, right = levels[1:, :-1] - levels[:-1, :-1], levels[:-1, 1:] - levels[:-1, :-1]
    sums = tf.pad(
        tf.cumsum(tf.cumsum(tf.sqrt(down**2 + right**2), 0), 1), [[1, 0], [1, 0]]
    )  # over all above and to the left
    k = size - 1  # gradients between the pixels of a patch, on either axis
    mass = sums[k:, k:] - sums[:-k, k:] - sums[k:, :-k] + sums[:-k, :-k]  # of a patch at each place
    cumulative = tf.cumsum(tf.reshape(tf.maximum(mass, 0) + 1e-6, [-1]))
    chosen = tf.searchsorted(
        cumulative, [tf.cast(uniform, tf.float64) * cumulative[-1]], side="right"
    )[0]
    columns = tf.shape(mass)[1]
    chosen = tf.minimum(chosen, tf.size(mass) - 1)
    return tf.stack([chosen // columns, chosen % columns])


def affine_patch(
    image: tf.Tensor,
    corner: tf.Tensor,
    size: int,
    shift: tf.Tensor,
    scale: float | tf.Tensor,
    angle: float | tf.Tensor,
) -> tf.Tensor:
    """A square patch that is moved, scaled and turned about its middle, in one bilinear resampling;
    beyond its border the image is mirrored.

    Args:
      image: uint8 [H, W, C].
      corner: [2], (y, x) of the upper left corner of the patch as it would be otherwise.
      size: its side, in pixels.
      shift: [2], (y, x): where it looks further down and to the right, in sides.
      scale: what it shows is so much larger.
      angle: and turned to the left, in degrees.

    Returns:
      uint8 [size, size, C].
    """
    angle, half = angle * (math.pi / 180), (size - 1) / 2
    y, x = tf.unstack(
        tf.cast(corner, tf.float32) + half + size * shift
    )  # what the middle of the patch shows
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    # Row by row: the x, and the y, in the image of the pixel (x, y) of the patch.
    to_image = tf.stack(
        [cos, -sin, x - half * (cos - sin), sin, cos, y - half * (sin + cos), 0.0, 0.0]
    )
    patch = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=to_image[None],
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]
    return tf.cast(tf.round(tf.ensure_shape(patch, [size, size, image.shape[-1]])), tf.uint8)


def gray(images: tf.Tensor) -> tf.Tensor:
    """uint8 [..., 3] -> the same shape: all three channels are their mean, rounded."""
    # Exact, since the sum of three bytes is; and a product with a matrix is faster than a sum over
    # a last axis of three.
    pixels = tf.reshape(tf.cast(images, tf.float32), [-1, 3])
    mean = tf.round(tf.matmul(pixels, tf.ones([3, 3])) / 3)
    return tf.reshape(tf.cast(mean, tf.uint8), tf.shape(images))


def grid_cells(images: tf.Tensor, grid: int) -> tf.Tensor:
    """[N, H, W, C] -> [N * grid * grid, H // grid, W // grid, C]: the cells of the central part,
    image-major, in raster order."""
    size = tf.shape(images)[1:3]
    (height, width), (top, left) = tf.unstack(size // grid), tf.unstack(size % grid // 2)
    images = images[:, top : top + grid * height, left : left + grid * width]
    channels = images.shape[-1]
    cells = tf.transpose(
        tf.reshape(images, [-1, grid, height, grid, width, channels]), [0, 1, 3, 2, 4, 5]
    )
    return tf.reshape(cells, [-1, height, width, channels])


def standardize(images: tf.Tensor) -> tf.Tensor:
    """Each image of [N, H, W, C] in [0, 1] to mean 0 and variance 1 over all its pixels and
    channels, in float32 at least.

    As `tf.image.per_image_standardization` of the levels 0 to 255: a deviation below 1 / sqrt(HWC)
    levels counts as that.
    """
    images = tf.cast(images, tf.float32) if images.dtype.size < 4 else images
    mean, variance = tf.nn.moments(images, axes=[1, 2, 3], keepdims=True)
    values = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), images.dtype)
    return (images - mean) / tf.sqrt(tf.maximum(variance, 1 / (255.0**2 * values)))

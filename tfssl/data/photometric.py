"""Operations on a batch of float images [N, H, W, 3], for the device; what is random is drawn by the caller and passed in."""

import tensorflow as tf


def adjust_brightness(images, delta):
    """Adds delta [N] to every pixel of each image; not clipped."""
    return images + tf.cast(delta, images.dtype)[:, None, None, None]


def adjust_saturation(images, factor):
    """`tf.image.adjust_saturation` with a factor [N] for each image: HSV's S times the factor, cut to [0, 1]; H and V stay.

    In closed form: S scales the distances of the channels from the largest. Values outside [0, 1] are treated as that op treats them.
    """
    value = tf.reduce_max(images, -1, keepdims=True)  # NxHxWx1
    spread = value - tf.reduce_min(images, -1, keepdims=True)
    saturation = tf.math.divide_no_nan(spread, tf.maximum(value, 0))
    wanted = tf.clip_by_value(saturation * tf.cast(factor, images.dtype)[:, None, None, None], 0, 1)
    return value - (value - images) * tf.math.divide_no_nan(wanted, saturation)


def inception_color(images, draws):
    """TF-slim's fast Inception colours: brightness by up to 32/255, saturation by 0.5 to 1.5, clipped to [0, 1] at the end.

    Args:
      images: float [N, H, W, 3] in [0, 1].
      draws: [N, 3], uniform in [0, 1): for brightness, saturation, and their order (brightness first in a quarter of the cases).
    """
    delta, factor, order = (2 * draws[:, 0] - 1) * (32 / 255), 0.5 + draws[:, 1], draws[:, 2]
    first = tf.cast(order < 0.25, images.dtype) * tf.cast(delta, images.dtype)
    images = adjust_saturation(adjust_brightness(images, first), factor)
    images = adjust_brightness(images, tf.cast(delta, images.dtype) - first)
    return tf.clip_by_value(images, 0, 1)


def four_rotations(images):
    """[N, S, S, C] -> [4N, S, S, C], image-major: each image turned k times by 90 degrees counter-clockwise, k = 0..3, as np.rot90."""
    turned = [
        images,
        tf.transpose(tf.reverse(images, [2]), [0, 2, 1, 3]),
        tf.reverse(images, [1, 2]),
        tf.reverse(tf.transpose(images, [0, 2, 1, 3]), [2]),
    ]
    return tf.reshape(tf.stack(turned, 1), [-1, *images.shape[1:]])

"""Operations on a batch of float images [N, H, W, 3], for the device: colours, mirroring, quarter turns.

What is random is drawn by the caller, one value per image, and passed in. All keep the dtype, need static H and W, and
compile with XLA. They are written for plain TensorFlow on the CPU as well, where each op is a pass over the memory.
"""

import tensorflow as tf

from tfssl.errors import UserError


def adjust_brightness(images, delta):
    """Adds delta [N] to every pixel of each image, as `tf.image.adjust_brightness` does to floats: not clipped."""
    return images + tf.cast(delta, images.dtype)[:, None, None, None]


def adjust_saturation(images, factor):
    """`tf.image.adjust_saturation` with a factor [N] >= 0 per image: HSV's S times the factor, cut to 1; H and V stay.

    V is the largest channel and S = (V - smallest) / V; with H and V fixed, the distances V - channel are
    proportional to S. Values outside [0, 1] are treated as by that op: S above 1 (a negative channel) is cut to 1,
    and V <= 0 gives gray.
    """
    channels = tf.transpose(images, [3, 0, 1, 2])  # 3xNxHxW: a last axis of three slows every op down on the CPU
    red, green, blue = tf.unstack(channels)
    value = tf.maximum(tf.maximum(red, green), blue)  # NxHxW
    spread = value - tf.minimum(tf.minimum(red, green), blue)
    to_full_saturation = tf.math.divide_no_nan(tf.nn.relu(value), spread)  # 1 / S
    ratio = tf.minimum(tf.cast(factor, images.dtype)[:, None, None], to_full_saturation)
    return tf.transpose(ratio * channels + (1 - ratio) * value, [1, 2, 3, 0])


def inception_color(images, draws):
    """The fast colour distortion of TF-slim's Inception recipe, which the 2019 study trains with (arXiv 1901.09005).

    Brightness by -32/255 to 32/255 and saturation times 0.5 to 1.5, not clipped between, then clipped to [0, 1]. The
    recipe draws one of four orders, of which in its fast mode one is brightness first and three are saturation first.

    Args:
      images: float [N, H, W, 3] in [0, 1].
      draws: [N, 3] uniform in [0, 1): for the brightness, the saturation, and their order.
    """
    delta, factor, order = (2 * draws[:, 0] - 1) * (32 / 255), 0.5 + draws[:, 1], draws[:, 2]
    zero = tf.zeros_like(delta)
    images = adjust_brightness(images, tf.where(order < 0.25, delta, zero))
    images = adjust_saturation(images, factor)
    images = adjust_brightness(images, tf.where(order < 0.25, zero, delta))
    return tf.clip_by_value(images, 0, 1)


def flip_lr(images, mask):
    """Mirrors left and right those images [N, H, W, C] whose mask [N] (bool) is true."""
    return tf.where(mask[:, None, None, None], _mirror(images), images)


def four_rotations(images):
    """[N, S, S, C] -> [4N, S, S, C], image-major: each image turned by k = 0..3 quarters to the left, as `np.rot90`."""
    _, height, width, channels = images.shape
    if height != width:
        raise UserError(f"images of {height} x {width} cannot be turned by 90 degrees in a batch: they must be square")
    transposed = tf.transpose(images, [0, 2, 1, 3])
    # One transposition serves two quarters, and the CPU has a fast kernel for reversals of the middle axis of rank 3:
    # together it takes half the time of the plain four.
    upside_down = tf.reverse(tf.reshape(transposed, [-1, height, width * channels]), [1])
    half = tf.reverse(tf.reshape(images, [-1, height * width, channels]), [1])
    turns = [images, *(tf.reshape(turn, tf.shape(images)) for turn in (upside_down, half)), _mirror(transposed)]
    return tf.reshape(tf.stack(turns, axis=1), [-1, height, width, channels])


def _mirror(images):
    """Reverses the width; as rank 3, because that kernel is fast on the CPU."""
    rows = tf.reshape(images, [-1, *images.shape[2:]])  # (NH)xWxC
    return tf.reshape(tf.reverse(rows, [1]), tf.shape(images))

"""SIGReg, a distance of embeddings from an isotropic Gaussian: Balestriero and LeCun, "LeJEPA"
(arXiv 2511.08544)."""

from __future__ import annotations

import math

import tensorflow as tf

from tfssl.losses import replicas
from tfssl.precision import at_least_float32

_KNOTS, _RANGE = 17, 3.0  # where the characteristic functions are compared: 0 to 3
# of standard normal embeddings: the integral of phi - phi^3 over -3 to 3, phi = exp(-t^2 / 2)
EXPECTED = 1.053
COLLAPSED = (
    0.402  # times N: of embeddings that are all zero, the integral of phi (1 - phi)^2 over -3 to 3
)


def sigreg(
    z: tf.Tensor, along: tf.Tensor | None = None, weight: tf.Tensor | None = None
) -> tf.Tensor:
    """The test of Epps and Pulley for a standard normal distribution, of the embeddings'
    projections on each direction: the mean over the directions. It compares the characteristic
    functions at 17 points of 0 to 3, by the trapezoid rule.

    Args:
      z: embeddings of the images, [N, D]; the batch is that of all replicas.
      along: unit vectors, [D, M]; 256 random ones by default, always the same.
      weight: [N], 0 for rows that do not count. All count by default.

    Returns:
      A scalar of float32 at least: about 1.05 for standard normal embeddings, whatever N; 0.402 N
      for those that are all zero.
    """
    z = at_least_float32(z)
    if along is None:
        along = tf.math.l2_normalize(tf.random.stateless_normal([z.shape[1], 256], [17, 0]), 0)
    along = tf.cast(along, z.dtype)
    w = tf.ones([z.shape[0], 1], z.dtype) if weight is None else tf.cast(weight, z.dtype)[:, None]
    n = replicas.total(tf.reduce_sum(w))
    spacing = _RANGE / (_KNOTS - 1)
    angle = spacing * tf.matmul(z, along)  # NxM
    first = cos, sin = tf.cos(angle), tf.sin(angle)
    means = []
    for k in range(1, _KNOTS):  # at 0 every characteristic function is 1
        means += [tf.reduce_sum(w * cos, 0), tf.reduce_sum(w * sin, 0)]
        if k + 1 < _KNOTS:  # the angle's next multiple, without another cosine
            cos, sin = cos * first[0] - sin * first[1], sin * first[0] + cos * first[1]
    real, imaginary = tf.unstack(
        tf.reshape(replicas.total(tf.stack(means)) / n, [_KNOTS - 1, 2, -1]), axis=1
    )  # KxM
    phi = [math.exp(-((spacing * k) ** 2) / 2) for k in range(1, _KNOTS)]
    share = [
        phi[k - 1] * spacing * (1 if k == _KNOTS - 1 else 2) for k in range(1, _KNOTS)
    ]  # both halves; the end by half
    normal = tf.constant(phi, z.dtype)[:, None]
    error = tf.square(real - normal) + tf.square(imaginary)
    return n * tf.reduce_mean(tf.reduce_sum(tf.constant(share, z.dtype)[:, None] * error, 0))

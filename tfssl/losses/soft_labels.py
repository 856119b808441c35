"""Cross-entropy with labels that are distributions: smoothed (Szegedy et al., CVPR 2016, arXiv
1512.00567), or those of mixed images."""

from __future__ import annotations

import tensorflow as tf

from tfssl.precision import at_least_float32


def soft_targets(labels: tf.Tensor, classes: int, smoothing: float = 0.0) -> tf.Tensor:
    """[N, C] of Keras's floatx: 1 - smoothing on the label and smoothing / C on every class. A row
    of zeros where there is no label (-1), which has no loss then.

    Args:
      labels: int64 [N].
      classes: C.
      smoothing: in [0, 1).
    """
    floatx = tf.keras.backend.floatx()
    known = tf.cast(labels >= 0, floatx)[:, None]
    return (1 - smoothing) * tf.one_hot(labels, classes, dtype=floatx) + smoothing / classes * known


def soft_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-sum targets * log softmax(logits), [N] in float32 at least.

    Written out: the fused op takes for granted that the targets of a row sum to 1, and has a wrong
    gradient where part of a mixed image has no label.

    Args:
      targets: [N, C].
      logits: [N, C].
    """
    log_p = tf.nn.log_softmax(at_least_float32(logits))
    return -tf.reduce_sum(tf.cast(targets, log_p.dtype) * log_p, -1)

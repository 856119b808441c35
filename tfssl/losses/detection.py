"""Losses of detectors: pure functions of logits and boxes (top, left, bottom, right)."""

from __future__ import annotations

import tensorflow as tf

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


def focal(logits: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Focal loss of each entry (Lin et al., ICCV 2017, arXiv 1708.02002): logits and truth, 0 or 1,
    of one shape -> the losses, of that shape."""
    loss = tf.nn.sigmoid_cross_entropy_with_logits(truth, logits)
    wrong = tf.abs(truth - tf.sigmoid(logits))
    return loss * wrong**GAMMA * tf.abs(truth - (1 - ALPHA))


def overlaps(one: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(IoU in [0, 1], generalized IoU in [-1, 1]) of pairs of boxes [..., 4]: [...] each
    (Rezatofighi et al., CVPR 2019, arXiv 1902.09630)."""

    def area(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return tf.reduce_prod(tf.maximum(high - low, 0.0), -1)

    (a, b), (c, d) = (tf.split(boxes, 2, -1) for boxes in (one, other))
    both = area(tf.maximum(a, c), tf.minimum(b, d))
    union = area(a, b) + area(c, d) - both
    hull = area(tf.minimum(a, c), tf.maximum(b, d))
    iou = tf.math.divide_no_nan(both, union)
    return iou, iou - tf.math.divide_no_nan(hull - union, hull)


def centerness(ends: tf.Tensor) -> tf.Tensor:
    """How central a place is in its object, in [0, 1] (Tian et al., ICCV 2019, arXiv 1904.01355,
    equation 3): distances to the sides (top, left, bottom, right) [..., 4] -> [...]; 0 outside."""
    ends = tf.maximum(ends, 0.0)
    low, high = tf.minimum(ends[..., :2], ends[..., 2:]), tf.maximum(ends[..., :2], ends[..., 2:])
    product = tf.reduce_prod(tf.math.divide_no_nan(low, high), -1)
    # the square root has no gradient at 0, which an object's edge is
    return tf.where(product > 0, tf.sqrt(tf.where(product > 0, product, 1.0)), 0.0)

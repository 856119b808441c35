"""Learning from a teacher's probabilities: Hinton et al., arXiv 1503.02531; Chen et al., arXiv
2006.10029, Section 2.3; and from a teacher of one's own, Caron et al., "DINO" (arXiv
2104.14294)."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfssl.precision import at_least_float32


def distillation(
    logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
) -> tf.Tensor:
    """-sum_y P_T(y | x; t) log P_S(y | x; t), in float32 at least.

    Args:
      logits: the student's, [N, C].
      teacher_logits: [N, C]; no gradient flows into them.
      temperature: t, what both are divided by before the softmax: below 1 the teacher's first
        choice counts more.
      scale_by_t2: times t^2, so that gradients are of one size for all temperatures. SimCLR v2's
        notebook does that, its paper's equation does not.

    Returns:
      [N].
    """
    taught = tf.nn.softmax(tf.stop_gradient(at_least_float32(teacher_logits)) / temperature)  # NxC
    loss = tf.nn.softmax_cross_entropy_with_logits(taught, at_least_float32(logits) / temperature)
    return loss * temperature**2 if scale_by_t2 else loss


class Dino(NamedTuple):
    """Of each image, [N]: the cross-entropy, and the entropy of the teacher's probabilities."""

    loss: tf.Tensor
    entropy: tf.Tensor


def dino(
    scores: tf.Tensor,
    targets: tf.Tensor,
    center: tf.Tensor,
    temperature: float = 0.1,
    teacher_temperature: float | tf.Tensor = 0.04,
) -> Dino:
    """Cross-entropy of each view's probabilities with the teacher's of the other large views of the
    image, which are centered and sharpened against collapse (arXiv 2104.14294, Section 3.1).

    Args:
      scores: the student's of V views, [N, V, K], the G large ones first.
      targets: the teacher's of the large views, [N, G, K]; no gradient flows into them.
      center: mean of the teacher's scores in earlier steps, [K].
      temperature: what the student's scores are divided by.
      teacher_temperature: what the teacher's are divided by.

    Returns:
      `Dino`, of float32 at least: means over the pairs of a large view and another view.
    """
    scores, targets = at_least_float32(scores), at_least_float32(targets)
    sharp = (tf.stop_gradient(targets) - center) / teacher_temperature  # NxGxK
    taught, guesses = tf.nn.softmax(sharp), tf.nn.log_softmax(scores / temperature)  # NxGxK, NxVxK
    large, views = targets.shape[1], scores.shape[1]
    # Summed over all pairs, less those of a view with itself.
    total = tf.reduce_sum(tf.reduce_sum(taught, 1) * tf.reduce_sum(guesses, 1), 1)
    own = tf.reduce_sum(taught * guesses[:, :large], [1, 2])
    entropy = -tf.reduce_mean(tf.reduce_sum(taught * tf.nn.log_softmax(sharp), 2), 1)
    return Dino((own - total) / (large * (views - 1)), entropy)

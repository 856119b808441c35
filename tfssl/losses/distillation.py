"""Learning from a teacher's probabilities: Hinton et al., arXiv 1503.02531; Chen et al., arXiv 2006.10029, Section 2.3."""

from __future__ import annotations

import tensorflow as tf

from tfssl.losses.precision import at_least_float32


def distillation(
    logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float = 1.0, scale_by_t2: bool = False
) -> tf.Tensor:
    """-sum_y P_T(y | x; t) log P_S(y | x; t), in float32 at least.

    Args:
      logits: the student's, [N, C].
      teacher_logits: [N, C]; no gradient flows into them.
      temperature: t, what both are divided by before the softmax: below 1 the teacher's first choice counts more.
      scale_by_t2: times t^2, so that gradients are of one size for all temperatures. SimCLR v2's notebook does that, its paper's equation
        does not.

    Returns:
      [N].
    """
    taught = tf.nn.softmax(tf.stop_gradient(at_least_float32(teacher_logits)) / temperature)  # NxC
    loss = tf.nn.softmax_cross_entropy_with_logits(taught, at_least_float32(logits) / temperature)
    return loss * temperature**2 if scale_by_t2 else loss

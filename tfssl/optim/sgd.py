"""Stochastic gradient descent with momentum: Keras's own, of both kinds."""

from typing import Any

import tensorflow as tf

from tfssl.optim.base import Optimizer, Rate


class SGD(Optimizer, tf.keras.optimizers.SGD):
    """With gradient g, momentum buffer v, learning rate r and momentum m:
    v <- m v - r g, w <- w + v.

    Args:
      learning_rate: a number or a schedule.
      momentum: m, the fraction of the last step that the next one keeps (2019 study, SimCLR, SwAV:
        0.9).
    """

    def __init__(self, learning_rate: Rate, momentum: float = 0.9, **common: Any) -> None:
        super().__init__(learning_rate=learning_rate, momentum=momentum, **common)


class Nesterov(SGD):
    """SGD whose step looks ahead: v <- m v - r g, w <- w + m v - r g (Sutskever et al., ICML
    2013)."""

    def __init__(self, learning_rate: Rate, **common: Any) -> None:
        super().__init__(learning_rate, **{**common, "nesterov": True})

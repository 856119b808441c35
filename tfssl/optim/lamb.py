"""LAMB: Adam whose steps are as long as the weights say."""

from typing import Any

import tensorflow as tf

from tfssl.optim.adamw import AdamW
from tfssl.optim.base import Rate


class LAMB(AdamW):
    """You et al., ICLR 2020 (arXiv 1904.00962), Algorithm 2: AdamW's update u + d w of a kernel,
    times |w| / |u + d w|.

    Norms are those of one variable; where one of them is 0 the factor is 1. What is no kernel has
    neither that factor nor decay: it takes Adam's step. The arithmetic is that of
    tensorflow-addons' LAMB, to the bit.

    Args:
      learning_rate: a number or a schedule.
      momentum: beta_1, the decay of the first moment per step.
      weight_decay: d, a number or a schedule. It replaces the loss's.
      beta_2: the decay of the second moment per step (PyTorch, DINO: 0.999; MAE: 0.95).
      epsilon: added to the root of the second moment once its bias is corrected (the paper: 1e-6).
    """

    adapts = True

    def __init__(
        self,
        learning_rate: Rate,
        momentum: float = 0.9,
        weight_decay: Rate = 0.0,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        name: str = "LAMB",
        **common: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, weight_decay, beta_2, epsilon, name, **common)

    def trust(self, w: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
        of_w, of_update = tf.norm(w), tf.norm(update)
        return tf.where((of_w > 0) & (of_update > 0), of_w / of_update, tf.ones_like(of_w))

    # Runs began with tensorflow-addons' LAMB: two names and the slots of its checkpoints restore
    # into ours.

    def _lookup_dependency(self, name: str, *cached: Any) -> Any:
        """Any scalar will do for the current rate, which each step computes."""
        names = {"iter": "_iterations", "decay": "_current_learning_rate"}
        return super()._lookup_dependency(names.get(name, name), *cached)

    def _create_or_restore_slot_variable(
        self, slot_variable_position: Any, slot_name: str, variable: tf.Variable
    ) -> None:
        slots = {"m": self.momentums, "v": self.velocities}[slot_name]
        slot_variable_position.restore(slots[self._index_dict[self._var_key(variable)]])

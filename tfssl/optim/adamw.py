"""AdamW: Adam with weight decay apart from the gradient."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.optim.base import Optimizer, Rate


class AdamW(Optimizer):
    """Loshchilov and Hutter, ICLR 2019 (arXiv 1711.05101), as in PyTorch. At step k, with weights
    w and gradient g:

      m <- beta_1 m + (1 - beta_1) g       v <- beta_2 v + (1 - beta_2) g^2
      u = m / (1 - beta_1^k) / (sqrt(v / (1 - beta_2^k)) + epsilon)
      w <- w - r (u + d w)

    Decay d acts on kernels: not on biases and normalizations, nor on what is no layer's kernel,
    such as class tokens and positions, which the repositories of DINO, MAE and I-JEPA decay.

    Args:
      learning_rate: r, a number or a schedule.
      momentum: beta_1, the decay of the first moment per step.
      weight_decay: d, a number or a schedule (MAE 0.05; DINO from 0.04 to 0.4). It replaces the
        loss's.
      beta_2: the decay of the second moment per step (PyTorch, DINO: 0.999; MAE: 0.95).
      epsilon: added to the root of the second moment once its bias is corrected (PyTorch: 1e-8).

    Raises:
      UserError: a moment that never decays.
    """

    flag_names = {"epsilon": "optimizer_epsilon"}
    own_decay = ("kernels", "all")

    def __init__(
        self,
        learning_rate: Rate,
        momentum: float = 0.9,
        weight_decay: Rate = 0.0,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "AdamW",
        **common: Any,
    ) -> None:
        for flag, beta in (("momentum", momentum), ("beta_2", beta_2)):
            if not 0 <= beta < 1:
                raise UserError(
                    f"{flag}={beta:g} is the decay of a moment in {name}: at least 0 and below 1"
                )
        super().__init__(
            name=name, weight_decay=None, **common
        )  # Keras's would act on all variables, or by name
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum, self.decoupled_decay = momentum, weight_decay
        self.beta_2, self.epsilon = beta_2, epsilon

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Create both moments of each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._kernels = self.kernel_keys(var_list)
        self.momentums = [self.add_variable_from_reference(variable, "m") for variable in var_list]
        self.velocities = [self.add_variable_from_reference(variable, "v") for variable in var_list]
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """One variable's step, given its gradient summed over replicas."""
        key = self._var_key(variable)
        w, g = tf.convert_to_tensor(variable), tf.convert_to_tensor(gradient)
        b1, b2 = tf.constant(self.momentum, w.dtype), tf.constant(self.beta_2, w.dtype)
        k = tf.cast(self.iterations + 1, w.dtype)
        momentum, velocity = (
            slots[self._index_dict[key]] for slots in (self.momentums, self.velocities)
        )
        m, v = momentum * b1 + g * (1 - b1), velocity * b2 + g * g * (1 - b2)
        momentum.assign(m)
        velocity.assign(v)
        update = m / (1 - tf.pow(b1, k)) / (tf.sqrt(v / (1 - tf.pow(b2, k))) + self.epsilon)
        rate = tf.cast(self.learning_rate, w.dtype)
        if key in self._kernels:
            update += self.now(self.decoupled_decay, w.dtype) * w
            rate = self.trust(w, update) * rate
        variable.assign(w - rate * update)

    def trust(self, w: tf.Tensor, update: tf.Tensor) -> Any:
        """Factor on the rate of a kernel w, given its update u + d w."""
        return 1.0

    def get_config(self) -> dict[str, Any]:
        settings = ("momentum", "beta_2", "epsilon")
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "weight_decay": self.decoupled_decay,
            **{name: getattr(self, name) for name in settings},
        }

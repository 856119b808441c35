"""Adam: Keras's own. Weight decay is the loss's; `adamw` has the decoupled one."""

from typing import Any

import tensorflow as tf

from tfssl.optim.base import Optimizer, Rate


class Adam(Optimizer, tf.keras.optimizers.Adam):
    """Kingma and Ba, ICLR 2015 (arXiv 1412.6980).

    Args:
      learning_rate: a number or a schedule.
      momentum: beta_1, the decay of the first moment per step.
      beta_2: the decay of the second moment per step (PyTorch, DINO: 0.999; MAE: 0.95).
      epsilon: added to the root of the second moment before its bias is corrected, the paper's
        epsilon hat (Keras: 1e-7).
    """

    flag_names = {"epsilon": "optimizer_epsilon"}

    def __init__(
        self,
        learning_rate: Rate,
        momentum: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, beta_1=momentum, beta_2=beta_2, epsilon=epsilon, **common
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["momentum"] = config.pop("beta_1")
        return config

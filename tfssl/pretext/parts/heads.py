"""The heads of joint-embedding methods: projections and predictors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.backbones.layers import build_chain
from tfssl.backbones.norm import BatchNorm, Norm
from tfssl.precision import at_least_float32

_ACTIVATIONS = {"relu": tf.nn.relu, "gelu": functools.partial(tf.nn.gelu, approximate=False)}


class MLP(tf.keras.layers.Layer):
    """Dense layers with an activation between them: [N, D] -> [N, sizes[-1]], or maps [N, h, w, D],
    each location by itself; in float32 at least.

    Args:
      name: of the layer.
      sizes: outputs of each layer; 0 means as many as its inputs.
      bias: whether the layers have biases: one bool, or one for each.
      norm: the policy of a batch normalization after each layer but the last; None: there are none.
      last_norm: None, or what the normalization after the last layer learns: "offset and scale",
        "scale", or "nothing".
      stddev: of the normal distribution of the first kernels; 0 takes Glorot's uniform one.
      activation: relu, or gelu, the exact one.
      bn_momentum, bn_epsilon: of the normalizations.
    """

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        bias: bool | Sequence[bool] = True,
        norm: Norm | None = None,
        last_norm: str | None = None,
        stddev: float = 0.0,
        activation: str = "relu",
        bn_momentum: float = 0.9,
        bn_epsilon: float = 1e-5,
    ) -> None:
        super().__init__(name=name)
        self.settings: dict[str, Any] = {
            "name": name, "sizes": sizes, "bias": bias, "norm": norm, "last_norm": last_norm,
            "stddev": stddev, "activation": activation, "bn_momentum": bn_momentum,
            "bn_epsilon": bn_epsilon,
        }  # fmt: skip
        biases = bias if isinstance(bias, (tuple, list)) else [bias] * len(sizes)
        self.sizes, self.biases = tuple(sizes), tuple(biases)
        learns = ["offset and scale" if norm is not None else None] * (len(sizes) - 1) + [last_norm]
        self.norms = [
            self._norm(f"bn{i}", what) if what else None for i, what in enumerate(learns, 1)
        ]
        self.dense: list[tf.keras.layers.Dense] = []

    def _norm(self, name: str, learns: str) -> BatchNorm:
        s = self.settings
        learned = {"center": "offset" in learns, "scale": "scale" in learns}
        return (s["norm"] or Norm()).batch(name, s["bn_momentum"], s["bn_epsilon"], **learned)

    def build(self, shape: Any) -> None:
        width, stddev = shape[-1], self.settings["stddev"]
        for i, (size, bias, norm) in enumerate(zip(self.sizes, self.biases, self.norms), 1):
            initial = (
                tf.keras.initializers.RandomNormal(stddev=stddev) if stddev else "glorot_uniform"
            )
            dense = tf.keras.layers.Dense(
                size or width, use_bias=bias, kernel_initializer=initial, name=f"dense{i}"
            )
            width = build_chain([layer for layer in (dense, norm) if layer], width, rank=len(shape))
            self.dense.append(dense)
        self.built = True

    def each(
        self, x: tf.Tensor, training: bool | None = None, count: int | None = None
    ) -> list[tf.Tensor]:
        """The outputs of the first `count` layers (of all): after the normalization, and after the
        activation where another layer follows."""
        outputs, activation = [], _ACTIVATIONS[self.settings["activation"]]
        for i, (dense, norm) in enumerate(list(zip(self.dense, self.norms))[:count], 1):
            x = dense(x)
            x = norm(x, training=training) if norm else x
            x = activation(x) if i < len(self.dense) else x
            outputs.append(x)
        return outputs

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return at_least_float32(self.each(x, training)[-1])  # NxE

    def twin(self) -> MLP:
        """A head of the same form, with weights of its own."""
        return MLP(**self.settings)


class Prototypes(tf.keras.layers.Layer):
    """Cosines with directions that are learned, without bias: [N, E] -> [N, count], in float32 at
    least. As a linear layer with weight normalization (Salimans and Kingma, arXiv 1602.07868) of
    norm 1, on embeddings of norm 1. `stddev` is that of the initial kernel."""

    def __init__(self, name: str, count: int, stddev: float = 0.05) -> None:
        super().__init__(name=name, autocast=False)
        self.count, self.stddev = count, stddev

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(
            "kernel",
            [self.count, shape[-1]],
            tf.keras.backend.floatx(),
            tf.keras.initializers.RandomNormal(stddev=self.stddev),
            experimental_autocast=False,
        )
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None, learns: bool = True) -> tf.Tensor:
        """`learns`: whether gradients reach the directions."""
        directions = tf.math.l2_normalize(self.kernel, 1)
        if not learns:
            directions = tf.stop_gradient(directions)
        return tf.matmul(
            tf.math.l2_normalize(at_least_float32(x), -1), directions, transpose_b=True
        )

    def twin(self) -> Prototypes:
        """A layer of the same form, with directions of its own."""
        return Prototypes(self.name, self.count, self.stddev)

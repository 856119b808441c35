"""Activations that are computed again in the backward pass instead of being kept: Chen et al.,
arXiv 1604.06174."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

from tfssl.backbones.norm import frozen_statistics


def rematerialize(layer: tf.keras.layers.Layer, x: tf.Tensor, **given: Any) -> tf.Tensor:
    """`layer(x, training=True, **given)`, of whose activations only the input is kept for the
    backward pass.

    There the layer runs a second time, on the same examples: its batch normalizations then leave
    their moving statistics alone. (`tf.recompute_grad` is no help: its second pass is the first one
    to XLA, which merges the two, and keeps everything.)
    """

    @tf.custom_gradient
    def run(
        x: tf.Tensor,
    ) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, list[tf.Tensor | None]]]]:
        def backward(
            gradient: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
            again, gradient = at_once([x, gradient])
            with frozen_statistics(), tf.GradientTape() as tape:
                tape.watch(again)
                y = layer(again, training=True, **given)
            of_input, *of_variables = tape.gradient(
                y, [again, *variables], output_gradients=gradient
            )
            return of_input, of_variables

        return layer(x, training=True, **given), backward

    return run(x)


def at_once(tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """The same tensors, none of which is there before all of them are.

    XLA takes no notice of control dependencies, so there it is a barrier of its own, through which
    it sees no two computations as one.
    """
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return xla.optimization_barrier(*tensors)
    return tf.tuple(tensors)

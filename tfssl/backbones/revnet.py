"""RevNet (Gomez, Ren, Urtasun and Grosse, arXiv 1707.04585): ResNet v2 whose training needs no more
memory where it is deeper.

The geometry is that of the 2019 study (Kolesnikov, Zhai and Beyer, arXiv 1901.09005). The channels
are two streams, a and b, of half of them each; a unit makes b and a + F(b) of them, F being the
residual function of a ResNet v2's unit. That can be undone: of what a unit returns, the first
stream is b, and the second less F(b) is a. So the backward pass computes the activations again from
the outputs, unit by unit, and of a whole block only the outputs are kept. Blocks are joined by an
average pool and channels of zeros, without weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional

import tensorflow as tf

from tfssl.backbones.layers import (
    STEMS,
    Conv,
    Network,
    build_chain,
    global_mean,
    stem_stride,
    zero_pad,
)
from tfssl.backbones.norm import frozen_statistics
from tfssl.backbones.rematerialize import at_once
from tfssl.backbones.resnet import UNITS, Unit
from tfssl.errors import check_choice
from tfssl.precision import at_least_float32

# Of a block's two inputs, and of the variables.
_Gradients = tuple[tuple[tf.Tensor, tf.Tensor], list[Optional[tf.Tensor]]]


def forward(
    units: Sequence[Unit], a: tf.Tensor, b: tf.Tensor, training: bool | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The two streams, NxHxWxC each, through a block's units."""
    for unit in units:
        a, b = b, a + residual(unit, b, training)
    return a, b


def residual(unit: Unit, x: tf.Tensor, training: bool | None) -> tf.Tensor:
    """F(x), in the type of the streams: NxHxWxC -> NxHxWxC."""
    return tf.cast(unit(x, training=training), x.dtype)


def reversible(
    units: Sequence[Unit], a: tf.Tensor, b: tf.Tensor, training: bool | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """`forward`, of whose activations only the outputs are kept for the backward pass."""

    @tf.custom_gradient
    def run(
        a: tf.Tensor, b: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., _Gradients]]:
        first = b
        for unit in units:
            # Or XLA computes a stream anew wherever it is read, as a sum, all of whose terms it
            # keeps.
            a, b = at_once([b, a + residual(unit, b, training)])

        def backward(
            da: tf.Tensor, db: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> _Gradients:
            return undo(units, first, (a, b), (da, db), variables, training)

        return (a, b), backward

    return run(a, b)


def undo(
    units: Sequence[Unit],
    first: tf.Tensor,
    outputs: tuple[tf.Tensor, tf.Tensor],
    gradients: tuple[tf.Tensor, tf.Tensor],
    variables: Sequence[tf.Variable],
    training: bool | None,
) -> _Gradients:
    """Back-propagation through a block, last unit first: its activations are computed again from
    its outputs (the paper's Algorithm 1).

    `first` is what the first unit was given: its channels of zeros sit at the corner of a ReLU,
    where rounding would decide the gradient. Returns the gradients of the block's two inputs, and
    those of `variables`.
    """
    (a, b), (da, db) = outputs, gradients
    found: list[tf.Tensor | None] = [None] * len(variables)
    own: list[tf.Tensor] = []
    for unit in reversed(units):
        a = first if unit is units[0] else a
        # This unit's activations wait until those of the unit behind it are done with.
        a, b, da, db, *own = at_once([a, b, da, db, *own])
        with frozen_statistics(), tf.GradientTape() as tape:
            tape.watch(a)  # the b that the unit was given
            f = residual(unit, a, training)
        through, *by_variable = tape.gradient(f, [a, *variables], output_gradients=db)
        own = [gradient for gradient in by_variable if gradient is not None]
        found = [old if new is None else new for old, new in zip(found, by_variable)]
        a, b = b - f, a
        da, db = db, da + through
    return (da, db), found


class RevNet(Network):
    """Images [N, H, W, C], of any size and number of channels, to a dict of endpoints; made by
    `tfssl.backbones.build`.

    `after_root` and `block1` to `block4` are maps, the blocks' both streams [a, b], raw sums before
    any BN and ReLU. After `block4` come BN, a ReLU unless `last_relu` is False (the study's "(-)"
    networks) and the mean over the map: `pre_logits` [N, D], D = 512 (depths 18 and 34) or 2048,
    times the width. The blocks and `pre_logits` are float32 also where layers compute in less
    (float64 under floatx float64): rounded to bfloat16, the streams would not come back as they
    were.

    The gradients are those of ordinary back-propagation, but for rounding. There is no network
    without them, so `remat` changes nothing. The study leaves the root's kernel out of weight
    decay.

    Args:
      name: revnet and its depth.
      stem: imagenet (7x7 stride 2, pooling), small (3x3, for 32 pixels), patch (7x7 stride 1),
        stride16 (imagenet's, but no stride in the last block).
      last_relu: A ReLU before the mean over the map; --nolast_relu: the 2019 study's (-) networks.
    """

    endpoint_names = ("after_root", "block1", "block2", "block3", "block4", "pre_logits")
    raw_maps = True

    def __init__(
        self, name: str, stem: str = "imagenet", last_relu: bool = True, **common: Any
    ) -> None:
        super().__init__(name, **common)
        check_choice("stem", stem, STEMS)
        self.stem, self.last_relu = stem, last_relu
        depth = int(name[len("revnet") :])
        width = self.scaled(32)  # half a ResNet's: that of one stream
        channels = 2 * width * (4 if depth >= 50 else 1)  # of both streams in the first block

        size, stride, self.max_pool, self.strides = STEMS[self.stem]
        self.root_conv = Conv(channels, size, stride, "root_conv")
        self.root_conv.decayed = False
        self.block1, self.block2, self.block3, self.block4 = (
            [
                Unit(2, depth >= 50, width * 2**i, 1, False, False, self.norm, f"unit{j}")
                for j in range(UNITS[depth][i])
            ]
            for i in range(4)
        )
        self.last_norm = self.norm("last_bn")

    @property
    def min_image_size(self) -> int:
        """The total stride, as of a ResNet."""
        return stem_stride(self.stem) * math.prod(self.strides)

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        channels = build_chain([self.root_conv], input_shape[-1])
        for i, block in enumerate(self.endpoint_names[1:5]):
            with tf.name_scope(block):
                for unit in getattr(self, block):
                    build_chain([unit], channels * 2**i // 2)
        return build_chain([self.last_norm], channels * 8)

    def endpoints(self, images: tf.Tensor, training: bool | None) -> dict[str, tf.Tensor]:
        x = self.root_conv(images)
        if self.max_pool:
            x = tf.nn.max_pool2d(
                zero_pad(x, 3), 3, 2, "VALID"
            )  # the zeros enter the maximum, as in the study
        endpoints = {"after_root": x}
        x = at_least_float32(x)
        for i, block in enumerate(self.endpoint_names[1:5]):
            x = widen(x, self.strides[i]) if i else x
            a, b = tf.split(x, 2, axis=-1)
            a, b = reversible(getattr(self, block), a, b, training)
            endpoints[block] = x = tf.concat([a, b], axis=-1)
        x = self.last_norm(x, training=training)
        endpoints["pre_logits"] = global_mean(tf.nn.relu(x) if self.last_relu else x)
        return endpoints


def widen(x: tf.Tensor, stride: int) -> tf.Tensor:
    """From one block to the next, without weights: NxHxWxC -> NxhxwxD, h = ceil(H / stride), D = 2
    * C, half of them zeros."""
    if stride > 1:
        x = tf.nn.avg_pool2d(x, stride, stride, "SAME")
    return tf.pad(x, [[0, 0], [0, 0], [0, 0], [x.shape[-1] // 2] * 2])

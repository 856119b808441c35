"""Selective kernels (Li et al., arXiv 1903.06586) in the form of SimCLR v2 (Chen et al., arXiv
2006.10029), within a ResNet-D (He et al., arXiv 1812.01187): a root of three small convolutions,
and shortcuts that average before they project.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfssl.backbones.layers import Conv, build_chain, global_mean
from tfssl.backbones.norm import BatchNorm
from tfssl.precision import at_least_float32

SMALLEST_SQUEEZE = 32


class SelectiveKernel(tf.keras.layers.Layer):
    """Two 3x3 convolutions of the same input, of which each channel takes a mixture that the whole
    map decides on: NxHxWxC -> NxhxwxF.

    The two are one of 2F channels. (Li et al. give the second one a wider window; SimCLR v2 does
    not.)
    """

    def __init__(
        self, width: int, stride: int, ratio: float, norm: Callable[[str], BatchNorm], name: str
    ) -> None:
        super().__init__(name=name)
        self.filters = width
        self.conv, self.norm = Conv(2 * width, 3, stride, "conv"), norm("bn")
        self.squeeze = Conv(max(int(width * ratio), SMALLEST_SQUEEZE), 1, 1, "squeeze")
        self.squeeze_norm = norm("squeeze_bn")
        self.attend = Conv(2 * width, 1, 1, "attend")

    def build(self, input_shape: tf.TensorShape) -> None:
        build_chain([self.conv, self.norm], input_shape[-1])
        build_chain([self.squeeze, self.squeeze_norm, self.attend], self.filters)
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        width = self.filters
        both = tf.nn.relu(self.norm(self.conv(x), training=training))  # Nxhxwx2F
        mean = global_mean(both)  # Nx2F
        summary = mean[:, None, None, :width] + mean[:, None, None, width:]  # Nx1x1xF
        summary = tf.nn.relu(self.squeeze_norm(self.squeeze(summary), training=training))
        votes = at_least_float32(tf.reshape(self.attend(summary), [-1, 1, 1, 2, width]))
        shares = tf.cast(tf.nn.softmax(votes, axis=3), both.dtype)  # Nx1x1x2xF
        # Not by slices, whose gradients are padded again: forth and back this takes a quarter of
        # their time.
        apart = tf.reshape(both, tf.concat([tf.shape(both)[:3], [2, width]], 0))
        return tf.reduce_sum(apart * shares, axis=3)  # NxhxwxF


class SKUnit(tf.keras.layers.Layer):
    """A bottleneck of ResNet v1 around a selective kernel: NxHxWxC -> NxhxwxF, h = ceil(H /
    stride), F = 4 * width."""

    def __init__(
        self,
        ratio: float,
        width: int,
        stride: int,
        skip: bool,
        project: bool,
        norm: Callable[[str], BatchNorm],
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.filters = 4 * width
        select = SelectiveKernel(width, stride, ratio, norm, "conv2")
        self.convs: list[tf.keras.layers.Layer] = [
            Conv(width, 1, 1, "conv1"),
            select,
            Conv(self.filters, 1, 1, "conv3"),
        ]
        self.norms = [norm("bn1"), norm("bn3")]
        self.projection = Conv(self.filters, 1, 1, "projection") if project else None
        self.projection_norm: tf.keras.layers.Layer = norm("projection_bn") if project else None
        self.skip, self.stride = skip, stride

    def build(self, input_shape: tf.TensorShape) -> None:
        (reduce, select, expand), (first, last) = self.convs, self.norms
        build_chain([reduce, first, select, expand, last], input_shape[-1])
        build_chain(
            [self.projection, self.projection_norm] if self.projection else [], input_shape[-1]
        )
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        (reduce, select, expand), (first, last) = self.convs, self.norms
        y = tf.nn.relu(first(reduce(x), training=training))
        y = last(expand(select(y, training=training)), training=training)
        if self.projection:
            x = self.projection_norm(
                self.projection(two_by_two_mean(x, self.stride)), training=training
            )
        return tf.nn.relu(x + y if self.skip else y)


class DeepRoot(tf.keras.layers.Layer):
    """Two 3x3 convolutions, each with BN and ReLU: NxHxWxC -> NxhxwxF. With a third one they see
    what a 7x7 convolution sees."""

    def __init__(
        self, channels: int, stride: int, norm: Callable[[str], BatchNorm], name: str
    ) -> None:
        super().__init__(name=name)
        self.convs = [Conv(channels, 3, stride, "conv1"), Conv(channels, 3, 1, "conv2")]
        self.norms = [norm("bn1"), norm("bn2")]

    def build(self, input_shape: tf.TensorShape) -> None:
        pairs = zip(self.convs, self.norms)
        self.filters = build_chain([layer for pair in pairs for layer in pair], input_shape[-1])
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = tf.nn.relu(norm(conv(x), training=training))
        return x


def two_by_two_mean(x: tf.Tensor, stride: int) -> tf.Tensor:
    """Means over windows of 2x2: NxHxWxC -> NxhxwxC, h = ceil(H / stride).

    As in SimCLR's code, what lies beyond the last row or column counts as zero at a stride, and not
    at all at stride 1.
    """
    if stride == 1:
        return tf.nn.avg_pool2d(x, 2, 1, "SAME")
    if any(
        side is None or side % stride for side in x.shape[1:3]
    ):  # no window reaches beyond an even side
        x = tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])
    return tf.nn.avg_pool2d(x, 2, stride, "VALID")

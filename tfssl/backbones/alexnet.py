"""AlexNet (Krizhevsky, Sutskever and Hinton, NeurIPS 2012) up to its last convolution, in the two
forms of Goyal et al. (arXiv 1905.01235).

`alexnet`, their colorization's, has batch normalization after each convolution. `alexnet_lrn`,
their jigsaw's, has it after the last three, and local response normalization behind the first two
pools; there the first convolution has stride 2: the stem "patch". Its fully connected layers
belonged to the pretext tasks; `pre_logits` is the mean over the last pool's map.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfssl.backbones.layers import Network, build_chain, global_mean, too_small
from tfssl.backbones.norm import BatchNorm
from tfssl.backbones.rematerialize import rematerialize
from tfssl.errors import UserError, check_choice
from tfssl.precision import at_least_float32

ROOTS = {
    "imagenet": (11, 4),
    "patch": (11, 2),
    "small": (3, 1),
}  # size and stride of the first convolution; 227 -> 55 and 109
CONVS = (
    (48, 0, 1),
    (128, 5, 2),
    (192, 3, 1),
    (192, 3, 2),
    (128, 3, 2),
)  # half the channels, size, groups
POOLED = ("conv1", "conv2", "conv5")  # by windows of 3 with stride 2


class Stage(tf.keras.layers.Layer):
    """Convolution in groups, with BN or else a bias, and a ReLU: NxHxWxC -> NxhxwxF. Without zeros
    around it where the stride is given."""

    def __init__(
        self, channels: int, size: int, stride: int, groups: int, norm: BatchNorm | None, name: str
    ) -> None:
        super().__init__(name=name)
        self.filters, self.norm = channels, norm
        # Not Keras's groups, whose gradients have no kernel on CPUs.
        self.convs = [
            tf.keras.layers.Conv2D(
                channels // groups,
                size,
                stride or 1,
                "valid" if stride else "same",
                use_bias=norm is None,
                name=f"conv{i}",
            )
            for i in range(1, groups + 1)
        ]

    def build(self, input_shape: tf.TensorShape) -> None:
        for conv in self.convs:
            build_chain([conv], input_shape[-1] // len(self.convs))
        if self.norm:
            build_chain([self.norm], self.filters)
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        parts = tf.split(x, len(self.convs), -1)
        x = tf.concat([conv(part) for conv, part in zip(self.convs, parts)], -1)
        return tf.nn.relu(self.norm(x, training=training) if self.norm else x)


class AlexNet(Network):
    """Images [N, H, W, C] with any number of channels to a dict of endpoints; made by
    `tfssl.backbones.build`.

    `conv1` to `conv5` are maps after the ReLU, in the compute dtype; `pre_logits` [N, D], D = 256
    times the width, is float32 (float64 under floatx float64). Images have 227 pixels in the
    papers; 67 are the least ("patch": 39, "small": 17).

    Args:
      name: alexnet or alexnet_lrn.
      stem: stride of the first convolution: imagenet (11x11 stride 4), patch (stride 2), small (3x3
        stride 1).
      conv_groups: groups of the second, fourth and fifth convolution: 2, as in the papers, or 1
        (split-brain's halves have none).
    """

    flag_bounds = {"conv_groups": (1, 2)}
    endpoint_names = ("conv1", "conv2", "conv3", "conv4", "conv5", "pre_logits")

    def __init__(
        self, name: str, stem: str = "imagenet", conv_groups: int = 2, **common: Any
    ) -> None:
        super().__init__(name, **common)
        check_choice("stem", stem, ROOTS)
        if conv_groups not in (1, 2):
            raise UserError(f"conv_groups={conv_groups}: choose 1 or 2")
        self.stem, self.conv_groups = stem, conv_groups
        self.lrn = name == "alexnet_lrn"
        for i, (half, size, groups) in enumerate(CONVS, 1):
            size, stride = ROOTS[self.stem] if i == 1 else (size, 0)
            groups = min(groups, conv_groups)
            norm = None if self.lrn and i < 3 else self.norm("bn")
            setattr(
                self,
                f"conv{i}",
                Stage(2 * self.scaled(half), size, stride, groups, norm, f"conv{i}"),
            )

    @property
    def min_image_size(self) -> int:
        """From this side on the last pool has one place."""
        size, stride = ROOTS[self.stem]
        return 14 * stride + size

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        return build_chain(
            [getattr(self, name) for name in self.endpoint_names[:5]], input_shape[-1]
        )

    def endpoints(self, images: tf.Tensor, training: bool | None) -> dict[str, tf.Tensor]:
        height, width = images.shape[1:3]
        if min(height or self.min_image_size, width or self.min_image_size) < self.min_image_size:
            raise too_small(self, height, width)
        endpoints, x = {}, images
        for name in self.endpoint_names[:5]:
            stage = getattr(self, name)
            x = rematerialize(stage, x) if self.remat and training else stage(x, training=training)
            endpoints[name] = x
            if name in POOLED:
                x = tf.nn.max_pool2d(x, 3, 2, "VALID")
                if self.lrn and name != "conv5":
                    x = response_normalized(x)
        endpoints["pre_logits"] = global_mean(x)
        return endpoints


def response_normalized(x: tf.Tensor) -> tf.Tensor:
    """x / (1 + 1e-4 * mean of squares over 5 neighboring channels) ** 0.75, zeros beyond the first
    and the last: NxHxWxC -> the same."""
    # As a product with a band of ones, which every accelerator computes, in any precision;
    # TensorFlow's own op knows float32 only.
    wide = at_least_float32(x)
    band = tf.linalg.band_part(tf.ones([x.shape[-1]] * 2, wide.dtype), 2, 2)
    return tf.cast(wide * (1 + 1e-4 / 5 * tf.tensordot(wide**2, band, 1)) ** -0.75, x.dtype)

"""VGG with batch normalization (Simonyan and Zisserman, arXiv 1409.1556, configurations A, B, D and
E), of any width.

The geometry is that of the 2019 study (Kolesnikov, Zhai and Beyer, arXiv 1901.09005), which uses
VGG19: five stages of 3x3 convolutions, each with BN and ReLU, a 2x2 max-pool after each stage, and
two fully connected layers in the form of convolutions. No dropout.

Widths: the standard network, with 64 channels in its first stage and 4096 in its fully connected
layers, is `width_multiplier` 1.0. It is the study's "8x" (k = 8: it counts VGG's first channels as
8k, and ResNet's as 16k), so that width_multiplier = k / 8 here: its "4x" is 0.5 and its "16x" is
2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfssl.backbones.layers import STEMS, Conv, Network, build_chain, global_mean, too_small
from tfssl.backbones.norm import BatchNorm
from tfssl.backbones.rematerialize import rematerialize
from tfssl.errors import check_choice

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class Stage(tf.keras.layers.Layer):
    """Convolutions of one width, BN and ReLU after each: NxHxWxC -> NxhxwxF. `convs`: the
    layers."""

    def __init__(
        self, convs: Sequence[tf.keras.layers.Conv2D], norm: Callable[[str], BatchNorm], name: str
    ) -> None:
        super().__init__(name=name)
        self.convs, self.filters = convs, convs[-1].filters
        self.norms = [norm(f"bn{i}") for i in range(1, len(convs) + 1)]

    def build(self, input_shape: tf.TensorShape) -> None:
        pairs = zip(self.convs, self.norms)
        build_chain([layer for pair in pairs for layer in pair], input_shape[-1])
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = tf.nn.relu(norm(conv(x), training=training))
        return x


class VGG(Network):
    """Images [N, H, W, C] with any number of channels to a dict of endpoints; made by
    `tfssl.backbones.build`.

    `block1` to `block5` are maps in the compute dtype: the inputs of the five max-pools, as in the
    study's code (its paper names the inputs of the last four block1 to block4). `fc6` is the map
    [N, h, w, D] after the first fully connected layer, `pre_logits` [N, D], float32 (float64 under
    floatx float64), the second one's mean over that map; D = 4096 times the width.

    The kernel of fc6 has the size of the map that it is given, so it depends on the size of the
    images: of the first ones that the network is called with. From then on `min_image_size` is that
    size. Of larger images fc6 has a position for each place of its kernel, 1x1 of images of the
    size itself.

    Args:
      name: vgg and its depth.
      stem: imagenet, patch and stride16 are the standard network; small leaves out the first
        max-pool: 32 pixels -> a map of 2x2 for fc6.
    """

    endpoint_names = ("block1", "block2", "block3", "block4", "block5", "fc6", "pre_logits")
    static_size = True

    def __init__(self, name: str, stem: str = "imagenet", **common: Any) -> None:
        super().__init__(name, **common)
        check_choice("stem", stem, STEMS)
        self.stem = stem
        base = self.scaled(64)
        stages = []
        for i, count in enumerate(CONVS[int(name[len("vgg") :])]):
            convs = [Conv(base * CHANNELS[i] // 64, 3, 1, f"conv{j}") for j in range(1, count + 1)]
            stages.append(Stage(convs, self.norm, f"block{i + 1}"))
        self.block1, self.block2, self.block3, self.block4, self.block5 = stages
        self.pooled = self.endpoint_names[
            1 if self.stem == "small" else 0 : 5
        ]  # the stages that a max-pool follows
        self.min_image_size = 2 ** len(self.pooled)
        self.fc6: tf.keras.layers.Layer = None  # made in `build_layers`, as is fc7
        self.fc7: tf.keras.layers.Layer = None

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        height, width, channels = input_shape[1:]
        map_size = height // self.min_image_size, width // self.min_image_size
        if 0 in map_size:
            raise too_small(self, height, width)
        self.min_image_size = max(height, width)
        self.fc6 = Stage([valid_conv(64 * self.block1.filters, map_size)], self.norm, "fc6")
        self.fc7 = Stage([valid_conv(64 * self.block1.filters, 1)], self.norm, "fc7")
        self.set_initializers()  # of these two as well
        stages = [getattr(self, block) for block in self.endpoint_names[:5]]
        return build_chain([*stages, self.fc6, self.fc7], channels)

    def endpoints(self, images: tf.Tensor, training: bool | None) -> dict[str, tf.Tensor]:
        endpoints, x = {}, images
        for block in self.endpoint_names[:6]:
            stage = getattr(self, block)
            x = rematerialize(stage, x) if self.remat and training else stage(x, training=training)
            endpoints[block] = x
            if block in self.pooled:
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        endpoints["pre_logits"] = global_mean(self.fc7(x, training=training))
        return endpoints


def valid_conv(channels: int, size: int | tuple[int, int]) -> tf.keras.layers.Conv2D:
    """Convolution without zeros around and without bias: at a map of its own size, a fully
    connected layer."""
    return tf.keras.layers.Conv2D(channels, size, use_bias=False, name="conv1")

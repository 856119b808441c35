"""What the families of backbones have in common: stems, layers, and the settings that every network has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.backbones.norm import BatchNorm, at_least_float32
from tfssl.errors import UserError

# The root convolution's size and stride, whether a max-pool of stride 2 follows, the strides of the four blocks.
STEMS = {
    "imagenet": (7, 2, True, (1, 2, 2, 2)),  # 224 -> 56 after the root, then 56, 28, 14, 7
    "small": (3, 1, False, (1, 2, 2, 2)),  # 32 -> 32 after the root, then 32, 16, 8, 4
    "patch": (7, 1, True, (1, 2, 2, 1)),  # 64 -> 32 after the root, then 32, 16, 8, 8
    "stride16": (7, 2, True, (1, 2, 2, 1)),  # 224 -> 56 after the root, then 56, 28, 14, 14
}

# How a convolution's kernel begins: scale, mode and distribution of Keras's VarianceScaling, whose variance is scale / fan.
INITIALIZERS = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),  # Keras's default
    "he_fan_out": (2.0, "fan_out", "untruncated_normal"),  # torchvision's ResNets: kaiming_normal_(mode="fan_out")
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),  # SimCLR's code; Haiku's default, but for a factor of 0.77
    "torch_uniform": (1 / 3, "fan_in", "uniform"),  # PyTorch's default: +- 1 / sqrt(fan_in)
}


def zero_pad(x: tf.Tensor, size: int) -> tf.Tensor:
    """What makes a VALID window of an odd size symmetric: NxHxWxC -> Nx(H+size-1)x(W+size-1)xC."""
    # Not the explicit padding of tf.nn.conv2d: oneDNN leaves that alone, and in bfloat16 it takes ten times as long.
    return tf.pad(x, [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]])


def global_mean(x: tf.Tensor) -> tf.Tensor:
    """Mean over the map, in float32 at least: NxHxWxC -> NxC."""
    return tf.reduce_mean(at_least_float32(x), axis=[1, 2])


def build_chain(layers: Sequence[tf.keras.layers.Layer], channels: int, rank: int = 4) -> int:
    """Creates the variables of layers that feed one another, each under its name; returns the last one's channels."""
    for layer in layers:
        with tf.name_scope(layer.name):
            layer.build((None,) * (rank - 1) + (channels,))
        channels = getattr(layer, "filters", getattr(layer, "units", channels))
    return channels


class Conv(tf.keras.layers.Conv2D):
    """Convolution with an odd window, zeros on both sides alike, no bias."""

    decayed = True  # whether weight decay acts on the kernel

    def __init__(self, channels: int, size: int, stride: int, name: str) -> None:
        # At stride 1 SAME is symmetric by itself, and costs no pad op.
        super().__init__(channels, size, stride, "same" if stride == 1 else "valid", use_bias=False, name=name)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        size = self.kernel_size[0]
        return super().call(zero_pad(x, size) if self.padding == "valid" and size > 1 else x)


class Network(tf.keras.Model):
    """Base class of the named backbones; `tfssl.backbones.build` documents its settings.

    A family gives `endpoint_names`, `min_image_size` and `endpoints(images, training)`, and creates its variables in `build_layers(shape)`
    (the shape of images; its sides may be None unless the family asks for `static_size`), which runs in a name scope of its own.
    """

    autograph = False  # nothing in here needs it, nor in our tasks, and without it tracing takes a quarter of the time
    static_size = False  # whether weights depend on the images' size
    raw_maps = False  # whether blocks end in sums, which a normalisation and a ReLU are to follow

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name=name)
        self.settings = {"name": name, **settings}
        for setting, value in settings.items():
            setattr(self, setting, value)
        self.representation = Representation(self.representation_size) if self.representation_size else None

    def norm(self, name: str) -> BatchNorm:
        return BatchNorm(self.bn_momentum, self.bn_epsilon, self.bn_sync, self.bn_groups, name)

    def scaled(self, channels: int, smallest: int = 1) -> int:
        """`channels` of the standard network in this one's width."""
        scaled = int(channels * self.width_multiplier + 0.5)
        if scaled < smallest:
            least = (smallest - 0.5) / channels
            raise UserError(
                f"width_multiplier={self.width_multiplier} leaves {self.name} too few channels; the smallest is {least}"
            )
        return scaled

    def set_initializers(self) -> None:
        """Tell the convolutions, before they are built, how their kernels begin."""
        scale, mode, distribution = INITIALIZERS[self.initializer]
        for layer in self.submodules:
            if isinstance(layer, tf.keras.layers.Conv2D):
                layer.kernel_initializer = tf.keras.initializers.VarianceScaling(scale, mode, distribution)

    def config(self) -> dict[str, Any]:
        """What `tfssl.backbones.build(**config)` makes this network from again, less what only training needs."""
        return {name: value for name, value in self.settings.items() if name not in TRAINING_ONLY}

    def twin(self) -> Network:
        """A network of the same form, with weights of its own."""
        return type(self)(**self.settings)

    def build(self, input_shape: tf.TensorShape) -> None:
        if self.static_size and None in input_shape[1:3]:
            raise UserError(
                f"the weights of {self.name} depend on the size of its images: call it first with images of a known height and width"
            )
        # Here and not in the calls: names then do not depend on who calls the network first (the closing slash makes
        # the scope absolute), and a network of any size can be counted without running it.
        self.set_initializers()
        with tf.name_scope(f"{self.name}/"):
            channels = self.build_layers(input_shape)
            if self.representation:
                with tf.name_scope(self.representation.name):
                    self.representation.build((None, channels))
        self.built = True

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        # Not as a decorator: that would hide the signature from Keras.
        endpoints = tf.autograph.experimental.do_not_convert(self.endpoints)(images, training)
        if self.representation:
            endpoints["pre_logits"] = self.representation(endpoints["pre_logits"])
        return endpoints


TRAINING_ONLY = ("initializer", "bn_sync", "bn_groups", "remat")


class Representation(tf.keras.layers.Dense):
    """A linear layer after the mean, which sets the size of the representation apart from the width: the 2019 study's Figure 6."""

    def __init__(self, size: int) -> None:
        super().__init__(size, name="representation", dtype=tf.keras.backend.floatx())

"""What the families of backbones have in common: stems, layers, and the settings that every network
has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.backbones.norm import Norm
from tfssl.config.signatures import arguments
from tfssl.errors import UserError, check_choice
from tfssl.precision import at_least_float32

# What an endpoint is -> how many axes it has: [N, D], [N, L, C], [N, h, w, C].
KINDS = {"vector": 2, "tokens": 3, "map": 4}

# The root convolution's size and stride, whether a max-pool of stride 2 follows, the strides of the
# four blocks.
STEMS = {
    "imagenet": (7, 2, True, (1, 2, 2, 2)),  # 224 -> 56 after the root, then 56, 28, 14, 7
    "small": (3, 1, False, (1, 2, 2, 2)),  # 32 -> 32 after the root, then 32, 16, 8, 4
    "patch": (7, 1, True, (1, 2, 2, 1)),  # 64 -> 32 after the root, then 32, 16, 8, 8
    "stride16": (7, 2, True, (1, 2, 2, 1)),  # 224 -> 56 after the root, then 56, 28, 14, 14
}

# How a convolution's kernel begins: scale, mode and distribution of Keras's VarianceScaling, whose
# variance is scale / fan.
INITIALIZERS = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),  # Keras's default
    "he_fan_out": (
        2.0,
        "fan_out",
        "untruncated_normal",
    ),  # torchvision's ResNets: kaiming_normal_(mode="fan_out")
    "lecun_normal": (
        1.0,
        "fan_in",
        "truncated_normal",
    ),  # SimCLR's code; Haiku's default, but for a factor of 0.77
    "torch_uniform": (1 / 3, "fan_in", "uniform"),  # PyTorch's default: +- 1 / sqrt(fan_in)
}


def stem_stride(stem: str) -> int:
    """The stride of the root and its max-pool together, before the four blocks."""
    _, stride, max_pool, _ = STEMS[stem]
    return stride * (2 if max_pool else 1)


def too_small(network: Any, height: int, width: int) -> UserError:
    """What to raise of images below a network's `min_image_size`, where its maps would be empty."""
    return UserError(
        f"{network.name} with the {network.stem} stem needs images of {network.min_image_size} "
        f"pixels at least, not {height}x{width}: take larger ones"
        + ("" if network.stem == "small" else ", or the small stem")
    )


def zero_pad(x: tf.Tensor, size: int) -> tf.Tensor:
    """What makes a VALID window of an odd size symmetric: NxHxWxC -> Nx(H+size-1)x(W+size-1)xC."""
    # Not the explicit padding of tf.nn.conv2d: oneDNN leaves that alone, and in bfloat16 it takes
    # ten times as long.
    return tf.pad(x, [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]])


def global_mean(x: tf.Tensor) -> tf.Tensor:
    """Mean over the map, in float32 at least: NxHxWxC -> NxC."""
    return tf.reduce_mean(at_least_float32(x), axis=[1, 2])


def build_chain(layers: Sequence[tf.keras.layers.Layer], channels: int, rank: int = 4) -> int:
    """Creates the variables of layers that feed one another, each under its name; returns the last
    one's channels."""
    for layer in layers:
        with tf.name_scope(layer.name):
            layer.build((None,) * (rank - 1) + (channels,))
        channels = getattr(layer, "filters", None) or getattr(layer, "units", None) or channels
    return channels


class Conv(tf.keras.layers.Conv2D):
    """Convolution with an odd window, zeros on both sides alike, or `same`: as TensorFlow's SAME
    has them, at a stride rather after than before; no bias."""

    decayed = True  # whether weight decay acts on the kernel

    def __init__(
        self,
        channels: int,
        size: int,
        stride: int,
        name: str,
        dilation: int = 1,
        same: bool = False,
    ) -> None:
        # At stride 1 SAME is symmetric by itself, and costs no pad op.
        padding = "same" if stride == 1 or same else "valid"
        super().__init__(
            channels, size, stride, padding, dilation_rate=dilation, use_bias=False, name=name
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        size, stride = self.kernel_size[0], self.strides[0]
        if size == 1 and stride > 1 and x.shape[-1] < 16:
            # oneDNN's gradient of such a kernel writes past its workspace: crashes, wrong values
            # (uxlfoundation/oneDNN, issue 6035).
            return tf.nn.conv2d(x[:, ::stride, ::stride], self.kernel, 1, "VALID")
        return super().call(zero_pad(x, size) if self.padding == "valid" and size > 1 else x)


class Network(tf.keras.Model):
    """Base class of the families of backbones: images [N, H, W, C] -> {endpoint: tensor}, in depth
    order.

    A family's constructor is its settings, which become flags; it keeps each under its name. A
    subclass has `endpoint_names`, the last of which is `pre_logits` [N, D], in float32 at least;
    `min_image_size`; `build_layers(shape)`, which creates its variables, in a name scope of its
    own, and returns D (the shape is that of images, whose sides may be None unless it asks for
    `static_size`); and `endpoints(images, training)`.

    Args:
      name: one of `tfssl.backbones.NAMES`; "" for a class that is known by its import path.
      width_multiplier: Times all channels; 1 is the standard network (2019 study: 4x; its 16x is
        4.0).
      representation_size: Outputs of a linear layer after the mean, which sets the size of the
        representation apart from the width (2019 study: Figure 6); 0: there is none.
      bn_momentum: Fraction of the moving statistics kept per step, 1 minus what PyTorch calls
        momentum (2019 study: 0.99); at step t at most (1 + t) / (10 + t).
      bn_epsilon: Normalization: added to the variance (2019 study: 0.001).
      initializer: Of the backbone's kernels, whose variance is: glorot_uniform (2019 study; 2 /
        (fan_in + fan_out)), he_fan_out (torchvision's ResNets; 2 / fan_out), lecun_normal (SimCLR;
        1 / fan_in), torch_uniform (PyTorch's default; 1 / (3 fan_in)).
      norm_policy: how training normalizes; None: the plain one. It, the initializer, `remat` and a
        family's `drop_path` are about training alone: `config` leaves them out, and export
        publishes the plain network.
      remat: in training, keep the inputs of the network's units only, and compute their activations
        again in the backward pass: less memory for about a third more computation. A family may
        ignore it.
      input_channels: Channels of the images: 1 (gray, which stays gray), 3 (RGB), 4, 13 ...; with
        other than 3, images are read in full depth (--value_range).

    Raises:
      UserError: a setting that is out of range.
    """

    # flags of the run say those of ""
    flag_names = {"name": "", "norm_policy": "", "remat": "", "input_channels": "channels"}
    flag_bounds = {
        "width_multiplier": (0.001, 64),
        "representation_size": (0, 65536),
        "input_channels": (1, 1024),
        "bn_momentum": (0, 1),
        "bn_epsilon": (1e-12, 1),
    }

    # nothing in here needs it, nor in our tasks, and without it tracing takes a quarter of the time
    autograph = False
    static_size = False  # whether weights depend on the images' size
    raw_maps = False  # whether blocks end in sums, which a normalization and a ReLU are to follow

    endpoint_names: tuple[str, ...]

    def __init__(
        self,
        name: str = "",
        width_multiplier: float = 1.0,
        representation_size: int = 0,
        bn_momentum: float = 0.99,
        bn_epsilon: float = 0.001,
        initializer: str = "glorot_uniform",
        norm_policy: Norm | None = None,
        remat: bool = False,
        input_channels: int = 3,
    ) -> None:
        own_path = f"{type(self).__module__}:{type(self).__qualname__}"
        super().__init__(name=name.rpartition(":")[2] or type(self).__name__)
        check_choice("initializer", initializer, INITIALIZERS)
        if not 0 < width_multiplier < math.inf:
            raise UserError(
                f"width_multiplier={width_multiplier} must be a positive number; 1 is the standard "
                "network"
            )
        if not 0 <= bn_momentum < 1:
            raise UserError(
                f"bn_momentum={bn_momentum} must be at least 0 and below 1: it is the fraction "
                "that is kept"
            )
        if not 0 < bn_epsilon < math.inf:
            raise UserError(f"bn_epsilon={bn_epsilon} must be a positive number")
        if representation_size < 0:
            raise UserError(
                f"representation_size={representation_size} must be a number of features, or 0 for "
                "the network's own"
            )
        self.registered_name = name or own_path
        self.width_multiplier, self.representation_size = width_multiplier, representation_size
        self.bn_momentum, self.bn_epsilon, self.initializer = bn_momentum, bn_epsilon, initializer
        self.norm_policy, self.remat = norm_policy or Norm(), remat
        self.input_channels = input_channels
        self.representation = Representation(representation_size) if representation_size else None

    # What a family defines.

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        """Create all variables for images of this shape; returns the channels of `pre_logits`."""
        raise NotImplementedError

    def endpoints(self, images: tf.Tensor, training: bool | None) -> dict[str, tf.Tensor]:
        """{endpoint: tensor}, in depth order, `pre_logits` last. A family of tokens takes `keep`
        too, see `call`."""
        raise NotImplementedError

    @property
    def endpoint_kinds(self) -> dict[str, str]:
        """{endpoint: one of KINDS}. Unless a family says otherwise, all but `pre_logits` are
        maps."""
        return {**dict.fromkeys(self.endpoint_names, "map"), "pre_logits": "vector"}

    # What all families share.

    def norm(self, name: str) -> tf.keras.layers.Layer:
        """A normalization of the network."""
        return self.norm_policy.layer(name, self.bn_momentum, self.bn_epsilon)

    def scaled(self, channels: int, smallest: int = 1) -> int:
        """`channels` of the standard network in this one's width."""
        scaled = int(channels * self.width_multiplier + 0.5)
        if scaled < smallest:
            least = (smallest - 0.5) / channels
            raise UserError(
                f"width_multiplier={self.width_multiplier} leaves {self.name} too few channels; "
                f"the smallest is {least}"
            )
        return scaled

    def set_initializers(self) -> None:
        """Tell the convolutions, before they are built, how their kernels begin."""
        scale, mode, distribution = INITIALIZERS[self.initializer]
        for layer in self.submodules:
            if isinstance(layer, tf.keras.layers.Conv2D):
                layer.kernel_initializer = tf.keras.initializers.VarianceScaling(
                    scale, mode, distribution
                )

    @property
    def settings(self) -> dict[str, Any]:
        """{argument of the constructor: its value}."""
        values = {name: getattr(self, name) for name in arguments(type(self))}
        return {**values, "name": self.registered_name}

    def config(self) -> dict[str, Any]:
        """What `tfssl.backbones.build(**config)` makes this network from again, less what only
        training needs."""
        return {name: value for name, value in self.settings.items() if name not in TRAINING_ONLY}

    def twin(self) -> Network:
        """A network of the same form, with weights of its own."""
        settings = self.settings
        if "name" not in arguments(type(self)):
            del settings["name"]
        return type(self)(**settings)

    def build(self, input_shape: tf.TensorShape) -> None:
        if self.static_size and None in input_shape[1:3]:
            raise UserError(
                f"the weights of {self.name} depend on the size of its images: call it first with "
                "images of a known height and width"
            )
        # Here and not in the calls: names then do not depend on who calls the network first (the
        # closing slash makes the scope absolute), and a network of any size can be counted without
        # running it.
        self.set_initializers()
        with tf.name_scope(f"{self.name}/"):
            channels = self.build_layers(input_shape)
            if self.representation:
                with tf.name_scope(self.representation.name):
                    self.representation.build((None, channels))
        self.built = True

    def call(
        self, images: tf.Tensor, training: bool | None = None, keep: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """The endpoints.

        Args:
          images: [N, H, W, C], normalized as the task does it.
          training: whether batch statistics are the batch's own.
          keep: [N, K] int32, positions of the tokens that the network computes with, the others are
            left out; None: all. Only families that have tokens take it.

        Raises:
          UserError: `keep`, where there are no tokens.
        """
        more: dict[str, tf.Tensor] = {}
        if keep is not None:
            if "keep" not in inspect.signature(self.endpoints).parameters:
                raise UserError(
                    f"keep says which tokens a network computes with, and {self.name} has none: "
                    "leave it out"
                )
            more["keep"] = keep
        # Not as a decorator: that would hide the signature from Keras.
        endpoints = tf.autograph.experimental.do_not_convert(self.endpoints)(
            images, training, **more
        )
        if self.representation:
            endpoints["pre_logits"] = self.representation(endpoints["pre_logits"])
        return endpoints


TRAINING_ONLY = ("initializer", "norm_policy", "remat", "drop_path", "train_patches")


class Representation(tf.keras.layers.Dense):
    """A linear layer after the mean, which sets the size of the representation apart from the
    width: the 2019 study's Figure 6."""

    def __init__(self, size: int) -> None:
        super().__init__(size, name="representation", dtype=tf.keras.backend.floatx())


def variable_shapes(network: Any) -> list[tuple[int, ...]]:
    """Of the variables of a network that has none yet, without their memory; it is of no use
    afterwards."""
    found: list[tuple[int, ...]] = []

    def stand_in(make: Any, **variable: Any) -> Any:
        found.append(tuple(variable["shape"]))
        return make(**{**variable, "initial_value": 0.0, "shape": ()})

    with tf.variable_creator_scope(stand_in):
        network.build((None, None, None, getattr(network, "input_channels", 3)))
    return found

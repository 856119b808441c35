"""ResNet v1 (He et al., arXiv 1512.03385) and v2 (pre-activation, arXiv 1603.05027), of any width,
with three stems.

The geometry is that of the 2019 study (Kolesnikov, Zhai and Beyer, arXiv 1901.09005): a
bottleneck's stride sits on its 3x3 convolution, and zeros are padded on both sides alike, as in
PyTorch (SAME pads strided convolutions on one side only; `padding` chooses). Weight decay is the
pretext task's affair: no layer here adds a loss. With `sk_ratio` above 0 a v1 network is SimCLR
v2's SK-ResNet, whose own parts are in selective_kernel.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

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
from tfssl.backbones.rematerialize import rematerialize
from tfssl.backbones.selective_kernel import DeepRoot, SKUnit
from tfssl.errors import UserError, check_choice

UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}  # RevNets' too
DEPTHS = {**UNITS, 200: (3, 24, 36, 3)}


class Unit(tf.keras.layers.Layer):
    """A residual unit: NxHxWxC -> NxhxwxF, h = ceil(H / stride), F = width (basic) or 4 * width
    (bottleneck)."""

    def __init__(
        self,
        version: int,
        bottleneck: bool,
        width: int,
        stride: int,
        skip: bool,
        project: bool,
        norm: Callable[[str], tf.keras.layers.Layer],
        name: str,
        dilations: tuple[int, int] = (1, 1),
        same: bool = False,
    ) -> None:
        super().__init__(name=name)
        before, behind = (
            dilations  # of what lies before the unit's stride, or where it would be, and behind it
        )
        if bottleneck:
            middle = Conv(width, 3, stride, "conv2", before, same)
            self.convs = [Conv(width, 1, 1, "conv1"), middle, Conv(4 * width, 1, 1, "conv3")]
        else:
            self.convs = [
                Conv(width, 3, stride, "conv1", before, same),
                Conv(width, 3, 1, "conv2", behind),
            ]
        self.norms = [norm(f"bn{i}") for i in range(1, len(self.convs) + 1)]
        self.filters = self.convs[-1].filters
        self.projection = Conv(self.filters, 1, stride, "projection") if project else None
        self.projection_norm: tf.keras.layers.Layer = (
            norm("projection_bn") if project and version == 1 else None
        )
        self.version, self.skip = version, skip

    def build(self, input_shape: tf.TensorShape) -> None:
        pairs = zip(self.convs, self.norms) if self.version == 1 else zip(self.norms, self.convs)
        build_chain([layer for pair in pairs for layer in pair], input_shape[-1])
        build_chain(
            [layer for layer in (self.projection, self.projection_norm) if layer], input_shape[-1]
        )
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.v1(x, training) if self.version == 1 else self.v2(x, training)

    def v1(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Convolution, BN, ReLU, ..., convolution, BN; plus the input, or its projection with BN;
        ReLU."""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(tf.nn.relu(y) if i else y), training=training)
        if self.projection:
            x = self.projection_norm(self.projection(x), training=training)
        return tf.nn.relu(x + y if self.skip else y)

    def v2(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        """BN, ReLU, convolution, ...; plus the input, or a projection taken after its first BN and
        ReLU."""
        y = tf.nn.relu(self.norms[0](x, training=training))
        if self.projection:
            x = self.projection(y)
        y = self.convs[0](y)
        for conv, norm in zip(self.convs[1:], self.norms[1:]):
            y = conv(tf.nn.relu(norm(y, training=training)))
        return x + y if self.skip else y


class ResNet(Network):
    """Images [N, H, W, C], of any size and number of channels, to a dict of endpoints; made by
    `tfssl.backbones.build`.

    `after_root` and `block1` to `block4` are maps in the compute dtype; `pre_logits` [N, D] is
    float32 (float64 under floatx float64), D = 512 (depths 18 and 34) or 2048, times the width.
    v2's blocks are the raw sums, before the BN and ReLU that open the next unit; after its `block4`
    come a last BN, a ReLU unless `last_relu` is False (the study's "(-)" networks) and the mean
    over the map. v1 goes from `block4` to the mean directly.

    Args:
      name: resnet, its depth, and _v1 or _v2.
      stem: imagenet (7x7 stride 2, pooling), small (3x3, for 32 pixels), patch (7x7 stride 1),
        stride16 (imagenet's, but no stride in the last block).
      output_stride: 32, 16 or 8: blocks that would shrink the map further keep its size, and the
        3x3 convolutions behind their first stride see every second (or fourth) location instead
        (DeepLab: 16 or 8; the weights are those of the same network without it). 0: the stem's own
        stride.
      last_relu: A ReLU before the mean over the map; --nolast_relu: the 2019 study's (-) networks.
      skip: ResNets with the connections that make them ResNets (2019 study: its ablation).
      sk_ratio: Above 0: SimCLR v2's selective kernels and stem, in resnet{50..200}_v1 (0.0625).
      padding: Zeros around maps at strides: torch, on both sides alike; same, as TensorFlow's SAME:
        of even sides, after the last row and column rather than before the first (BYOL's code);
        simclr: torch's at convolutions, SAME at the max-pool (SimCLR's code).
      zero_init_residual: Residual units of v1 networks begin as their shortcuts (SimCLR, SimSiam).

    Raises:
      UserError: a setting of another depth or version, or one that contradicts another.
    """

    flag_names = {"skip": "skip_connections"}
    flag_bounds = {"sk_ratio": (0, 1)}

    endpoint_names = ("after_root", "block1", "block2", "block3", "block4", "pre_logits")

    def __init__(
        self,
        name: str,
        stem: str = "imagenet",
        output_stride: Literal[0, 8, 16, 32] = 0,
        last_relu: bool = True,
        skip: bool = True,
        sk_ratio: float = 0.0,
        zero_init_residual: bool = False,
        padding: Literal["torch", "same", "simclr"] = "torch",
        **common: Any,
    ) -> None:
        super().__init__(name, **common)
        self.stem, self.output_stride, self.last_relu, self.skip = (
            stem,
            output_stride,
            last_relu,
            skip,
        )
        self.sk_ratio, self.zero_init_residual = sk_ratio, zero_init_residual
        self.padding, same = padding, padding == "same"
        depth, self.version = (int(number) for number in name[len("resnet") :].split("_v"))
        self._check(depth)
        self.raw_maps = self.version == 2
        channels = self.scaled(64)  # the root's; every layer has a multiple of them

        size, stride, self.max_pool, _ = STEMS[stem]
        self.deep_root = None
        if self.sk_ratio and size == 7:
            self.deep_root = DeepRoot(self.scaled(32), stride, self.norm, "deep_root")
            size, stride = 3, 1
        self.root_conv = Conv(channels, size, stride, "root_conv", same=same)
        self.root_norm = self.norm("root_bn") if self.version == 1 else None
        fan_in, blocks = channels, []
        for i in range(4):
            units = []
            for j in range(DEPTHS[depth][i]):
                unit_stride, before, behind = (
                    self._strides[i] if j == 0 else (1, *self._strides[i][2:] * 2)
                )
                fan_out = channels * 2**i * (4 if depth >= 50 else 1)
                project = self.skip and (unit_stride > 1 or fan_in != fan_out)
                form = (channels * 2**i, unit_stride, self.skip, project, self.norm, f"unit{j}")
                unit = (
                    SKUnit(self.sk_ratio, *form)
                    if self.sk_ratio
                    else Unit(self.version, depth >= 50, *form, (before, behind), same)
                )
                if self.zero_init_residual:
                    unit.norms[-1].gamma_initializer = tf.keras.initializers.Zeros()
                units.append(unit)
                fan_in = fan_out
            blocks.append(units)
        self.block1, self.block2, self.block3, self.block4 = blocks
        self.last_norm = self.norm("last_bn") if self.version == 2 else None

    def _check(self, depth: int) -> None:
        check_choice("stem", self.stem, STEMS)
        check_choice("padding", self.padding, ("torch", "same", "simclr"))
        if self.padding == "same" and self.sk_ratio:
            raise UserError(
                "padding='same' is for plain units: SimCLR v2's networks have padding='simclr'"
            )
        if self.output_stride not in (0, 8, 16, 32):
            raise UserError(
                f"output_stride={self.output_stride}: choose 8, 16 or 32, or 0 for the stem's own"
            )
        if self.version == 1 and not self.last_relu:
            raise UserError(
                f"last_relu=False needs a v2 network, such as resnet{depth}_v2: v1's units end in "
                "a ReLU"
            )
        if not 0 <= self.sk_ratio < math.inf:
            raise UserError(
                f"sk_ratio={self.sk_ratio} must be at least 0, which means none; SimCLR v2 has "
                "0.0625"
            )
        for setting, least in (("sk_ratio", 50), ("zero_init_residual", 18)):
            if getattr(self, setting) and (self.version == 2 or depth < least):
                names = ", ".join(f"resnet{d}_v1" for d in DEPTHS if d >= least)
                raise UserError(
                    f"{setting}={getattr(self, setting)} is for {names}: {self.name} has no form "
                    "with it"
                )
        if self.zero_init_residual and not self.skip:
            raise UserError(
                "zero_init_residual=True needs skip=True: without skip connections nothing would "
                "pass the units"
            )
        if self.sk_ratio and self.output_stride:
            raise UserError(
                f"output_stride={self.output_stride} is for plain units: selective kernels shrink "
                "maps by a mean; leave sk_ratio at 0"
            )

    @property
    def _strides(self) -> list[tuple[int, int, int]]:
        """Of each block: the stride of its first unit, the dilation of what lies before that
        stride, and of what lies behind."""
        total, dilation, found = stem_stride(self.stem), 1, []
        for stride in STEMS[self.stem][3]:
            before = dilation
            if self.output_stride and total * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            total *= stride
            found.append((stride, before, dilation))
        return found

    @property
    def min_image_size(self) -> int:
        """The total stride: from this side on, each layer that halves the map still has two rows to
        choose from."""
        return stem_stride(self.stem) * math.prod(stride for stride, _, _ in self._strides)

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        root = (self.deep_root, self.root_conv, self.root_norm)
        channels = build_chain([layer for layer in root if layer], input_shape[-1])
        for block in self.endpoint_names[1:5]:
            with tf.name_scope(block):
                channels = build_chain(getattr(self, block), channels)
        build_chain([self.last_norm] if self.last_norm else [], channels)
        return channels

    def endpoints(self, images: tf.Tensor, training: bool | None) -> dict[str, tf.Tensor]:
        endpoints = {}
        x = self.deep_root(images, training=training) if self.deep_root else images
        x = self.root_conv(x)
        if self.root_norm:
            x = tf.nn.relu(self.root_norm(x, training=training))
        if self.max_pool and self.padding == "torch":
            x = tf.nn.max_pool2d(
                zero_pad(x, 3), 3, 2, "VALID"
            )  # in v2 the zeros enter the maximum, as in the study
        elif self.max_pool:
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        endpoints["after_root"] = x
        for block in self.endpoint_names[1:5]:
            for unit in getattr(self, block):
                x = (
                    rematerialize(unit, x)
                    if self.remat and training
                    else unit(x, training=training)
                )
            endpoints[block] = x
        if self.last_norm:
            x = self.last_norm(x, training=training)
            x = tf.nn.relu(x) if self.last_relu else x
        endpoints["pre_logits"] = global_mean(x)
        return endpoints

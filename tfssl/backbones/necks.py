"""Necks: what makes further endpoints of a backbone's, so that a pretext task can train the layers
that a detector adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfssl.backbones.layers import Conv, build_chain
from tfssl.backbones.norm import GroupNorm, Norm
from tfssl.errors import UserError, check_choice

Endpoints = dict[str, tf.Tensor]


class FPN(tf.keras.layers.Layer):
    """Feature pyramid: Lin et al., CVPR 2017 (arXiv 1612.03144). Maps whose sides halve, the finest
    first -> as many of one width, and one more, of half the coarsest one's side.

    Each map is projected, the next coarser sum is added to it (each location four times), and a 3x3
    convolution follows; a normalization follows each convolution. The last level is a 3x3
    convolution of stride 2 of the one before (FCOS, arXiv 1904.01355).

    Args:
      width: channels of all levels (the paper: 256).
      maps: how many maps there are.
      raw: the maps are sums, which a normalization and a ReLU follow first.
      norm: makes a normalization by its name.
    """

    def __init__(
        self, width: int, maps: int, raw: bool, norm: Callable[[str], tf.keras.layers.Layer]
    ) -> None:
        super().__init__(name="fpn")
        self.openings = [norm(f"opening_bn{i}") for i in range(maps)] if raw else []
        self.laterals = [Conv(width, 1, 1, f"lateral{i}") for i in range(maps)]
        self.lateral_norms = [norm(f"lateral_bn{i}") for i in range(maps)]
        self.outputs = [Conv(width, 3, 1 if i < maps else 2, f"output{i}") for i in range(maps + 1)]
        self.output_norms = [norm(f"output_bn{i}") for i in range(maps + 1)]

    def build_maps(self, channels: list[int]) -> None:
        """Create all variables, for maps of so many channels."""
        for i, fan_in in enumerate(channels):
            chain = [*self.openings[i : i + 1], self.laterals[i], self.lateral_norms[i]]
            build_chain([*chain, self.outputs[i], self.output_norms[i]], fan_in)
        build_chain([self.outputs[-1], self.output_norms[-1]], self.outputs[-1].filters)
        self.built = True

    def call(self, maps: list[tf.Tensor], training: bool | None = None) -> list[tf.Tensor]:
        if self.openings:
            pairs = zip(self.openings, maps)
            maps = [tf.nn.relu(norm(x, training=training)) for norm, x in pairs]
        sums: list[tf.Tensor] = []
        for conv, norm, x in reversed(list(zip(self.laterals, self.lateral_norms, maps))):
            lateral = norm(conv(x), training=training)  # NxhxwxD
            sums.insert(0, lateral + twice(sums[0], lateral) if sums else lateral)
        levels = [
            norm(conv(x), training=training)
            for conv, norm, x in zip(self.outputs, self.output_norms, sums)
        ]
        return [*levels, self.output_norms[-1](self.outputs[-1](levels[-1]), training=training)]


class Tower(tf.keras.layers.Layer):
    """3x3 convolutions, each with GroupNorm and ReLU: [N, h, w, C] -> [N, h, w, width].

    Args:
      width: channels; groups have as many of them that there are at most 32.
      convolutions: how many.
    """

    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__(name="tower")
        self.convolutions = [Conv(width, 3, 1, f"conv{i}") for i in range(convolutions)]
        groups = math.gcd(width, 32)
        self.norms = [GroupNorm(groups=groups, name=f"norm{i}") for i in range(convolutions)]

    def build(self, input_shape: tf.TensorShape) -> None:
        layers = [layer for pair in zip(self.convolutions, self.norms) for layer in pair]
        build_chain(layers, input_shape[-1])
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for conv, norm in zip(self.convolutions, self.norms):
            x = tf.nn.relu(norm(conv(x)))
        return x


def twice(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Each location of a map four times, cut to the sides of another: NxhxwxC -> NxHxWxC, h =
    ceil(H / 2)."""
    n, h, w, c = (d if d is not None else tf.shape(x)[i] for i, d in enumerate(x.shape))
    x = tf.broadcast_to(x[:, :, None, :, None], [n, h, 2, w, 2, c])
    x = tf.reshape(x, [n, 2 * h, 2 * w, c])
    height, width = (
        d if d is not None else tf.shape(like)[i] for i, d in enumerate(like.shape[1:3], 1)
    )
    return x[:, :height, :width]


class Necked(tf.keras.Model):
    """A backbone and its neck: the backbone's endpoints, the neck's levels `p...`, those of its
    tower `t...`, and `pre_logits`: the backbone's, and behind it the mean of the last levels,
    rectified, over locations and levels, so that a task that compares whole images trains the neck
    as well.

    The number of a level is the binary logarithm of its stride: of a ResNet with its standard stem
    p3 to p6. They are made of the deepest map of each size, the three coarsest of them. The tower
    is what a dense detector has between levels and predictions (RetinaNet, FCOS): 3x3 convolutions,
    each with GroupNorm and ReLU, that all levels share.

    Args:
      trunk: a backbone with maps.
      neck: fpn.
      width: channels of the levels, and of the tower.
      tower: its number of convolutions (FCOS: 4); 0: none.

    Raises:
      UserError: there is no such neck, or the backbone has not two maps of which one has half the
        other's side.
    """

    raw_maps = False  # the deepest one is a level

    def __init__(
        self, trunk: tf.keras.Model, neck: str = "fpn", width: int = 256, tower: int = 0
    ) -> None:
        super().__init__(name=trunk.name)
        check_choice("neck", neck, ("fpn",))
        if width < 1:
            raise UserError(f"neck_width={width} is a number of channels: at least 1")
        if tower < 0:
            raise UserError(f"neck_tower={tower} is a number of convolutions: at least 0")
        self.trunk, self.neck, self.neck_width, self.neck_tower = trunk, neck, width, tower
        self.input_channels = getattr(trunk, "input_channels", 3)
        self.fpn: tf.keras.layers.Layer = None  # made in `build`, where the maps are known
        self.tower: tf.keras.layers.Layer = None
        self._maps: tuple[str, ...] = ()
        self._levels: tuple[str, ...] = ()

    def build(self, input_shape: tf.TensorShape) -> None:
        channels = input_shape[-1]
        side = max(128, self.trunk.min_image_size)
        sides = [n or side for n in input_shape[1:3]]
        with tf.__internal__.FuncGraph(
            "shapes"
        ).as_default():  # which nobody runs: what the maps' sizes are
            endpoints = self.trunk(
                tf.zeros([1, *sides, channels], tf.keras.backend.floatx()), training=False
            )
        kinds = self.trunk.endpoint_kinds
        deepest = {
            tuple(x.shape[1:3]): name for name, x in endpoints.items() if kinds[name] == "map"
        }
        maps = list(deepest.items())[-3:]
        halved = [
            tuple(math.ceil(n / 2) for n in one) == other
            for (one, _), (other, _) in zip(maps, maps[1:])
        ]
        if not halved or not all(halved):
            raise UserError(
                f"neck={self.neck} needs maps whose sides halve, and {self.name} has "
                f"{', '.join(f'{n} {s}' for s, n in maps)}"
            )
        raw = bool(getattr(self.trunk, "raw_maps", False))
        norm = getattr(self.trunk, "norm", self.norm_policy.layer)
        self.fpn = FPN(self.neck_width, len(maps), raw, norm)
        with tf.name_scope(f"{self.name}/{self.fpn.name}/"):
            self.fpn.build_maps([endpoints[name].shape[-1] for _, name in maps])
        if self.neck_tower:
            self.tower = Tower(self.neck_width, self.neck_tower)
            with tf.name_scope(f"{self.name}/{self.tower.name}/"):
                self.tower.build(tf.TensorShape([None, None, None, self.neck_width]))
        strides = [round(math.log2(sides[0] / size[0])) for size, _ in maps]
        strides.append(strides[-1] + 1)
        kinds_of_levels = "pt" if self.tower else "p"
        self._maps = tuple(name for _, name in maps)
        self._levels = tuple(f"{kind}{stride}" for kind in kinds_of_levels for stride in strides)
        self.built = True

    def call(
        self, images: tf.Tensor, training: bool | None = None, keep: tf.Tensor | None = None
    ) -> Mapping[str, tf.Tensor]:
        """The endpoints; see `layers.Network.call`."""
        if keep is not None:
            raise UserError(
                f"keep says which tokens a network computes with, and a {self.neck} needs maps: "
                "leave it out"
            )
        endpoints = dict(self.trunk(images, training=training))
        levels = self.fpn([endpoints[name] for name in self._maps], training=training)
        if self.tower:
            levels += [self.tower(level) for level in levels]
        own = endpoints.pop("pre_logits")
        last = levels[-len(self.levels) :]
        pooled = [tf.reduce_mean(tf.nn.relu(level), [1, 2]) for level in last]
        pyramid = tf.cast(tf.add_n(pooled) / len(pooled), own.dtype)  # NxE
        vector = tf.concat([own, pyramid], 1)
        return {**endpoints, **dict(zip(self._levels, levels)), "pre_logits": vector}

    def merged(self, endpoints: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The sum of the last levels, each enlarged to the finest one's size: what a task of pixels
        reads (Kirillov et al., arXiv 1901.02446, without the convolutions between)."""
        *finer, total = (endpoints[name] for name in self.levels)
        for level in reversed(finer):
            total = level + twice(total, level)
        return total

    @property
    def endpoint_kinds(self) -> dict[str, str]:
        """{endpoint: kind}; the levels among them once the variables exist."""
        kinds = dict(self.trunk.endpoint_kinds)
        last = kinds.pop("pre_logits")
        return {**kinds, **dict.fromkeys(self._levels, "map"), "pre_logits": last}

    @property
    def levels(self) -> tuple[str, ...]:
        """The last levels there are, the tower's or the pyramid's, the finest first, once the
        variables exist."""
        return tuple(name for name in self._levels if name[0] == self._levels[-1][0])

    @property
    def endpoint_names(self) -> tuple[str, ...]:
        return (*self.trunk.endpoint_names[:-1], *self._levels, "pre_logits")

    @property
    def norm_policy(self) -> Norm:
        return self.trunk.norm_policy

    @norm_policy.setter
    def norm_policy(self, norm: Norm) -> None:
        self.trunk.norm_policy = norm

    @property
    def autograph(self) -> bool:
        return self.trunk.autograph

    @property
    def static_size(self) -> bool:
        return bool(getattr(self.trunk, "static_size", False))

    @property
    def min_image_size(self) -> int:
        return self.trunk.min_image_size

    def config(self) -> dict[str, Any] | None:
        """As `layers.Network.config`."""
        config = self.trunk.config()
        own = {"neck": self.neck, "neck_width": self.neck_width, "neck_tower": self.neck_tower}
        return config and {**config, **own}

    def twin(self) -> Necked:
        """A network of the same form, with weights of its own."""
        return Necked(self.trunk.twin(), self.neck, self.neck_width, self.neck_tower)

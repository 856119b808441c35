"""ResNets as SimCLR's code names them, which is by number, in the order in which layers are made:
conv2d, conv2d_1, ..., batch_normalization, batch_normalization_1, ... (TensorFlow 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from tfssl.backbones.resnet import DEPTHS
from tfssl.errors import UserError
from tfssl.interop.layouts.layout import Shapes
from tfssl.interop.links import SAME, Link, batch_norm, conv

_HEAD = re.compile(r"(^|/)(projection_head|supervised_head|head_\w+|linear_layer)(/|$)")
_CONV = re.compile(r"(?:.*/)?conv2d(?:_(\d+))?/kernel")
_NORM = re.compile(
    r"(?:.*/)?(?:sync_)?batch_normalization(?:_(\d+))?/(gamma|beta|moving_mean|moving_variance)"
)
_VALUES = ("gamma", "beta", "moving_mean", "moving_variance")


class SimCLRResNet:
    """In `links` the convolutions are conv0, conv1, ..., the normalizations bn0, bn1, ..."""

    def keys(self, names: Collection[str], prefix: str) -> dict[str, dict[str, str]]:
        begins = re.compile(prefix)
        own = [name for name in names if begins.match(name) and not _HEAD.search(name)]
        convs = {int(m[1] or 0): name for name in own if (m := _CONV.fullmatch(name))}
        found = {f"conv{i}": convs[number] for i, number in enumerate(sorted(convs))}
        norms = [(m, name) for name in own if (m := _NORM.fullmatch(name))]
        order = {number: i for i, number in enumerate(sorted({int(m[1] or 0) for m, _ in norms}))}
        found |= {f"bn{order[int(m[1] or 0)]}/{m[2]}": name for m, name in norms}
        return {"": found} if convs and norms else {}

    def settings(self, shapes: Shapes) -> dict[str, Any]:
        convs = sum(name.startswith("conv") for name in shapes)
        size, _, _, channels = shapes["conv0"] if len(shapes["conv0"]) == 4 else (0, 0, 0, 0)
        for depth, units in DEPTHS.items():
            for selective in (False, True):
                # root; projections; a unit's own, of which a selective kernel has two more
                if depth >= 50 and convs == (
                    (3 if selective else 1) + 4 + (5 if selective else 3) * sum(units)
                ):
                    small = size == 3 and not selective
                    return {
                        "name": f"resnet{depth}_v1",
                        "width_multiplier": channels / (32 if selective else 64),
                        "stem": "small" if small else "imagenet",
                        "sk_ratio": 0.0625 if selective else 0.0,
                    }
        raise UserError(
            f"--weights: a SimCLR network of {convs} convolutions is none of those here: ResNet-50 "
            "to -200, with selective kernels or without, are"
        )

    def links(self, backbone: Any) -> list[Link]:
        if getattr(backbone, "version", None) != 1:
            raise UserError(f"backbone {backbone.name} is no ResNet v1")
        layers = list(_in_order(backbone))
        convs = [layer for layer in layers if hasattr(layer, "kernel")]
        norms = [layer for layer in layers if hasattr(layer, "gamma")]
        found = [conv(f"conv{i}", layer, SAME) for i, layer in enumerate(convs)]
        for i, layer in enumerate(norms):
            found += batch_norm(layer, [f"bn{i}/{value}" for value in _VALUES])
        return found

    def is_own(self, name: str) -> bool:
        return name.startswith(("conv", "bn"))


def _in_order(network: Any) -> Iterator[Any]:
    """The layers in SimCLR's order: of a unit the projection first."""
    if network.deep_root:
        for pair in zip(network.deep_root.convs, network.deep_root.norms):
            yield from pair
    yield from (network.root_conv, network.root_norm)
    for i in range(1, 5):
        for unit in getattr(network, f"block{i}"):
            if unit.projection:
                yield from (unit.projection, unit.projection_norm)
            norms = iter(unit.norms)
            for layer in unit.convs:
                if hasattr(layer, "squeeze"):  # a selective kernel
                    yield from (layer.conv, layer.norm, layer.squeeze, layer.squeeze_norm)
                    yield layer.attend
                else:
                    yield from (layer, next(norms))

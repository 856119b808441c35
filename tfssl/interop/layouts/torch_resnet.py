"""ResNets as torchvision names them, and timm, and nearly all projects in PyTorch."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tfssl.interop.layouts.layout import Shapes, checked_resnet, counted, resnet_name, with_prefix
from tfssl.interop.links import Link, batch_norm, conv

_NORM = ("weight", "bias", "running_mean", "running_var")


class TorchResNet:
    """conv1, bn1, layer1.0.conv1, layer1.0.bn1, ..., layer1.0.downsample.0, .1, ..., fc."""

    def keys(self, names: Collection[str], prefix: str) -> dict[str, dict[str, str]]:
        return with_prefix(names, prefix, "conv1.weight")

    def settings(self, shapes: Shapes) -> dict[str, Any]:
        units = counted(shapes, r"layer(\d+)\.(\d+)\.conv1\.weight")
        channels, _, size, *_ = *shapes["conv1.weight"], 0, 0, 0
        return {
            "name": resnet_name(units, "layer1.0.conv3.weight" in shapes),
            "width_multiplier": channels / 64,
            "stem": "small" if size == 3 else "imagenet",
        }

    def links(self, backbone: Any) -> list[Link]:
        network = checked_resnet(backbone)

        def norm(key: str, layer: Any) -> list[Link]:
            return batch_norm(layer, [f"{key}.{name}" for name in _NORM])

        found = [conv("conv1.weight", network.root_conv), *norm("bn1", network.root_norm)]
        for i in range(1, 5):
            for j, unit in enumerate(getattr(network, f"block{i}")):
                key = f"layer{i}.{j}"
                for n, (convolution, normalization) in enumerate(zip(unit.convs, unit.norms), 1):
                    found += [
                        conv(f"{key}.conv{n}.weight", convolution),
                        *norm(f"{key}.bn{n}", normalization),
                    ]
                if unit.projection:
                    found += [
                        conv(f"{key}.downsample.0.weight", unit.projection),
                        *norm(f"{key}.downsample.1", unit.projection_norm),
                    ]
        return found

    def is_own(self, name: str) -> bool:
        return bool(re.match(r"conv\d|bn\d|layer\d", name))


def detectron2(name: str) -> str:
    """detectron2's name for one of torchvision's: res2.0.conv1.norm.weight, stem.conv1.weight."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return name if name.startswith("res") else f"stem.{name}"


def detectron2_pyramid(fpn: Any, first: int = 3) -> list[Link]:
    """fpn_lateral3, its norm, fpn_output3, its norm, fpn_lateral4, ...: of a `backbones.necks.FPN`
    whose first level is p3. Its last level is left out: detectron2's is made in another way."""
    found: list[Link] = []
    laterals = zip(fpn.laterals, fpn.lateral_norms)
    for i, (lateral, output) in enumerate(zip(laterals, zip(fpn.outputs, fpn.output_norms)), first):
        for key, (convolution, normalization) in (
            (f"fpn_lateral{i}", lateral),
            (f"fpn_output{i}", output),
        ):
            found.append(conv(f"{key}.weight", convolution))
            found += batch_norm(normalization, [f"{key}.norm.{name}" for name in _NORM])
    return found

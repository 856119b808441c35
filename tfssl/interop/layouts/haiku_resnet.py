"""ResNets as haiku names them: BYOL's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tfssl.interop.layouts.layout import Shapes, checked_resnet, counted, resnet_name
from tfssl.interop.links import CHANNELS, SAME, Link, batch_norm, conv


class HaikuResNet:
    """initial_conv/w, initial_batchnorm/{scale, offset}, block_group_0/~/block_0/~/conv_0/w, ...;
    of the state initial_batchnorm/~/{mean_ema, var_ema}/average."""

    def keys(self, names: Collection[str], prefix: str) -> dict[str, dict[str, str]]:
        part = re.compile(rf"({prefix})(?:params|state)/res_net\w*/~/(.*)")
        found: dict[str, dict[str, str]] = {}
        for name in names:
            if match := part.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = name
        return {p: keys for p, keys in found.items() if "initial_conv/w" in keys}

    def settings(self, shapes: Shapes) -> dict[str, Any]:
        units = counted(shapes, r"block_group_(\d+)/~/block_(\d+)/~/conv_0/w")
        return {
            "name": resnet_name(units, "block_group_0/~/block_0/~/conv_2/w" in shapes),
            "width_multiplier": shapes["initial_conv/w"][-1] / 64,
            "stem": "imagenet",
        }

    def links(self, backbone: Any) -> list[Link]:
        network = checked_resnet(backbone)

        def norm(key: str, layer: Any) -> list[Link]:
            averages = (f"{key}/~/{which}_ema/average" for which in ("mean", "var"))
            return batch_norm(layer, [f"{key}/scale", f"{key}/offset", *averages], CHANNELS)

        found = [
            conv("initial_conv/w", network.root_conv, SAME),
            *norm("initial_batchnorm", network.root_norm),
        ]
        for i in range(4):
            for j, unit in enumerate(getattr(network, f"block{i + 1}")):
                key = f"block_group_{i}/~/block_{j}/~"
                for n, (convolution, normalization) in enumerate(zip(unit.convs, unit.norms)):
                    found.append(conv(f"{key}/conv_{n}/w", convolution, SAME))
                    found += norm(f"{key}/batchnorm_{n}", normalization)
                if unit.projection:
                    found.append(conv(f"{key}/shortcut_conv/w", unit.projection, SAME))
                    found += norm(f"{key}/shortcut_batchnorm", unit.projection_norm)
        return found

    def is_own(self, name: str) -> bool:
        # Averages have a counter and a hidden value beside them.
        return not name.endswith(("/counter", "/hidden")) and not name.startswith("logits")

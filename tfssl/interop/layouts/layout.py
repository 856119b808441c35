"""What a name map is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from tfssl.backbones.resnet import DEPTHS
from tfssl.errors import UserError
from tfssl.interop.links import Link

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by their names without the prefix


class Layout(Protocol):
    """How a project names the weights of one kind of network."""

    def keys(self, names: Collection[str], prefix: str) -> dict[str, dict[str, str]]:
        """The networks of this kind that a file may hold.

        Args:
          names: of the file's tensors.
          prefix: a regular expression of what stands before a network's names.

        Returns:
          {prefix: {name as in `links`: name in the file}}, of all names that have the prefix.
        """

    def settings(self, shapes: Shapes) -> dict[str, Any]:
        """What `tfssl.backbones.build` makes the network of, as far as shapes tell.

        Raises:
          UserError: there is no such network here.
        """

    def links(self, backbone: Any) -> list[Link]:
        """The weights of a network that has its variables.

        Raises:
          UserError: the layout has no names for this one.
        """

    def is_own(self, name: str) -> bool:
        """Whether a name would be a weight of the network rather than of a head on it."""


def with_prefix(names: Collection[str], prefix: str, marker: str) -> dict[str, dict[str, str]]:
    """{prefix: {rest of the name: name}}, of the prefixes that the name `marker` has."""
    found = re.compile(f"({prefix}){re.escape(marker)}")
    prefixes = [match[1] for name in names if (match := found.fullmatch(name))]
    return {p: {name[len(p) :]: name for name in names if name.startswith(p)} for p in prefixes}


def counted(shapes: Collection[str], pattern: str) -> list[int]:
    """How many numbers there are, from 0 on, in the names that match a pattern with one group: for
    each value of its first group, if it has two."""
    found: dict[str, set[int]] = {}
    for name in shapes:
        match = re.match(pattern, name)
        if match:
            *group, number = match.groups()
            found.setdefault(group[0] if group else "", set()).add(int(number))
    for numbers in found.values():
        if max(numbers) >= len(numbers):
            raise UserError(
                f"--weights: its blocks are not numbered from 0 on: {max(numbers)} is the last of "
                f"{len(numbers)}"
            )
    return [len(found[group]) for group in sorted(found, key=lambda group: (len(group), group))]


def resnet_name(units: list[int], bottleneck: bool) -> str:
    """The name of a ResNet v1 with so many units in its four blocks.

    Raises:
      UserError: there is none.
    """
    for depth, count in DEPTHS.items():
        if list(count) == units and (depth >= 50) == bottleneck:
            return f"resnet{depth}_v1"
    kind = "bottleneck" if bottleneck else "basic"
    raise UserError(f"--weights: there is no ResNet with {units} {kind} units in its blocks here")


def checked_resnet(backbone: Any) -> Any:
    """The backbone, if it is a ResNet v1 without SimCLR v2's parts.

    Raises:
      UserError: it is another network.
    """
    if getattr(backbone, "version", None) != 1 or getattr(backbone, "sk_ratio", 0):
        raise UserError(
            f"backbone {backbone.name} has no counterpart in this layout: ResNets v1 and ViTs have"
        )
    return backbone

"""From a file of weights to a backbone that has them: which family it is of, which network, and
whether every weight is there."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfssl import backbones
from tfssl.backbones.layers import variable_shapes
from tfssl.errors import UserError
from tfssl.interop.families import FAMILIES, Family
from tfssl.interop.formats.weights import Weights
from tfssl.interop.layouts.layout import Layout
from tfssl.interop.links import Link

_NO_WEIGHTS = re.compile(r"(.*[./])?(num_batches_tracked|global_step|counter|hidden)")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be loaded of a file.

    Attributes:
      family: name of the family.
      prefix: what stands before the network's names in the file; "" for none.
      settings: of the network, for `tfssl.backbones.build`.
      normalization: one of `families.NORMALIZATIONS`; None: the family does not know.
      keys: {name as in the layout: name in the file}.
    """

    family: str
    prefix: str
    layout: Layout
    settings: Mapping[str, Any]
    normalization: str | None
    keys: Mapping[str, str]

    @property
    def _same(self) -> tuple[Any, ...]:
        """Equal of plans that load the same network."""
        return (self.prefix, type(self.layout), sorted(self.settings.items()), self.normalization)


def plan(weights: Weights, family: str | None = None) -> Plan:
    """What a file holds of a family, or of the only one whose names it has.

    Raises:
      UserError: there is no such family; the file has no network of it, or of none; it may be
        several that differ.
    """
    found = [
        option
        for name in ([family] if family else FAMILIES.names)
        for option in _options(weights, name)
    ]
    if not found:
        names = sorted(weights.tensors)
        raise UserError(
            f"--weights={weights.path}: none of its {len(names)} names is that of a network of "
            f"{family or 'any family'}; they are {', '.join(names[:4])}, ...: "
            f"--from={'|'.join(FAMILIES.names)}, or the import path of a Family of your own"
        )
    if any(option._same != found[0]._same for option in found):
        families = dict.fromkeys(option.family for option in found)
        prefixes = dict.fromkeys(option.prefix for option in found)
        if len(families) > 1:
            raise UserError(
                f"--weights={weights.path}: its names are those of {', '.join(families)}, which "
                "differ in what they do with images: say which one by --from"
            )
        raise UserError(
            f"--weights={weights.path} holds several networks: {', '.join(map(repr, prefixes))}"
        )
    return found[0]


def _options(weights: Weights, name: str) -> list[Plan]:
    family: Family = FAMILIES.find(name)()
    options = []
    for kind in family.layouts:
        layout = kind()
        for prefix, keys in layout.keys(weights.tensors, family.prefix).items():
            shapes = {key: weights.tensors[found].shape for key, found in keys.items()}
            settings = family.adapt(layout.settings(shapes))
            normalization = family.normalized(settings)
            options.append(Plan(name, prefix, layout, settings, normalization, keys))
    return options


def build(weights: Weights, what: Plan) -> tuple[Any, list[str]]:
    """The network with the file's weights, and what of the file it does not use, a line each.

    Raises:
      UserError: a weight is missing, has another shape, or belongs to the network and has no
        counterpart; the file is smaller than the network.
    """
    network = backbones.build(**what.settings)
    _check_size(network.twin(), weights)
    network.build((None, None, None, 3))
    links = what.layout.links(network)
    missing = [link.key for link in links if link.key not in what.keys]
    if missing:
        raise UserError(
            f"--weights={weights.path} lacks {len(missing)} of {len(links)} weights of "
            f"{network.name}: {_some(missing)}"
        )
    values = [(link, weights.tensors[what.keys[link.key]]) for link in links]
    if sum(x.nbytes for _, x in values) > weights.size:
        raise UserError(f"--weights={weights.path}: its tensors share their numbers")
    for link, tensor in values:
        assign(link, tensor, weights.path)
    used = {what.keys[link.key] for link in links}
    own = [
        key
        for key, name in what.keys.items()
        if name not in used and what.layout.is_own(key) and not _NO_WEIGHTS.fullmatch(key)
    ]
    if own:
        raise UserError(
            f"--weights={weights.path} has {len(own)} weights of its network that {network.name} "
            f"has not: {_some(own)}; it is another network"
        )
    heads = FAMILIES.find(what.family).heads
    return network, _unused(set(weights.tensors) - used, what.prefix, heads)


def assign(link: Link, tensor: np.ndarray, path: str) -> None:
    """Give the variables of a link their values.

    Raises:
      UserError: they have another shape.
    """
    shapes = [tuple(v.shape) for v in link.variables]
    values = link.form.read(tensor, shapes)
    if [v.shape for v in values] != shapes:
        raise UserError(
            f"--weights={path}: {link.key} has the shape {list(tensor.shape)}, of which "
            f"{' and '.join(str(list(shape)) for shape in shapes)} cannot be made: it is another "
            "network"
        )
    for variable, value in zip(link.variables, values):
        variable.assign(np.asarray(value, variable.dtype.as_numpy_dtype))


def _check_size(network: Any, weights: Weights) -> None:
    """Refuse a network that the file cannot fill, before its memory is allocated: shapes are a
    stranger's numbers."""
    numbers = sum(math.prod(shape) for shape in variable_shapes(network))
    if 2 * numbers > weights.size:  # float16 is the least
        raise UserError(
            f"--weights={weights.path} has {weights.size} bytes, too few for the {numbers} weights "
            f"of {network.name} that its shapes promise"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _unused(names: set[str], prefix: str, heads: Mapping[str, str]) -> list[str]:
    """A line for each kind of tensor that is left."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(names):
        if _NO_WEIGHTS.fullmatch(name):
            continue
        rest = name[len(prefix) :] if name.startswith(prefix) else name
        inner = re.sub(r"^(?:(?:state_dict|model)/)?(?:module\.)?", "", name)
        what = next(
            (
                what
                for head, what in heads.items()
                if any(text.startswith(head) for text in (name, rest, inner))
            ),
            "unknown",
        )
        groups[what].append(name)
    return [f"{what}: {len(group)} ({_some(group)})" for what, group in groups.items()]


def image_size(network: Any) -> int:
    """Side of the images that a network was trained on: those of a ViT's positions, or 224."""
    grid: int = getattr(network, "grid", 0)
    return grid * network.patch if grid else 224

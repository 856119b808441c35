"""Starting weights from a Hub module."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.task import Pretext
from tfssl.training.callbacks import say


def from_module(model: Pretext, handle: str) -> None:
    """Assign the variables of a Hub module to the networks that `model` publishes, and to its
    backbone, which may be another: those that match by name within the network and shape.

    A module whose variables have the networks' shapes in their order matches whole, whatever its
    names. Of several networks the first is matched with the first that the module holds, and so on.

    Raises:
      UserError: the module cannot be read, or nothing matches.
    """
    from tfssl.hub.load import load

    theirs = list(load(handle).variables)
    backbone = () if model.backbone in model.published else (model.backbone,)
    for networks in filter(None, (model.published, backbone)):
        ours = [v for network in networks for v in network.variables]
        pairs = list(zip(ours, theirs))
        if [v.shape for v in theirs] != [v.shape for v in ours]:
            named = _by_name(theirs)
            pairs = [(v, named[name]) for name, v in _by_name(ours).items() if name in named]
            pairs = [(v, value) for v, value in pairs if v.shape == value.shape]
        names = " and ".join(network.name for network in networks)
        if not pairs:
            raise UserError(
                f"--init_module={handle}: none of its {len(theirs)} variables matches one of "
                f"{names} by name and shape"
            )
        for variable, value in pairs:
            variable.assign(tf.cast(value, variable.dtype))
        say(f"initialised {len(pairs)} of {len(ours)} variables from {handle}")


def _by_name(variables: Iterable[tf.Variable]) -> dict[tuple[str, int], tf.Variable]:
    """{(name, which of those of this name): variable}. The name is without the network's own, which
    differs between a backbone and a copy of it: block1/unit0/conv1/kernel."""
    named: dict[tuple[str, int], tf.Variable] = {}
    seen: collections.Counter[str] = collections.Counter()
    for variable in variables:
        name = variable.name.split(":")[0].split("/", 1)[-1]
        named[name, seen[name]] = variable
        seen[name] += 1
    return named

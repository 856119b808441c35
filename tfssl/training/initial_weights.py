"""Starting weights from a Hub module."""

from __future__ import annotations

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.training.callbacks import say


def from_module(backbone: tf.keras.Model, handle: str) -> None:
    """Assign to `backbone` the variables of a Hub module that match: by name within the network and shape.

    A module whose variables have the backbone's shapes in the backbone's order matches whole, whatever its names.

    Raises:
      UserError: the module cannot be read, or nothing matches.
    """
    from tfssl.hub.load import load

    theirs = list(load(handle).variables)
    ours = list(backbone.variables)
    if [v.shape for v in theirs] == [v.shape for v in ours]:
        pairs = list(zip(ours, theirs))  # noqa: B905 (Python 3.9)
    else:
        by_name = {_inner_name(v): v for v in theirs}
        pairs = [
            (v, by_name[_inner_name(v)])
            for v in ours
            if _inner_name(v) in by_name and by_name[_inner_name(v)].shape == v.shape
        ]
    if not pairs:
        raise UserError(
            f"--init_module={handle}: none of its {len(theirs)} variables matches one of {backbone.name} by name and shape"
        )
    for variable, value in pairs:
        variable.assign(tf.cast(value, variable.dtype))
    say(f"initialised {len(pairs)} of {len(ours)} variables from {handle}")


def _inner_name(variable: tf.Variable) -> str:
    """The name without the network's own, which differs between a backbone and a copy of it: block1/unit0/conv1/kernel."""
    return variable.name.split(":")[0].split("/", 1)[-1]

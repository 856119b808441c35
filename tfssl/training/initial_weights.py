"""Starting weights from a Hub module."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.task import Pretext
from tfssl.training.callbacks import say


def from_module(model: Pretext, handle: str) -> None:
    """Assign the variables of a Hub module to the networks that `model` publishes, and to its
    backbone, which may be another: those that match by name within the network and shape.

    A module whose variables have the networks' shapes in their order matches whole, whatever its
    names. The stem of a module of images with another number of channels is `adapted`. Of several
    networks the first is matched with the first that the module holds, and so on.

    Raises:
      UserError: the module cannot be read, or nothing matches.
    """
    from tfssl.hub.load import load

    module = load(handle)
    theirs = list(module.variables)
    channels = module.pixels["channels"], getattr(model.backbone, "input_channels", 3)
    backbone = () if model.backbone in model.published else (model.backbone,)
    for networks in filter(None, (model.published, backbone)):
        ours = [v for network in networks for v in network.variables]
        pairs = list(zip(ours, theirs))
        fits = functools.partial(_fits, channels)
        if len(theirs) != len(ours) or not all(map(fits, ours, theirs)):
            named = _by_name(theirs)
            pairs = [(v, named[name]) for name, v in _by_name(ours).items() if name in named]
            pairs = [(v, value) for v, value in pairs if fits(v, value)]
        names = " and ".join(network.name for network in networks)
        if not pairs:
            raise UserError(
                f"--init_module={handle}: none of its {len(theirs)} variables matches one of "
                f"{names} by name and shape"
            )
        for variable, value in pairs:
            variable.assign(tf.cast(adapted(value, variable.shape), variable.dtype))
        say(f"initialised {len(pairs)} of {len(ours)} variables from {handle}")


def adapted(kernel: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """A kernel [h, w, C, D] of the stem for another number of channels: each gets the sum over the
    old ones, by the new number. To an image whose channels are all equal the stem answers as
    before, so a gray image is to one channel what it was to RGB. Others stay as they are."""
    if kernel.shape == shape:
        return tf.convert_to_tensor(kernel)
    total = tf.reduce_sum(kernel, 2, keepdims=True)
    return tf.repeat(total / shape[2], shape[2], 2)


def _fits(channels: tuple[int, int], ours: tf.Variable, theirs: tf.Variable) -> bool:
    """Whether a variable can take the value of another: of the same shape, but for the (theirs,
    our) `channels` of images."""
    if ours.shape == theirs.shape:
        return True
    if len(ours.shape) != 4 or len(theirs.shape) != 4 or channels[0] == channels[1]:
        return False
    without = [tuple(v.shape[i] for i in (0, 1, 3)) for v in (ours, theirs)]
    return without[0] == without[1] and (theirs.shape[2], ours.shape[2]) == channels


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

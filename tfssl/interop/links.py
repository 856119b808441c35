"""One weight here and there: a name in somebody's file, our variables, and how the one's numbers
become the other's. A list of links is a map that is read in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Form:
    """How numbers are laid out.

    Attributes:
      read: a tensor of the file, and the variables' shapes -> their values.
      write: the values -> the tensor.
    """

    read: Callable[[np.ndarray, Sequence[tuple[int, ...]]], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Link:
    """A tensor of a file, by its name without the prefix, and the variables that it is."""

    key: str
    variables: tuple[tf.Variable, ...]
    form: Form


def _transposed(there: tuple[int, ...], here: tuple[int, ...]) -> Form:
    return Form(
        lambda x, _: [x.transpose(there) if x.ndim == len(there) else x],
        lambda values: values[0].transpose(here),
    )


SAME = Form(lambda x, _: [x], lambda values: values[0])
CONV = _transposed((2, 3, 1, 0), (3, 2, 0, 1))  # OIHW there, HWIO here
DENSE = _transposed((1, 0), (1, 0))
# [1, 1, 1, C] there, [C] here
CHANNELS = Form(
    lambda x, _: [x.reshape(-1) if x.shape[-1:] == (x.size,) else x],
    lambda values: values[0][None, None, None],
)


def _positions(x: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    channels = shapes[-1][-1]
    if x.ndim != 3 or x.shape[::2] != (1, channels):
        return [x, x]  # refused for its shape
    side = math.isqrt(x.shape[1])
    own = x.shape[1] - side**2  # of the class token, if it has one
    if own not in range(len(shapes)):
        return [x] * len(shapes)  # likewise: no square
    grid = x[0, own:].reshape(side, side, channels)
    cls = x[:, :1] if own else np.zeros((1, 1, channels), x.dtype)
    return [cls, grid][-len(shapes) :]


# [1, 1 + L, D], or without the class token's, there; here that, [1, 1, D], and [g, g, D]
POSITIONS = Form(
    _positions,
    lambda values: np.concatenate([v.reshape(1, -1, v.shape[-1]) for v in values], 1),
)


def conv(key: str, layer: Any, form: Form = CONV) -> Link:
    """The kernel of a convolution."""
    return Link(key, (layer.kernel,), form)


def affine(key: str, layer: Any, form: Form = DENSE) -> list[Link]:
    """Kernel and bias, under PyTorch's names."""
    return [
        Link(f"{key}.weight", (layer.kernel,), form),
        Link(f"{key}.bias", (layer.bias,), SAME),
    ]


def layer_norm(key: str, layer: Any) -> list[Link]:
    """A layer normalization, under PyTorch's names."""
    return [
        Link(f"{key}.weight", (layer.gamma,), SAME),
        Link(f"{key}.bias", (layer.beta,), SAME),
    ]


def batch_norm(layer: Any, names: Sequence[str], form: Form = SAME) -> list[Link]:
    """A batch normalization; `names`: of its factor, offset, moving mean and moving variance."""
    values = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    return [Link(name, (value,), form) for name, value in zip(names, values)]

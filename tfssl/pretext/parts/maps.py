"""Maps of features: which one a task takes of a backbone, and at what size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfssl.backbones.necks import Necked
from tfssl.errors import UserError


def pixel_map(backbone: tf.keras.Model, endpoints: Mapping[str, tf.Tensor], task: str) -> tf.Tensor:
    """The map [N, h, w, D] that a task of pixels reads: the deepest, or all levels of a neck (see
    `necks.Necked.merged`).

    Raises:
      UserError: there is none, and `task` needs one.
    """
    if isinstance(backbone, Necked):
        return backbone.merged(endpoints)
    return endpoints[last_map(backbone, endpoints, task)]


def last_map(backbone: tf.keras.Model, endpoints: Mapping[str, tf.Tensor], task: str) -> str:
    """Name of the deepest endpoint of a backbone that is a map of more than one location.

    Raises:
      UserError: there is none, and `task` needs one.
    """
    kinds = backbone.endpoint_kinds
    maps = [name for name, x in endpoints.items() if kinds.get(name) == "map" and x.shape[1] != 1]
    if not maps:
        raise UserError(
            f"{task} needs a backbone that gives a map [N, h, w, D]; this one gives "
            f"{', '.join(endpoints)}"
        )
    return maps[-1]


def mean_pool(images: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """[N, H, W, C] -> [N, h, w, C]: the mean over the area behind each place, for any sizes."""
    rows, columns = (
        tf.constant(_shares(n, int(m)), images.dtype) for n, m in zip(size, images.shape[1:3])
    )
    return tf.einsum("hH,nHWc,wW->nhwc", rows, images, columns)


def _shares(places: int, pixels: int) -> np.ndarray:
    """float [places, pixels]: how much of each pixel is in each place; rows sum to 1."""
    edges = np.arange(places + 1) * pixels / places
    low, high = (
        np.maximum(edges[:-1, None], np.arange(pixels)),
        np.minimum(edges[1:, None], np.arange(1, pixels + 1)),
    )
    return np.maximum(high - low, 0) * places / pixels

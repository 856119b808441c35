"""Publishing a backbone that no task of ours has trained, such as one with imported weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

import tfssl
from tfssl.export.module import Outputs, write


def save_network(
    backbone: Any,
    path: str | os.PathLike[str],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    image_size: int = 224,
    resize: int = 0,
    facts: Mapping[str, Any] | None = None,
    tarball: bool = False,
) -> str:
    """Publish a backbone of `tfssl.backbones.build` as the module that `tfssl.export.save` writes.

    Args:
      backbone: its variables exist.
      path: the folder to write, which must not exist.
      mean, std: of the images in [0, 1], by channel: the module subtracts and divides.
      image_size: side of the crops that it is meant for, in pixels.
      resize: shorter side before that crop; 0: image_size * 256 / 224.
      facts: more of them for tfssl.json.
      tarball: also write `path.tar.gz`.

    Returns:
      `path`.

    Raises:
      UserError: `path` exists.
    """

    def endpoints(images: tf.Tensor, training: bool) -> Outputs:
        normalized = (images - tf.constant(mean)) / tf.constant(std)
        return backbone(normalized, training=training)

    config = backbone.config()
    told = {
        "format": 1,
        "backbone": config["name"],
        "width_multiplier": config.get("width_multiplier"),
        "stem": config.get("stem"),
        "network": config,
        "input": "float32 RGB in [0, 1], [batch, height, width, 3]",
        "normalization": {"mean": list(mean), "std": list(std)},
        "image_size": image_size,
        "min_image_size": backbone.min_image_size,
        "resize": resize or round(image_size * 256 / 224),
        "crop": image_size,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "tfssl": tfssl.__version__,
        },
        **(facts or {}),
    }
    variables, trainable = list(backbone.variables), list(backbone.trainable_variables)
    return write(
        os.fspath(path), endpoints, variables, trainable, ["pre_logits"], told, tarball=tarball
    )

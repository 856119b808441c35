"""A picture of attention: test images, and what the class token of a vision transformer attends to
(Caron et al., "DINO", Figure 1)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfssl.backbones import vit
from tfssl.backbones.hub import network_of, normalized
from tfssl.downstream import pictures
from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import neighbors
from tfssl.hub.load import Module

IMAGES = 6


def has_attention(module: Module) -> bool:
    """Whether a module is a vision transformer of ours with a class token, and says so."""
    config = module.facts.get("network") or {}
    known = config.get("name") in vit.SIZES and bool(module.facts.get("normalization"))
    return known and bool(config.get("class_token", True))


def plot(module: Module, test: Features, count: int = IMAGES) -> bytes:
    """A PNG's bytes: in each row a test image, of those evenly spread over the split, and a map for
    each head of the last block.

    Args:
      module: one that `has_attention`.
      test: `Features` of it that have `images`.
      count: number of images, at most all.

    Raises:
      UserError: the module's weights are not those of its network.
    """
    rows = np.unique(np.linspace(0, len(test.index) - 1, count).round().astype(int))
    images = neighbors.pictures(test, rows)
    network = network_of(module)
    inputs = normalized(tf.cast(images, tf.float32) / 255, module.facts["normalization"])
    return pictures.grid(*pictures.attention(images, network.attention(inputs).numpy()))

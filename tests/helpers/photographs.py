"""Features that a network could have, of images of several classes or of one."""

import numpy as np

from tfssl.downstream.features.extract import Features

NAMES = ["boat", "cat", "dog", "owl"]


def photographs(n, seed, dims=30, several=True):
    """Of images that show some of four classes: targets 1, -1, or 0 (difficult); or one, with a
    label."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=[n, 6])
    mixing = np.random.default_rng(99).normal(size=[6, dims])
    x = np.maximum(hidden @ mixing + 2 * rng.normal(size=[n, dims]), 0).astype(np.float32)
    if not several:
        return Features({"x": x}, hidden[:, :4].argmax(1), np.arange(n), 4, NAMES, f"set {seed}")
    targets = np.where(hidden[:, :4] > 0.9, 1, np.where(hidden[:, :4] > 0.7, 0, -1)).astype(np.int8)
    return Features(
        {"x": x}, np.full(n, -1), np.arange(n), None, NAMES, f"set {seed}", targets=targets
    )


def normed(x):
    """Rows of norm 1, as the SVMs take them."""
    return x / (np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) + 1e-5)

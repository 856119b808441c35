"""Weights that follow from their names, the same wherever NumPy is: so no file has to hold them."""

import zlib

import numpy as np


def value(name, shape):
    """A float32 array for a weight of a PyTorch network: kernels that keep the scale of what passes
    them, factors and variances near 1, and all else small."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "norm1.weight", "norm2.weight")) or name == "norm.weight":
        x = rng.uniform(0.5, 1.5, shape)
    elif len(shape) in (2, 4):  # of kernels, out x in x ...
        x = rng.normal(0, (1.5 / max(1, np.prod(shape[1:]))) ** 0.5, shape)
    elif name.endswith("weight"):  # of batch normalizations: a sum of many residuals stays small
        x = rng.uniform(0.3, 0.7, shape)
    else:
        x = rng.normal(0, 0.1, shape)
    return x.astype(np.float32)


def images(size, seed=0):
    """Two images as a network sees them, normalized: [2, size, size, 3]."""
    return np.random.default_rng(seed).normal(size=[2, size, size, 3]).astype(np.float32)


def sample(x, count=400):
    """Some values of an endpoint [N, h, w, C] or [N, D], the same of every endpoint of its shape."""
    flat = np.asarray(x, np.float32).reshape(-1)
    return flat[np.random.default_rng(1).integers(0, len(flat), count)]

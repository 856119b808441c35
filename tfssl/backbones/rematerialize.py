"""Activations that are computed again in the backward pass instead of being kept: Chen et al., arXiv 1604.06174."""

import itertools

import tensorflow as tf

from tfssl.backbones.norm import frozen_statistics


def rematerialize(layer, x):
    """`layer(x, training=True)`, of whose activations only the input is kept for the backward pass.

    There the layer runs a second time, on the same examples: its batch normalisations then leave their moving statistics alone.
    """
    passes = itertools.count()

    def run(x):
        with frozen_statistics(next(passes) > 0):
            return layer(x, training=True)

    return tf.recompute_grad(run)(x)

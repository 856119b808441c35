"""What the tests of several backbones do with them."""

import numpy as np
import tensorflow as tf

from tfssl.backbones import build


def randomise(model, seed=1):
    """Gives every variable a value of its own: fresh BN layers would hide a swapped gamma or a
    forgotten beta."""
    rng = np.random.default_rng(seed)
    for v in model.variables:
        kernel = len(v.shape) == 4
        v.assign(
            rng.normal(0, np.prod(v.shape[:3]) ** -0.5, v.shape)
            if kernel
            else rng.uniform(0.5, 1.5, v.shape)
        )
    return model


def trainable(name, width, size=None, **settings):
    """Number of trainable parameters, without the memory and the time that drawing 558 million of
    them would take."""
    shapes = []

    def stand_in(make, **variable):
        if variable["trainable"]:
            shapes.append(variable["shape"])
        return make(**{**variable, "initial_value": 0.0, "shape": ()})

    model = build(name, width, **settings)
    with tf.variable_creator_scope(stand_in):
        model.build((None, size, size, 3))
    assert len(shapes) == len(model.trainable_variables)
    return sum(int(np.prod(shape)) for shape in shapes)

"""LAMB against a naive NumPy loop, and against tensorflow-addons where there is one."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.errors import UserError
from tfssl.optim.lamb import LAMB
from tfssl.training import checkpoints

SHAPES = {
    "conv/kernel": (3, 3, 4, 8),
    "conv/bias": (8,),
    "norm/gamma": (8,),
    "dense/kernel": (8, 5),
}


def variables(dtype="float32"):
    rng = np.random.default_rng(0)
    return [
        tf.Variable(rng.normal(size=shape).astype(dtype), name=name)
        for name, shape in SHAPES.items()
    ]


def gradients(first, last):
    rngs = [np.random.default_rng(step) for step in range(first, last)]
    return [[rng.normal(size=shape) for shape in SHAPES.values()] for rng in rngs]


def rate():
    return optim.schedule("cosine", 0.1, 12, 3)


def train(optimizer, weights, steps):
    optim.create_slots(optimizer, weights)

    @tf.function
    def step(*gradients):
        optimizer.apply_gradients(list(zip(gradients, weights)))

    for gradient in steps:
        step(*[tf.constant(g, weights[0].dtype) for g in gradient])


def test_steps_by_hand(float64):
    """You et al., Algorithm 2, one variable after the other; biases and scales take Adam's step."""
    weights = variables("float64")
    train(LAMB(rate(), 0.9, 0.01), weights, gradients(0, 5))
    for i, start in enumerate(variables("float64")):
        w, m, v = start.numpy(), 0.0, 0.0
        for k, gradient in enumerate(gradients(0, 5), 1):
            g = gradient[i]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            u = m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.999**k)) + 1e-6)
            if "kernel" in start.name:
                u = u + 0.01 * w
                u = u * np.linalg.norm(w) / np.linalg.norm(u)
            w = w - float(rate()(k - 1)) * u
        np.testing.assert_allclose(weights[i], w, rtol=1e-9)


def test_zero_weights_take_adams_step():
    weights = [tf.Variable(np.zeros((2, 3)), name="kernel")]
    optimizer = LAMB(0.1, weight_decay=0.01)
    optimizer.apply_gradients([(tf.constant(np.full((2, 3), 0.5)), weights[0])])
    np.testing.assert_allclose(weights[0], np.full((2, 3), -0.1), rtol=1e-5)


addons = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="tensorflow-addons cannot be installed there"
)


def of_addons():
    import tensorflow_addons as tfa

    return tfa.optimizers.LAMB(
        rate(), 0.9, weight_decay=0.01, exclude_from_weight_decay=["bias", "beta", "gamma"]
    )


@addons
def test_addons_has_the_same_bits():
    ours, theirs = variables(), variables()
    train(LAMB(rate(), 0.9, 0.01), ours, gradients(0, 10))
    train(of_addons(), theirs, gradients(0, 10))
    for x, y in zip(ours, theirs):
        np.testing.assert_array_equal(x, y)


@addons
def test_a_checkpoint_of_addons_goes_on(tmp_path):
    """Runs that began with tensorflow-addons' LAMB resume with ours, to the bit; and what ours
    saves then it restores."""
    theirs, weights = of_addons(), variables()
    train(theirs, weights, gradients(0, 4))
    path = tf.train.Checkpoint(optimizer=theirs, variables=weights).save(str(tmp_path / "ckpt"))
    train(theirs, weights, gradients(4, 8))
    for _ in range(2):
        ours, resumed = LAMB(rate(), 0.9, 0.01), variables()
        optim.create_slots(ours, resumed)
        checkpoint = tf.train.Checkpoint(optimizer=ours, variables=resumed)
        assert checkpoints.load(path, checkpoint) is None
        assert int(ours.iterations) == 4
        path = checkpoint.save(str(tmp_path / "again"))
        train(ours, resumed, gradients(4, 8))
        for x, y in zip(resumed, weights):
            np.testing.assert_array_equal(x, y)


@addons
def test_a_checkpoint_of_addons_under_loss_scaling_does_not(tmp_path):
    scaled, weights = tf.keras.mixed_precision.LossScaleOptimizer, variables()
    theirs, ours = scaled(of_addons()), scaled(LAMB(rate(), 0.9, 0.01))
    train(theirs.inner_optimizer, weights, gradients(0, 1))
    path = tf.train.Checkpoint(optimizer=theirs, variables=weights).save(str(tmp_path / "ckpt"))
    optim.create_slots(ours, weights)
    with pytest.raises(UserError, match="tensorflow-addons' LAMB under loss scaling.*start anew"):
        checkpoints.load(path, tf.train.Checkpoint(optimizer=ours, variables=weights))

"""The check of an optimizer."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from tfssl import optim

Factory = Callable[..., tf.keras.optimizers.Optimizer]
Gradients = list[list[np.ndarray]]  # of each step: of each variable
_SHAPES = {"conv/kernel": (3, 2, 4), "conv/bias": (4,), "norm/gamma": (4,), "dense/kernel": (4, 3)}


def check_optimizer(factory: Factory, replicas: Optional[tf.distribute.Strategy] = None) -> None:
    """Hold an optimizer to `tfssl.optim.Optimizer`'s contract: small steps in float64, a few
    seconds.

    Args:
      factory: function (learning_rate, **settings) -> a new optimizer, such as its class. The
        learning rate is a number or a schedule; the settings are Keras's `global_clipnorm`, and
        `weight_decay` where the optimizer has `own_decay`.
      replicas: a strategy of several replicas on this machine; None: what happens on them is not
        checked.

    Raises:
      AssertionError: a promise that it does not keep.
    """
    optimizer = factory(_RATE)
    assert isinstance(optimizer, tf.keras.optimizers.Optimizer), (
        "an optimizer is a tf.keras.optimizers.Optimizer"
    )
    variables = _variables()
    start = _values(variables)
    _build(optimizer, variables)
    state = len(optimizer.variables)
    _train(optimizer, variables, _gradients(0, 2))
    assert len(optimizer.variables) == state, (
        "all state exists before the first step: a checkpoint restores into it"
    )
    half = _copy(factory, tf.train.Checkpoint(optimizer=optimizer, variables=variables))
    _train(optimizer, variables, _gradients(2, 4))
    trained = _values(variables)
    assert all(np.isfinite(v).all() and (v != s).any() for v, s in zip(trained, start)), (
        "every variable learns"
    )
    _train(*half, _gradients(2, 4))
    _assert_same(
        half[1], trained, 0, "resumed from a checkpoint, an optimizer goes on to the same bits"
    )

    still = _run(factory(0.0), _gradients(0, 2))
    _assert_same(still, start, 0, "at a learning rate of 0 nothing moves")
    _assert_same(
        _run(factory(_RATE), _gradients(0, 4), jit=True), trained, 1e-9, "XLA gives the same"
    )

    clipped = _values(_run(factory(_RATE, global_clipnorm=0.1), _gradients(0, 4)))
    norms = [np.sqrt(sum((g**2).sum() for g in gradients)) for gradients in _gradients(0, 4)]
    scaled = [
        [g * 0.1 / norm for g in gradients] for gradients, norm in zip(_gradients(0, 4), norms)
    ]
    _assert_same(
        _run(factory(_RATE), scaled),
        clipped,
        1e-9,
        "global_clipnorm scales the gradients to that norm",
    )
    _check_loss_scaling(factory, clipped)
    if replicas is not None:
        with replicas.scope():
            spread = _run(factory(_RATE, global_clipnorm=0.1), _gradients(0, 4), strategy=replicas)
        _assert_same(
            spread, clipped, 1e-9, "replicas sum their gradients, then clip, then step as one would"
        )
    _check_decay(factory, getattr(optimizer, "own_decay", ()))


class _Falling(tf.keras.optimizers.schedules.LearningRateSchedule):
    """0.1, 0.05, 0.025, ...: an optimizer that loses count of its steps shows."""

    def __call__(self, step: Any) -> tf.Tensor:
        return 0.1 * tf.pow(0.5, tf.cast(step, tf.float32))


_RATE = _Falling()


def _check_loss_scaling(factory: Factory, expected: list[np.ndarray]) -> None:
    """As `mixed_float16` wraps an optimizer: gradients of a scaled loss, and now and then an
    infinity among them."""
    inner, variables = factory(_RATE, global_clipnorm=0.1), _variables()
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=2.0**10)
    _build(optimizer, variables)
    for gradients in _gradients(0, 4):
        scale = float(optimizer.get_scaled_loss(tf.constant(1.0)))
        unscaled = optimizer.get_unscaled_gradients([tf.constant(g * scale) for g in gradients])
        optimizer.apply_gradients(list(zip(unscaled, variables)))
    _assert_same(
        variables,
        expected,
        1e-9,
        "under loss scaling it is the unscaled gradient that is clipped and followed",
    )
    state = [v.numpy() for v in inner.variables if v.dtype == tf.float64]
    optimizer.apply_gradients(
        [(tf.fill(v.shape, tf.constant(np.inf, v.dtype)), v) for v in variables]
    )
    _assert_same(
        variables,
        expected,
        1e-9,
        "an infinite gradient under loss scaling leaves the weights as they are",
    )
    same = [v for v in inner.variables if v.dtype == tf.float64]
    _assert_same(
        same,
        state,
        0,
        "an infinite gradient under loss scaling leaves the optimizer's state as it is",
    )


def _check_decay(factory: Factory, own_decay: Sequence[str]) -> None:
    if not own_decay:
        return
    plain, decayed = (_run(factory(_RATE, weight_decay=d), _gradients(0, 2)) for d in (0.0, 0.5))
    differ = [name for name, p, d in zip(_SHAPES, plain, decayed) if (p.numpy() != d.numpy()).any()]
    if "kernels" in own_decay:
        kernels = [name for name in _SHAPES if "kernel" in name]
        assert differ == kernels, (
            f"weight decay acts on the variables that `kernels` lists, and not on {differ}"
        )
    if "all" in own_decay:
        everything = [
            _run(factory(_RATE, weight_decay=d), _gradients(0, 2), kernels="") for d in (0.0, 0.5)
        ]
        same = [name for name, p, d in zip(_SHAPES, *everything) if (p.numpy() == d.numpy()).all()]
        assert not same, (
            f"where `kernels` lists all variables, weight decay acts on all, and not without {same}"
        )


def _variables() -> list[tf.Variable]:
    rng = np.random.default_rng(0)
    return [tf.Variable(rng.normal(size=shape), name=name) for name, shape in _SHAPES.items()]


def _gradients(first: int, last: int) -> Gradients:
    """Of the steps `first` to `last` - 1: lists of float64 arrays."""
    rngs = [np.random.default_rng(1 + step) for step in range(first, last)]
    return [[rng.normal(size=shape) for shape in _SHAPES.values()] for rng in rngs]


def _build(
    optimizer: tf.keras.optimizers.Optimizer, variables: list[tf.Variable], kernels: str = "kernel"
) -> None:
    def listed() -> list[tf.Variable]:
        return [v for v in variables if kernels in v.name]

    optim.tell_kernels(optimizer, listed, listed)
    optim.create_slots(optimizer, variables)


def _train(
    optimizer: tf.keras.optimizers.Optimizer,
    variables: list[tf.Variable],
    gradients: Gradients,
    jit: bool = False,
    strategy: Optional[tf.distribute.Strategy] = None,
) -> None:
    def step(*gradients: tf.Tensor) -> None:
        if strategy is not None:  # each replica has a gradient of its own; their sum is this one
            context = tf.distribute.get_replica_context()
            replicas = context.num_replicas_in_sync
            angle = 2 * np.pi * tf.cast(context.replica_id_in_sync_group, tf.float64) / replicas
            gradients = tuple(g / replicas + tf.cos(angle) * tf.reverse(g, [-1]) for g in gradients)
        optimizer.apply_gradients(list(zip(gradients, variables)))

    if strategy is not None:
        compiled = tf.function(lambda *gradients: strategy.run(step, gradients))
    else:
        compiled = tf.function(step, jit_compile=True) if jit else step
    for gradient in gradients:
        compiled(*map(tf.constant, gradient))


def _run(
    optimizer: tf.keras.optimizers.Optimizer,
    gradients: Gradients,
    jit: bool = False,
    strategy: Optional[tf.distribute.Strategy] = None,
    kernels: str = "kernel",
) -> list[tf.Variable]:
    """New variables, trained."""
    variables = _variables()
    _build(optimizer, variables, kernels)
    _train(optimizer, variables, gradients, jit, strategy)
    return variables


def _copy(
    factory: Factory, checkpoint: tf.train.Checkpoint
) -> tuple[tf.keras.optimizers.Optimizer, list[tf.Variable]]:
    """(optimizer, variables) new, and restored from a checkpoint's file."""
    optimizer, variables = factory(_RATE), _variables()
    _build(optimizer, variables)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(os.path.join(folder, "ckpt"))
        restored = tf.train.Checkpoint(optimizer=optimizer, variables=variables)
        restored.restore(path).assert_existing_objects_matched()
    return optimizer, variables


def _values(variables: Sequence[tf.Variable]) -> list[np.ndarray]:
    return [v.numpy() for v in variables]


def _assert_same(
    variables: Sequence[Any], expected: Sequence[np.ndarray], tolerance: float, promise: str
) -> None:
    for name, v, e in zip(_SHAPES, variables, expected):
        apart = np.abs(np.asarray(v) - e).max()
        assert apart <= tolerance, f"{promise}; {name} differs by {apart:.2g}"

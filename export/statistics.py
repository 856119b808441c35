"""The moving statistics of batch normalization, computed anew for weights that do not change any
more."""

import warnings
from collections.abc import Iterable

import tensorflow as tf

from tfssl.backbones.norm import BatchNorm
from tfssl.data.ops.draws import Draws
from tfssl.pretext.task import Batch, Pretext

TOO_MUCH = 0.01  # of the initial statistics, in what is published


def recalibrate(model: Pretext, batches: Iterable[Batch]) -> None:
    """Let all batch normalizations begin anew and average over `batches`: the statistics are then
    those of the weights as they are. All that `call` runs in training mode, a published target
    network too.

    It takes a forward pass. Of use where training was too short for a layer's momentum: with
    Keras's own layers in a user's model, and with runs of versions of tfssl that did not debias
    (see `backbones.norm.debiased`).

    Args:
      model: a `Pretext` model whose variables exist.
      batches: training batches, such as `model.dataset(source, batch_size=64, steps=32)`.
    """
    if getattr(model, "optimizer", None) is None:
        model.compile(tf.keras.optimizers.SGD())  # SwAV asks it for the step
    layers = _layers(model)
    momenta = [layer.momentum for layer in layers]
    try:
        for count, batch in enumerate(batches):
            for layer in layers:
                layer.momentum = (count / (count + 1)) ** (1 / getattr(layer, "groups", 1))
            model(model.augment(model.to_float(batch), Draws(batch)), training=True)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
    model.recalibrated = True


def warn(model: Pretext, step: int) -> None:
    """Warn of an encoder whose statistics are not its own: Keras's layers are not debiased, and
    short runs keep much of the start."""
    steps = int(model.optimizer.iterations) if getattr(model, "optimizer", None) else step
    layers = [layer for network in model.published for layer in _layers(network)]
    plain = [layer for layer in layers if not isinstance(layer, BatchNorm)]
    kept = max((layer.momentum**steps for layer in plain), default=0.0)
    if steps and kept > TOO_MUCH and not getattr(model, "recalibrated", False):
        warnings.warn(
            f"after {steps} steps {100 * kept:.0f} % of the moving statistics of {len(plain)} "
            "batch normalizations are what they began as: "
            "call tfssl.export.recalibrate(model, model.dataset(source, batch_size=64, steps=32)) "
            "first, train with a smaller momentum, "
            "such as 0.9, or take tfssl.backbones.norm.BatchNorm for Keras's layer",
            stacklevel=3,
        )


def _layers(network: tf.Module) -> list[tf.keras.layers.BatchNormalization]:
    return [
        m
        for m in network.submodules
        if isinstance(m, tf.keras.layers.BatchNormalization) and m.trainable
    ]

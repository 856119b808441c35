"""A forward pass over a source on all replicas of a strategy: outputs of all images in split
order."""

from collections.abc import Iterator
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import Subset
from tfssl.runtime import strategy as strategies

# images [B, S, S, C] (see `pipeline.crops_spec`) -> {name: [B, ...]}
Compute = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def step(compute: Compute, spec: tf.TensorSpec, jit_compile: bool = False) -> Compute:
    """The graph function of one step of the current strategy: images of each replica -> outputs of
    each.

    Each replica computes so many images as `spec` says, however many replicas there are: so float32
    outputs are the same bits on one and on several devices of a kind.
    """
    strategy = tf.distribute.get_strategy()
    of_replica = compiled(compute) if jit_compile else compute

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return strategy.run(of_replica, [images])

    if strategies.distributed(strategy):
        return tf.function(run, autograph=False)
    # Traced by hand: TensorFlow would warn of many functions made of one piece of code.
    return tf.function(of_replica, autograph=False).get_concrete_function(spec)


def compiled(compute: Compute) -> Compute:
    """The function compiled with XLA, which on a TPU the whole step is anyway."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        return compute
    return tf.function(compute, jit_compile=True, autograph=False)


class Crops:
    """Central crops of a source's images, as `strategies.evaluation_data` takes them.

    Args:
      size, resize: side of the crop, and of the shorter side before it, in pixels.
    """

    def __init__(self, size: int, resize: int) -> None:
        self.size, self.resize = size, resize

    def evaluation_dataset(self, source: Source, batch_size: int, **rows: Any) -> tf.data.Dataset:
        return pipeline.evaluation_crops(source, self.size, self.resize, batch_size, **rows)


def outputs(
    compute: Compute,
    source: Source,
    crops: Crops,
    batch_size: int,
    positions: Optional[np.ndarray] = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs of all readable images, step by step of the current strategy, in split order; memory:
    two steps.

    Args:
      compute: a `step`.
      source: of the images.
      crops: their size.
      batch_size: images of a replica's step.
      positions: int [n], places of the images in the split; None: all.

    Yields:
      what `compute` returns, for the n images of a step: {name: [n, ...], "label": int64 [n] (-1:
      none), "index": int64 [n], positions in the split}.
    """
    strategy = tf.distribute.get_strategy()
    if positions is not None:
        source = Subset(source, positions)
    if not source.num_examples:
        return
    batch_size *= strategy.num_replicas_in_sync
    data = strategies.evaluation_data(strategy, crops, source, batch_size)

    def fetched(parts: dict[str, Any]) -> dict[str, np.ndarray]:
        local = {
            name: [part.numpy() for part in strategy.experimental_local_results(value)]
            for name, value in parts.items()
        }
        real = [weight > 0 for weight in local.pop("weight")]
        return {
            name: np.concatenate([part[rows] for part, rows in zip(of_replicas, real)])
            for name, of_replicas in local.items()
        }

    before = None  # fetched while an accelerator computes the next one
    for batch in data:
        parts = {name: batch[name] for name in ("label", "index", "weight")}
        parts |= compute(batch["image"])
        if before is not None:
            yield fetched(before)
        before = parts
    if before is not None:
        yield fetched(before)

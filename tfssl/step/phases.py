"""Phases: what happens between steps, looks at all images or at a bank, and writes variables, such
as the pseudo-labels of a clustering.

A task's `phases()` lists them. The run calls each before step 0 and before every further `every`-th
step, outside of the step. A phase

  - writes what it decides to variables of the model, or forgets the optimizer's state of some
    (`optim.forget`); nothing else knows of it;
  - is a function of (variables, seed, step, images) alone, and idempotent: called again at the same
    step, it leaves every variable as the first call did. So k-means starts from rows that
    `context.seed` and `context.step` choose, not from the last centroids.

Then resuming is exact without any further state: a checkpoint at a phase's step holds the state
before it, and the phase is done again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from tfssl.losses import replicas


class Phase(NamedTuple):
    """`run` is called before each step that is a multiple of `every`. It may return {name: value},
    for the log. What it costs, for a dry run: about so many floating-point operations beside
    `passes` over all images, on which the network is run."""

    every: int
    run: Callable[["Context"], Optional[Mapping[str, float]]]
    flops: float = 0.0
    passes: float = 0.0


class Context:
    """What a phase gets: the step, the seed, and all training images.

    Functions that are given to it are traced once and kept, so give it functions that stay, such as
    methods of the task: not a new lambda each time.

    Args:
      strategy: the run's `tf.distribute.Strategy`.
      batches: function () -> the training images' evaluation batches, as
        `runtime.strategy.evaluation_data` makes them.
      images: exclusive upper bound of the batches' "index".
      seed: of the run.
      prepare: what is done to a batch before a function gets it, such as `to_float`.

    Attributes:
      step: the step before which the phase runs.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        batches: Callable[[], Iterable[Any]],
        images: int,
        seed: int = 0,
        prepare: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        self.step, self.seed, self.images = 0, seed, images
        self._strategy, self._batches, self._prepare = strategy, batches, prepare
        self._traced: dict[Any, Callable[..., Any]] = {}

    @property
    def seeds(self) -> list[int]:
        """[seed, step]: of `tf.random.stateless_*` and `np.random.default_rng`."""
        return [self.seed, self.step]

    def embed(
        self, function: Callable[[dict[str, Any]], tf.Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """One pass over the training images, without randomness, each replica with its own batches.

        Args:
          function: batch, as `call` gets it in evaluation -> [n, ...], a row for each image. It is
            called on each replica.

        Returns:
          (Rows [images, ...] in split order, whether there is one [images]): an image that cannot
          be read has a row of zeros.
        """
        rows: Optional[np.ndarray] = None
        seen = np.zeros(self.images, bool)
        batches = iter(self._batches())
        step = self._kept(
            "embed",
            function,
            lambda batches: self._strategy.run(self._gathered(function), [next(batches)]),
        )
        while not seen.all():
            try:
                found, index, weight = (x.numpy() for x in step(batches))
            except (StopIteration, tf.errors.OutOfRangeError):
                break
            real = weight > 0
            if not real.any():  # several hosts' batches have no end
                break
            if rows is None:
                rows = np.zeros([self.images, *found.shape[1:]], found.dtype)
            rows[index[real]], seen[index[real]] = found[real], True
        return np.zeros([self.images, 0]) if rows is None else rows, seen

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns that is called on each replica with the same arguments: the first
        replica's result."""
        on_replica = tf.autograph.experimental.do_not_convert(function)
        return self._kept("run", function, lambda *rows: self._strategy.run(on_replica, rows))(
            *arguments
        )

    def _kept(
        self, name: str, function: Callable[..., Any], everywhere: Callable[..., Any]
    ) -> Callable[..., Any]:
        """`everywhere` in a graph of its own, made once for each function: its results on the first
        replica."""
        if (name, function) not in self._traced:

            def first(*arguments: Any) -> Any:
                results = self._strategy.experimental_local_results
                return tf.nest.map_structure(lambda x: results(x)[0], everywhere(*arguments))

            self._traced[name, function] = tf.function(first, autograph=False)
        return self._traced[name, function]

    def _gathered(self, function: Callable[[Any], tf.Tensor]) -> Callable[[Any], list[tf.Tensor]]:
        def on_replica(batch: Any) -> list[tf.Tensor]:
            batch = self._prepare(batch)
            return [replicas.gather(x) for x in (function(batch), batch["index"], batch["weight"])]

        return tf.autograph.experimental.do_not_convert(on_replica)


def every(epochs: float, epoch_steps: float) -> int:
    """Steps from one phase to the next that are so many epochs apart; at least 1."""
    return max(1, round(epochs * epoch_steps))


def run_due(phases: Sequence[Phase], context: Context, step: int) -> dict[str, float]:
    """Run the phases that are due before a step; returns what they report."""
    context.step = step
    reports: dict[str, float] = {}
    for phase in phases:
        if step % phase.every == 0:
            reports.update(phase.run(context) or {})
    return reports


def next_due(phases: Sequence[Phase], step: int, end: int) -> int:
    """The next step after `step` before which a phase is due, or `end`."""
    return min([end, *(step + phase.every - step % phase.every for phase in phases)])

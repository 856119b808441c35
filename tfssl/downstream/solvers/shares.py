"""Blocks of features that the replicas of a strategy share: what solvers compute of rows, on all
accelerators of a host."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tfssl.runtime import strategy as strategies


class Replicas:
    """The replicas of a strategy; or the one device that TensorFlow chooses, where `strategy.run`
    is not what it takes to compute there.

    Args:
      strategy: None: that one device.

    Attributes:
      count: of replicas.
    """

    def __init__(self, strategy: Optional[tf.distribute.Strategy] = None) -> None:
        shares = strategy is not None and strategies.distributed(strategy)
        self._strategy = strategy if shares else None
        self.count = self._strategy.num_replicas_in_sync if self._strategy else 1
        self._traced: dict[Any, Callable[..., Any]] = {}

    def share(self, array: np.ndarray, fill: float = 0, size: int = 0) -> Any:
        """A block [n, ...] as a tensor; for several replicas as one of [m, ...] for each, in order.

        Args:
          fill: what rows behind the block hold, which make shares equal: a TPU computes shapes that
            it knows.
          size: m, at least n over the number of replicas; 0: no larger.
        """
        if self._strategy is None:
            return tf.constant(array)
        size = size or -(-len(array) // self.count)

        def part_of(context: Any) -> tf.Tensor:
            number = context.replica_id_in_sync_group
            part = array[number * size : (number + 1) * size]
            if len(part) < size:
                rest = np.full((size - len(part), *array.shape[1:]), fill, array.dtype)
                part = np.concatenate([part, rest])
            with tf.device(self._home(number)):
                return tf.constant(part)

        return self._strategy.experimental_distribute_values_from_function(part_of)

    def sum(self, function: Callable[..., Any], *arguments: Any) -> Sequence[tf.Tensor]:
        """What a graph function returns, a tensor or several, of shares and of tensors that are
        all replicas' alike, summed over the replicas."""
        if self._strategy is None:
            return tf.nest.flatten(function(*arguments))
        strategy = self._strategy

        def total(*arguments: Any) -> list[tf.Tensor]:
            of_replicas = tf.nest.flatten(strategy.run(function, arguments))
            return [strategy.reduce("SUM", value, axis=None) for value in of_replicas]

        return self._graph(total, function, arguments)(*arguments)

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a graph function returns of shares, as shares."""
        if self._strategy is None:
            return function(*arguments)
        strategy = self._strategy

        def each(*arguments: Any) -> Any:
            return strategy.run(function, arguments)

        return self._graph(each, function, arguments)(*arguments)

    def joined(self, shares: Any, count: int) -> np.ndarray:
        """Shares as one array again, of its first `count` rows."""
        if self._strategy is None:
            return shares.numpy()[:count]
        parts = self._strategy.experimental_local_results(shares)
        return np.concatenate([part.numpy() for part in parts])[:count]

    def _home(self, number: int) -> str:
        """Where a replica's share waits: in its GPU; else in the host, which hands a TPU its
        arguments at each call."""
        assert self._strategy is not None
        device: str = self._strategy.extended.worker_devices[number]
        return device if "GPU" in device else "CPU:0"

    def _graph(
        self, distributed: Callable[..., Any], function: Callable[..., Any], arguments: Any
    ) -> Callable[..., Any]:
        """Traced by hand for each combination of shapes: they have to be static, and TensorFlow
        would warn of many traces."""
        tensors = [self._first(argument) for argument in arguments]
        key = function, *((x.dtype, tuple(x.shape)) for x in tensors)
        if key not in self._traced:
            graph = tf.function(distributed, autograph=False)
            self._traced[key] = graph.get_concrete_function(*arguments)
        return self._traced[key]

    def _first(self, value: Any) -> tf.Tensor:
        assert self._strategy is not None
        return self._strategy.experimental_local_results(value)[0]

"""Keras's loops over training and evaluation batches, with a clock on the input."""

import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

import tensorflow as tf

Function = Callable[[Iterator[Any]], dict[str, tf.Tensor]]  # batches -> {metric: value}


class Loop(tf.keras.Model):
    """A Keras model whose `fit` and `evaluate` return `results`, and `fit` the time that it waited
    for input.

    A subclass has `train_step` and `test_step`, which return nothing of interest.
    """

    train_function: Optional[Function]
    test_function: Optional[Function]
    _per_execution = 1

    def compile(self, *args: Any, **keras: Any) -> None:
        super().compile(*args, **keras)
        # Keras lowers its own where few steps are left, also before a step is traced.
        self._per_execution = int(self._steps_per_execution.numpy())

    @property
    def autograph(self) -> bool:
        """Whether what it calls needs AutoGraph's conversion of Python's control flow."""
        return False

    def prepare(self) -> None:
        """Called before the first step is traced."""

    def results(self) -> dict[str, tf.Tensor]:
        """{metric: value} since metrics were last reset."""
        raise NotImplementedError

    def make_train_function(self, force: bool = False) -> Function:
        """Keras's training loop, which also measures, inside the compiled function, how long it
        waits for input."""
        if self.train_function is not None and not force:
            return self.train_function
        run_step = self._compiled(self.train_step, self._train_counter)
        repeated = self._repeats()
        now = _clock()

        def timed_next(iterator: Iterator[Any]) -> tuple[Any, tf.Tensor]:
            before = now()
            with tf.control_dependencies([before]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                return batch, now() - before

        def train_function(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
            def step(waited: tf.Tensor) -> tf.Tensor:
                batch, seconds = timed_next(iterator)
                with tf.control_dependencies(
                    [seconds]
                ):  # or one core may look at the clock after the step
                    self.distribute_strategy.run(run_step, args=(batch,))
                return waited + seconds

            waited = repeated(step, tf.zeros([], tf.float64))
            return {**self.results(), "input_seconds": waited}

        self.train_function = self._as_graph(train_function)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Function:
        """Keras's evaluation loop."""
        if self.test_function is not None and not force:
            return self.test_function
        run_step = self._compiled(self.test_step, self._test_counter)
        repeated = self._repeats()

        def test_function(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
            def step(steps: tf.Tensor) -> tf.Tensor:
                self.distribute_strategy.run(run_step, args=(next(iterator),))
                return steps + 1

            repeated(step, 0)
            return self.results()

        self.test_function = self._as_graph(test_function)
        return self.test_function

    def _compiled(
        self, step: Callable[[Any], object], counter: tf.Variable
    ) -> Callable[[Any], None]:
        self.prepare()
        step = self._plain(step)
        if self._jit_compile:
            step = tf.function(step, jit_compile=True, autograph=self.autograph)

        def run_step(batch: Any) -> None:
            step(batch)
            counter.assign_add(1)

        return run_step

    def _plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, not to be converted by AutoGraph unless the model needs that."""
        return function if self.autograph else tf.autograph.experimental.do_not_convert(function)

    def _repeats(self) -> Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]:
        """A function (step, value) -> the value after `steps_per_execution` calls of `step`."""
        if self._per_execution == 1:  # A loop would be traced, optimized and started for nothing.
            return lambda step, value: step(value)

        def repeated(step: Callable[[tf.Tensor], tf.Tensor], value: tf.Tensor) -> tf.Tensor:
            # Spelled out: a quarter of the time of tracing went into AutoGraph's conversions of
            # what is around the step.
            count = tf.convert_to_tensor(
                self._steps_per_execution
            )  # Keras lowers it for what is left over at the end
            return tf.while_loop(
                lambda i, _: i < count,
                lambda i, value: (i + 1, step(value)),
                (tf.zeros_like(count), value),
            )[1]

        return repeated

    def _as_graph(self, function: Function) -> Function:
        return function if self.run_eagerly else tf.function(function, autograph=self.autograph)


def _clock() -> Callable[[], tf.Tensor]:
    """A function that gives the time inside a graph. TensorFlow's own refuses to run under op
    determinism."""
    try:
        with tf.init_scope():
            tf.timestamp()
        return tf.timestamp
    except tf.errors.FailedPreconditionError:
        return lambda: tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])

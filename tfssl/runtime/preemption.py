"""SIGTERM, which spot machines and schedulers send before they take a machine away, and SIGHUP,
which a closed terminal sends: save, and leave with a status of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import FrameType

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.runtime import strategy as strategies
from tfssl.runtime.watchdog import SAVING, STATUS, TRAINING, WATCHDOG, heard


class Preempted(UserError):
    """The run was told to stop, and its state is saved."""

    status = STATUS


class Preemption(tf.keras.callbacks.Callback):
    """At SIGTERM, SIGHUP or Ctrl-C: a checkpoint after the steps under way, then `Preempted`. A
    second Ctrl-C ends at once.

    Where no step comes to its end, the process ends without a save: see `tfssl.runtime.watchdog`,
    which is told here of the run's progress.

    With several workers all of them save and stop at the same step, whichever of them was told:
    they agree every few executions (see `strategies.Agreement`).

    Args:
      save: function () that saves the state.
      step: function () -> the number of steps taken.
      strategy: the run's `tf.distribute.Strategy`.
    """

    _supports_tf_logs = True

    def __init__(
        self, save: Callable[[], object], step: Callable[[], int], strategy: tf.distribute.Strategy
    ) -> None:
        super().__init__()
        self.save, self.step = save, step
        self.told: int | None = None
        self.workers_told = strategies.Agreement(strategy)

    def on_train_begin(self, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None]
        self.before = {s: signal.signal(s, self._note) for s in heard()}
        WATCHDOG.saved(self.step())
        WATCHDOG.progress("tracing the first training step, or waiting for its images")

    def on_train_end(self, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        self._give_back()
        handler = self.before[self.told] if self.told else None
        if self.told and callable(handler):  # after the last look, and all is saved
            handler(self.told, None)

    def _give_back(self) -> None:
        WATCHDOG.progress(None)
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.told:
            self.told = None
            raise KeyboardInterrupt
        self.told = number

    def on_train_batch_end(self, batch: int, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        self._look(TRAINING)

    # In validation too, though its figures are then missing: the grace before a machine goes can be
    # shorter than a pass.
    def on_test_batch_end(self, batch: int, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        self._look("waiting for a validation step or its images")

    def on_test_begin(self, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        WATCHDOG.progress("tracing the first validation step, or waiting for its images")

    def on_test_end(self, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        WATCHDOG.progress("summing up the validation")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        WATCHDOG.saved(self.step())
        WATCHDOG.progress(TRAINING)

    def _look(self, doing: str) -> None:
        WATCHDOG.progress(doing)
        with WATCHDOG.during("waiting for the other hosts"):
            told = self.workers_told(1 if self.told else 0)
        if told:
            with WATCHDOG.during(SAVING):  # what else is sent meanwhile does not break the save off
                self.save()
            WATCHDOG.saved(self.step(), stopping=True)
            self._give_back()
            cause = signal.Signals(self.told).name if self.told else "a signal to another worker"
            raise Preempted(
                f"{cause}: stopped after step {self.step()}, which is saved; the same command goes "
                "on from there"
            )

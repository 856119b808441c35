"""Keras callbacks that make a run visible and keep its state."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Optional, Protocol

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.runtime.tracking import Tracker
from tfssl.runtime.watchdog import SAVING, WATCHDOG
from tfssl.storage.files import write_file

if TYPE_CHECKING:
    from tfssl.pretext.task import Pretext
    from tfssl.training.checkpoints import Checkpoints

_Logs = Optional[Mapping[str, tf.Tensor]]  # what Keras tells of a step or an epoch


class Probe(Protocol):
    """What measures the encoder at each validation; see `knn_probe`."""

    @property
    def chance(self) -> Mapping[str, float]: ...  # {metric: level}

    def __call__(self) -> Mapping[str, float]: ...


class Log(tf.keras.callbacks.Callback):
    """Every `every` steps: a line on the screen with the time left, a line of metrics.jsonl,
    TensorBoard scalars; and the checks for NaN and for a run that learns nothing (see `alarms`).

    Logged values are means over the steps since the last log; of no image at all they are NaN (null
    in metrics.jsonl), never 0. TensorBoard gets runs `train` and `validation`, and `chance`, a
    level line at what an encoder that knows nothing would reach.

    Args:
      model: the pretext model.
      workdir: the run's folder; None: be silent and write nothing, as workers other than the first
        do.
      step: the step that the run begins or goes on at.
      total_steps: length of the whole run.
      batch_size: images per step.
      epoch_steps: steps of one pass over the data; may be fractional.
      every: steps between logs.
      last_good: function () -> where the run can go on from, for the NaN message.
      probe: function () -> {metric: value} of each validation, with `chance`, {metric: level}; or
        None.
      pictures: {name: function () -> a picture for TensorBoard at each validation, uint8
        [H, W, 3]}.
      unreadable: `Source.unreadable` of the training images.
      tracker: receives the same values; or None.

    Raises:
      UserError: at the end of a fit epoch: more than `REPLACED` of its images were unreadable, by
        more than chance makes of such a fraction.
    """

    REPLACED = 0.1

    _supports_tf_logs = True  # or Keras would wait for the device after every step

    def __init__(
        self,
        model: Pretext,
        workdir: str | None,
        step: int,
        total_steps: int,
        batch_size: int,
        epoch_steps: float,
        every: int,
        last_good: Callable[[], str],
        probe: Probe | None = None,
        pictures: Mapping[str, Callable[[], np.ndarray]] | None = None,
        unreadable: dict[str, str] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        super().__init__()
        self.tracker = tracker
        self.workdir, self.every, self.last_good, self.probe, self.pictures = (
            workdir,
            every,
            last_good,
            probe,
            pictures or {},
        )
        self.total_steps, self.batch_size, self.epoch_steps = total_steps, batch_size, epoch_steps
        self.step = self.logged = self.begun = step
        self.pace = Pace()
        self.replaced, self.replaced_before, self.unreadable = (
            0,
            0,
            {} if unreadable is None else unreadable,
        )
        self.writers: dict[str, tf.summary.SummaryWriter] = {}
        self.live = sys.stdout.isatty() and workdir is not None
        if workdir is None:
            return
        self.watch = Watch(model)
        _drop_later_lines(os.path.join(workdir, "metrics.jsonl"), step)
        self.chance = {**model.chance(), **(probe.chance if probe else {})}
        for name, level in self.chance.items():
            for end in (0, total_steps):
                self._scalar("chance", name, level, end)

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        self.begun, self.replaced_before = self.step, self.replaced
        self.waited: list[tf.Tensor] = []
        self.since = self.shown = time.perf_counter()  # validation and saving are not training time

    def on_train_batch_end(self, batch: int, logs: _Logs = None) -> None:
        assert logs is not None  # Keras gives a step's
        step = self.begun + batch + 1
        self.waited.append(logs["input_seconds"])
        crossed = step // self.every > self.step // self.every
        self.step = step
        if crossed or step - self.begun == self.params["steps"]:
            self._log(logs)
        elif self.live and time.perf_counter() - self.shown > 1:
            self.shown = time.perf_counter()
            rate = (step - self.logged) / (self.shown - self.since)
            left = _clock((self.total_steps - step) / rate)
            print(
                f"\rstep {step}/{self.total_steps}  {rate * self.batch_size:.0f} images/s  ETA "
                f"{left} ",
                end="",
                flush=True,
            )

    def _log(self, logs: Mapping[str, tf.Tensor]) -> None:
        values = {name: float(logs[name]) for name in self.model.chance()}  # waits for the device
        waited, now = sum(float(w) for w in self.waited), time.perf_counter()
        elapsed, steps = now - self.since, self.step - self.logged
        self.waited, self.since, self.logged = [], now, self.step
        counters = self.model.counters
        self.model.reset_metrics()
        bad = round(counters["nonfinite_steps"] + 0.499)
        if bad:
            raise UserError(
                f"the loss became NaN or infinite at step {self.step - bad + 1}; "
                f"{self.last_good()}; in another --workdir a lower --learning_rate, a longer "
                "--warmup_epochs or --precision=float32 may help"
            )
        self.pace.add(steps, elapsed)
        self.replaced += int(counters["replaced"])
        rate = float(tf.keras.backend.get_value(_learning_rate(self.model.optimizer)))
        values |= {
            "learning_rate": rate,
            "images_per_second": steps * self.batch_size / elapsed,
            "input_wait": min(1.0, waited / elapsed),
            "replaced_images": self.replaced,
        }
        if self.workdir is None:
            return
        self._append({"step": self.step, "epoch": round(self.step / self.epoch_steps, 4), **values})
        self._record("train", values)
        self._print(values)

    def _append(self, line: Mapping[str, float]) -> None:
        assert self.workdir is not None
        with tf.io.gfile.GFile(os.path.join(self.workdir, "metrics.jsonl"), "a") as f:
            f.write(
                json.dumps(
                    {name: None if value != value else value for name, value in line.items()}
                )
                + "\n"
            )

    def _print(self, values: Mapping[str, float]) -> None:
        chance = self.model.chance()
        parts = [
            f"step {self.step}/{self.total_steps}",
            f"epoch {self.step / self.epoch_steps:.2f}",
        ]
        parts += [beside_chance(name, values[name], level) for name, level in chance.items()]
        parts += [
            f"lr {values['learning_rate']:.3g}",
            f"{values['images_per_second']:.0f} images/s",
            f"input wait {values['input_wait']:.0%}",
            f"ETA {_clock(self.pace.per_step() * (self.total_steps - self.step))}",
        ]
        if self.replaced:
            parts.append(f"{self.replaced} unreadable replaced")
        say(("\r" if self.live else "") + "  ".join(parts))
        rate, done = values["learning_rate"], self.step / self.total_steps
        for alarm in (self.model.alarm(values), *self.watch.alarms(values, chance, rate, done)):
            if alarm:
                say(f"WARNING: {alarm}")

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        self._check_replaced()
        validation = {
            name[len("val_") :]: float(value)
            for name, value in (logs or {}).items()
            if name.startswith("val_")
        }
        if validation:
            self.validated(validation)

    def validated(self, validation: dict[str, float]) -> None:
        """Write and print {metric: value} of the validation images, and the probe's."""
        if self.workdir is None:
            return
        if all(value != value for value in validation.values()):
            say(
                "WARNING: the validation has measured nothing: no image of --val_split could be "
                "read, or none has a label"
            )
        validation |= self.probe() if self.probe else {}
        self._append(
            {
                "step": self.step,
                **{f"validation_{name}": value for name, value in validation.items()},
            }
        )
        self._record("validation", validation)
        for name, picture in self.pictures.items():
            with self.writer("validation").as_default():
                tf.summary.image(name, picture()[None], self.step)
        values = "  ".join(
            beside_chance(name, value, self.chance[name]) for name, value in validation.items()
        )
        say(f"validation at step {self.step}  {values}")

    def _check_replaced(self) -> None:
        images, replaced = (
            (self.step - self.begun) * self.batch_size,
            self.replaced - self.replaced_before,
        )
        chance = (
            3 * (images * self.REPLACED * (1 - self.REPLACED)) ** 0.5
        )  # three standard deviations
        if replaced > self.REPLACED * images + chance:
            last = next(reversed(self.unreadable.items()), None)
            named = f"; the last of them is {last[0]}: {last[1]}" if last else ""
            raise UserError(
                f"{replaced} of the {images} images of steps {self.begun + 1} to {self.step}, more "
                "than a tenth, cannot be decoded and "
                f"were replaced{named}; repair them, or take them out (--dry_run lists all); "
                f"{self.last_good()}, and the same "
                "command goes on"
            )

    def on_train_end(self, logs: _Logs = None) -> None:
        for writer in self.writers.values():
            writer.flush()

    def _record(self, run: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._scalar(run, name, value, self.step)
        if self.tracker:
            named = {f"{run}/{name}": value for name, value in values.items()}
            self.tracker.log(named, self.step)

    def _scalar(self, run: str, name: str, value: float, step: int) -> None:
        with self.writer(run).as_default():
            tf.summary.scalar(name, value, step)

    def writer(self, run: str) -> tf.summary.SummaryWriter:
        """The TensorBoard writer of a run: "train", "validation" or "chance"."""
        assert self.workdir is not None
        if run not in self.writers:
            self.writers[run] = tf.summary.create_file_writer(os.path.join(self.workdir, run))
        return self.writers[run]


class Save(tf.keras.callbacks.Callback):
    """A checkpoint at the end of every fit epoch."""

    _supports_tf_logs = True

    def __init__(self, checkpoints: Checkpoints, log: Log) -> None:
        super().__init__()
        self.checkpoints, self.log = checkpoints, log

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        with WATCHDOG.during(SAVING):
            self.checkpoints.save(self.log.step)


class Watch:
    """Alarms of a run in which nothing is learned, whatever its task; each is given once.

    Args:
      model: the pretext model; its trainable variables are compared with what they are now.
    """

    STILL = 4  # lines of the log that tell

    def __init__(self, model: tf.keras.Model) -> None:
        self.model = model
        self.losses: list[float] = []
        self.given: set[str] = set()
        self.began: list[np.ndarray] | None = [v.numpy() for v in model.trainable_variables]

    def alarms(
        self, values: Mapping[str, float], chance: Mapping[str, float], rate: float, done: float
    ) -> list[str]:
        """Lines, mostly none, about a log.

        Args:
          values: {metric: value} since the last log.
          chance: {metric: level}, as of the task.
          rate: the learning rate; while it is 0 there is nothing to expect.
          done: fraction of the run that is done.
        """
        self.losses = [*self.losses, values["loss"]][-10_000:] if rate > 0 else []
        found = []
        enough = len(self.losses) >= self.STILL
        if self.began is not None and rate > 0 and (enough or done >= 1):
            if all(map(_parallel, self.began, (v.numpy() for v in self.model.trainable_variables))):
                found.append(
                    "no gradient reaches the network: its weights are what they were at the start, "
                    "but for their decay"
                )
            self.began = None
        if enough and max(self.losses) - min(self.losses) <= 1e-6 * max(abs(self.losses[0]), 1e-6):
            found.append(
                f"the loss stands still at {self.losses[0]:.4g} from the first line of the log on"
            )
        level = chance.get("loss", float("nan"))
        if (
            done > 0.5
            and len(self.losses) >= 2 * self.STILL
            and all(abs(x - level) <= 1e-3 * abs(level) for x in self.losses)
        ):
            found.append(f"the loss is at chance, {level:.4g}, from the first line of the log on")
        new = [text for text in found if text[:12] not in self.given]
        self.given |= {text[:12] for text in new}
        return [
            f"nothing is learned: {text}; look at the images (--dry_run shows a batch), the "
            "learning rate and the batch size"
            for text in new
        ]


def _parallel(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether a variable is what it was, but for a factor: weight decay shrinks it, and no gradient
    is like that by chance."""
    if one.size < 2:
        return True  # no direction
    one, other = one.astype("float64").ravel(), other.astype("float64").ravel()
    size = float(one @ one)
    factor = float(one @ other) / size if size else 0.0
    return float(abs(other - factor * one).max()) <= 1e-6 * max(float(abs(one).max()), 1e-30)


class Pace:
    """Seconds per step: a running mean that forgets, so that the first steps (tracing, warming up)
    do not spoil the estimate."""

    def __init__(self, memory: float = 0.8) -> None:
        self.memory, self.steps, self.time = memory, 0.0, 0.0

    def add(self, steps: float, elapsed: float) -> None:
        self.steps = self.memory * self.steps + steps
        self.time = self.memory * self.time + elapsed

    def per_step(self) -> float:
        return self.time / self.steps if self.steps else 0.0


def say(text: str) -> None:
    print(text, flush=True)


def _learning_rate(optimizer: tf.keras.optimizers.Optimizer) -> float | tf.Tensor:
    """The rate of the next step; optimizers of the older type hold the schedule itself."""
    rate = optimizer.learning_rate
    return rate(optimizer.iterations) if callable(rate) else rate


def beside_chance(name: str, value: float, level: float) -> str:
    """A metric as the log shows it: "loss 2.1 (chance 2.3)", or "loss 2.1" where the chance level,
    NaN, is unknown."""
    shown = f"{name} {value:.4g}"
    return shown if math.isnan(level) else f"{shown} (chance {level:.3g})"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def has_validation(workdir: str, step: int) -> bool:
    """Whether the log has a validation at `step`."""
    path = os.path.join(workdir, "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        return False
    with tf.io.gfile.GFile(path, "rb") as f:
        return any(b'"validation_' in line and _step_of(line) == step for line in f)


def _drop_later_lines(path: str, step: int) -> None:
    """Keep the lines up to `step`: those that a killed run wrote after its last checkpoint will be
    written again."""
    if not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path, "rb") as f:
        lines = f.read().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_file(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by the kill, or whatever a disk made of it

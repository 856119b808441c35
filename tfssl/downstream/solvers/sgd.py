"""Stochastic gradient descent with momentum for small classifiers on frozen features.

Several are trained at once: they share the batches, which take most of the time, and nothing else.
Initial weights are drawn from the seed and the endpoint's name, so that the other classifiers
change no result. All randomness is stateless.
"""

import dataclasses
import functools
import itertools
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfssl.data.ops.draws import Draws
from tfssl.downstream.partition import Split
from tfssl.downstream.solvers.feature_norm import FeatureNorm
from tfssl.downstream.solvers.lbfgs import Moments, in_chunks
from tfssl.downstream.solvers.resume import Curve, Losses, State
from tfssl.downstream.solvers.shares import Replicas
from tfssl.errors import UserError
from tfssl.losses import replicas
from tfssl.optim.schedules import schedule
from tfssl.storage import mapped

if TYPE_CHECKING:
    from tfssl.downstream.features.extract import Features

# bytes of evaluation features that are kept as tensors; more are read again each time
_RESIDENT = 2 << 30
_LINE_SECONDS = 30  # between two lines of progress, without a terminal


class Readout(tf.Module):
    """A classifier on features of one endpoint; a subclass adds `logits`, and its weights.

    Args:
      endpoint: name.
      dims: D.
      l2: factor of the penalty ||W||^2 over all kernels, not biases.
      fits_all: whether it is trained on all rows, or without those of the validation part.
      seed: of the initial weights; with the endpoint's name.
      scale: (mean, standard deviation) [D] to standardize by; None: not standardized.
      norm: a `FeatureNorm` for the features, or None.
      init_std: standard deviation of the kernels' normal initialization; 0: Glorot's uniform one.
      dtype: of weights and computation, float32 or float64.
    """

    def __init__(
        self,
        endpoint: str,
        dims: int,
        l2: float = 0.0,
        fits_all: bool = True,
        seed: int = 0,
        scale: Optional[Moments] = None,
        norm: Optional[FeatureNorm] = None,
        init_std: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.endpoint, self.l2, self.fits_all, self.dtype = endpoint, l2, fits_all, dtype
        self.norm, self.init_std = norm, init_std
        self.kernels: list[tf.Variable] = []
        self._seed = [seed, zlib.crc32(endpoint.encode())]
        self._scale = (
            None if scale is None else [tf.constant(v, dtype) for v in (scale[0], 1 / scale[1])]
        )
        self._rows = tf.TensorSpec([None, dims], dtype)

    def layer(self, inputs: int, outputs: int) -> tuple[tf.Variable, tf.Variable]:
        """(kernel [inputs, outputs], random; bias [outputs], zero)."""
        seed = [self._seed[0], self._seed[1] + len(self.kernels)]
        limit = np.sqrt(6 / (inputs + outputs))
        if self.init_std:
            kernel = tf.random.stateless_normal(
                [inputs, outputs], seed, stddev=self.init_std, dtype=self.dtype
            )
        else:
            kernel = tf.random.stateless_uniform([inputs, outputs], seed, -limit, limit, self.dtype)
        self.kernels.append(tf.Variable(kernel, name="kernel"))
        return self.kernels[-1], tf.Variable(tf.zeros([outputs], self.dtype), name="bias")

    def logits(self, x: tf.Tensor, draws: Optional[Draws]) -> tf.Tensor:
        """Logits [B, C] of features [B, D] of `dtype`; with `draws` in training mode."""
        raise NotImplementedError

    def __call__(
        self, features: tf.Tensor, draws: Optional[Draws] = None, weight: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """Logits [B, C]; with `draws` and `weight` [B], 1 for rows in the loss, in training
        mode."""
        x = tf.cast(features, self.dtype)
        if self._scale is not None:
            x = (x - self._scale[0]) * self._scale[1]
        if self.norm is not None:
            x = self.norm(x, weight)
        return self.logits(x, draws)

    @functools.cached_property
    def predict(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The graph function [B, D] of `dtype` -> the most likely class, int64 [B]."""
        # Traced by hand: TensorFlow would warn of many functions made of one piece of code.
        return tf.function(lambda x: tf.argmax(self(x), 1), autograph=False).get_concrete_function(
            self._rows
        )

    def penalty(self) -> tf.Tensor:
        return self.l2 * tf.add_n([tf.reduce_sum(kernel**2) for kernel in self.kernels])


@dataclasses.dataclass(frozen=True)
class SGDSettings:
    """The schedule: epochs of floor(n / batch) steps; the rate falls by ten at `decay_epochs`.

    Attributes:
      learning_rate: of the first step.
      nesterov: Nesterov's momentum: a step along gradient + momentum * velocity.
    """

    epochs: int
    decay_epochs: tuple[float, ...]
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = False

    def steps(self, count: int) -> int:
        """Steps of an epoch of `count` rows."""
        return max(count // self.batch_size, 1)


def check(
    protocol: str, epochs: int, decay_epochs: Sequence[float], batch_size: int, learning_rate: float
) -> tuple[float, ...]:
    """The `decay_epochs` as floats; UserError for invalid settings."""
    try:
        decay_epochs = [float(e) for e in decay_epochs]
    except (TypeError, ValueError):
        raise UserError(
            f"{protocol}: decay_epochs={decay_epochs!r}: give numbers of epochs, such as 30,50"
        ) from None
    if epochs < 1 or batch_size < 1 or not 0 < learning_rate < float("inf"):
        got = f"epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}"
        raise UserError(f"{protocol}: {got}: each has to be above 0")
    if decay_epochs != sorted(decay_epochs) or any(not 0 < e < epochs for e in decay_epochs):
        shown = ",".join(f"{e:g}" for e in decay_epochs)
        raise UserError(
            f"{protocol}: decay_epochs={shown}: they have to rise, and to lie within the {epochs} "
            "epochs"
        )
    return tuple(decay_epochs)


def check_epoch(epoch: str, part: Split) -> None:
    """Raise UserError where `epoch` is "best" and there is no validation part."""
    if epoch == "best" and not len(part.val):
        raise UserError(
            "epoch=best needs a validation part, and there is none: give last, or a validation "
            "split"
        )


def reported(curve: Curve, epoch: str) -> dict[str, Any]:
    """Fields of a result from a curve [[epoch, on validation, on test], ...], at its last or its
    best epoch."""
    at = max(curve, key=lambda point: point[1]) if epoch == "best" else curve[-1]
    return {"value": at[2], "val_value": at[1], "epoch": at[0], "epoch_rule": epoch, "curve": curve}


def train(
    classifiers: Sequence[Readout],
    batches: Iterable[tuple[Any, tf.Tensor]],
    encode: Callable[[Any], dict[str, tf.Tensor]],
    labels: np.ndarray,
    in_fit: np.ndarray,
    settings: SGDSettings,
    count: int,
    measure: Callable[[], list[Any]],
    seed: int = 0,
    title: str = "",
    state: Optional[State] = None,
) -> tuple[Curve, Losses, float]:
    """Train classifiers, and measure them after each epoch.

    All replicas of the strategy in whose scope it is called, and the classifiers made, share each
    batch: their number changes rounding alone.

    The loss is a sum over classifiers of mean cross-entropy + penalty. Momentum is TensorFlow's: v
    = m v + gradient, W = W - rate v; with Nesterov's W = W - rate (gradient + m v).

    Args:
      classifiers: list of Readout.
      batches: endless iterable of (payload, row numbers int64 [B]), from the first step after
        `state`; of several replicas each has its share of the B rows, in order.
      encode: graph function payload -> {endpoint: [B, D]}, of a replica's share.
      labels: int [N], the class of each row.
      in_fit: bool [N], the training rows of classifiers with fits_all=False.
      settings: SGDSettings.
      count: rows of an epoch, n.
      measure: function () -> list of numbers, called after each epoch.
      seed: of the dropout masks.
      title: of the progress bar.
      state: a `State` to resume from and save to; None: nothing is kept.

    Returns:
      (curve: list of [epoch, *values of `measure`], mean loss of each classifier over the last
      epoch: list of float or None where it is not finite, images per second).
    """
    state, steps = state or State(), settings.steps(count)
    step, velocities = step_of(classifiers, encode, labels, in_fit, settings, steps, seed)
    step = tf.function(step, autograph=False)
    kept = [v for c, slots in zip(classifiers, velocities) for v in (*c.variables, *slots)]
    state.restore(kept)

    curve, losses, progress, compiled = (
        list(state.curve),
        state.losses,
        Progress(title, settings, steps, state.epoch),
        None,
    )
    batches = zip(itertools.count(state.epoch * steps), batches)
    for epoch in range(state.epoch + 1, settings.epochs + 1):
        sums = tf.zeros([len(classifiers)], tf.float64)
        for number, (payload, rows) in itertools.islice(batches, steps):
            compiled = compiled or step.get_concrete_function(
                payload, rows, tf.TensorSpec([], tf.int64)
            )
            sums += compiled(payload, rows, tf.constant(number, tf.int64))
            progress.step(epoch)
        curve.append([epoch, *measure()])
        losses = [float(loss) if np.isfinite(loss) else None for loss in sums.numpy() / steps]
        state.save(kept if epoch < settings.epochs else [], curve, losses)
    progress.close()
    return curve, losses, progress.rate()


def step_of(
    classifiers: Sequence[Readout],
    encode: Callable[[Any], dict[str, tf.Tensor]],
    labels: np.ndarray,
    in_fit: np.ndarray,
    settings: SGDSettings,
    steps: int,
    seed: int = 0,
) -> tuple[Callable[[Any, tf.Tensor, tf.Tensor], tf.Tensor], list[list[tf.Variable]]]:
    """One step of `train`, whose arguments these are, with `steps` of an epoch.

    Returns:
      (graph function: payload, row numbers int64 [B], number of the step -> losses float64 [number
      of classifiers]; the velocity of each trainable variable of each classifier).
    """
    rate_at = schedule(
        "piecewise",
        settings.learning_rate,
        settings.epochs * steps,
        decay_steps=[round(e * steps) for e in settings.decay_epochs],
    )
    variables = [list(c.trainable_variables) for c in classifiers]
    velocities = [
        [tf.Variable(tf.zeros_like(v), trainable=False) for v in learned] for learned in variables
    ]
    labels, in_fit = tf.constant(labels, tf.int32), tf.constant(in_fit)
    strategy = tf.distribute.get_strategy()
    share = settings.batch_size // strategy.num_replicas_in_sync

    def learn(payload: Any, rows: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """A replica's part of a step; returns its part of the losses."""
        context = tf.distribute.get_replica_context()
        inputs = encode(payload)
        y, held_in = tf.gather(labels, rows), tf.gather(in_fit, rows)  # B
        first = tf.cast(context.replica_id_in_sync_group, tf.int64) * share
        positions = number * settings.batch_size + first + tf.range(share, dtype=tf.int64)
        seeds = tf.fill([share], tf.constant(seed, tf.int64))
        draws = Draws({"number": positions, "seed": seeds}, strategy.num_replicas_in_sync)
        losses, gradients = [], []
        for c, learned in zip(classifiers, variables):
            with tf.GradientTape() as tape:
                weight = tf.ones_like(y, c.dtype) if c.fits_all else tf.cast(held_in, c.dtype)  # B
                logits = c(inputs[c.endpoint], draws, weight)  # BxC
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)  # B
                count = replicas.total(tf.reduce_sum(weight))
                loss = tf.math.divide_no_nan(tf.reduce_sum(weight * loss), count)
                loss += c.penalty() / strategy.num_replicas_in_sync
            gradients.append(tape.gradient(loss, learned))
            losses.append(tf.cast(loss, tf.float64))
        if strategy.num_replicas_in_sync > 1:
            gradients = context.all_reduce("SUM", gradients)
        context.merge_call(update, args=(gradients, rate_at(number)))
        return tf.stack(losses)

    def update(strategy: tf.distribute.Strategy, gradients: Any, rate: tf.Tensor) -> None:
        for of_classifier in zip(variables, velocities, gradients):
            for w, v, g in zip(*of_classifier):
                strategy.extended.update(w, move, args=(v, g, rate), group=False)

    def move(w: tf.Variable, v: tf.Variable, g: tf.Tensor, rate: tf.Tensor) -> None:
        v.assign(settings.momentum * v + g)
        w.assign_sub(
            tf.cast(rate, w.dtype) * (settings.momentum * v + g if settings.nesterov else v)
        )

    def step(payload: Any, rows: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        losses = strategy.run(learn, [payload, rows, number])
        return strategy.reduce("SUM", losses, axis=None)

    return step, velocities


class Progress:
    """Images per second and the remaining time.

    A bar on a terminal or in a notebook; elsewhere a line now and then.
    """

    def __init__(self, title: str, settings: SGDSettings, steps: int, epochs_done: int = 0) -> None:
        self.title, self.settings, self.done = title, settings, 0
        self.total = (settings.epochs - epochs_done) * steps * settings.batch_size
        self.start = self.first = self.printed = time.time()
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(
            total=self.total, unit=" images", unit_scale=True, desc=title, disable=not self.live
        )

    def step(self, epoch: int) -> None:
        if not self.done:
            self.first = time.time()  # the first step compiles
        self.done += self.settings.batch_size
        self.bar.set_postfix_str(f"epoch {epoch} of {self.settings.epochs}", refresh=False)
        self.bar.update(self.settings.batch_size)
        if not self.live and time.time() - self.printed > _LINE_SECONDS:
            self.printed = time.time()
            seconds = (self.total - self.done) / max(self.rate(), 1e-9)
            left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
            left = f"{seconds / 3600:.1f} h" if seconds > 5400 else left
            line = (
                f"{self.title}: epoch {epoch} of {self.settings.epochs}, "
                f"{self.rate():.0f} images/s, {left} left"
            )
            print(line, file=sys.stderr, flush=True)

    def rate(self) -> float:
        """Images per second since the end of the first step, measurements included."""
        after = self.done - self.settings.batch_size
        return (
            after / max(time.time() - self.first, 1e-9)
            if after > 0
            else self.done / max(time.time() - self.start, 1e-9)
        )

    def close(self) -> None:
        self.bar.close()


def strategy_for(features: "Features", batch_size: int) -> tf.distribute.Strategy:
    """The strategy that trains a small network on batches of features: a TPU's, whose cores can
    share each batch; else the current one, by default one device, to which a TensorFlow with GPUs
    adds the first of them. Several GPUs are not used: by reckoning, the exchange of gradients costs
    them more than one of them takes for the step.

    Raises:
      UserError: the current one has several replicas, over which the batch does not divide.
    """
    strategy, current = features.strategy, tf.distribute.get_strategy()
    tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if tpu and not batch_size % strategy.num_replicas_in_sync:
        return strategy
    if batch_size % current.num_replicas_in_sync:
        raise UserError(
            f"a batch of {batch_size} rows does not divide over {current.num_replicas_in_sync} "
            "replicas: give a batch_size that is a multiple of their number"
        )
    return current


def shuffled(rows: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, int64 [B]: each epoch has all rows in another order; batches
    span epochs."""
    rest = np.zeros(0, np.int64)
    for epoch in itertools.count():
        rest = np.concatenate([rest, np.random.default_rng([seed, 3, epoch]).permutation(rows)])
        while len(rest) >= batch_size:
            yield rest[:batch_size]
            rest = rest[batch_size:]


def feature_batches(
    features: "Features",
    endpoints: Sequence[str],
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    start: int = 0,
    replicas: Optional[Replicas] = None,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Batches for `train` from features in memory or on disk, from step `start`: ({endpoint:
    [B, D]}, rows), or shares of them."""
    replicas = replicas or Replicas()
    for chosen in itertools.islice(shuffled(rows, batch_size, seed), start, None):
        arrays = {name: features.endpoints[name] for name in endpoints}
        batch = {name: replicas.share(array[chosen]) for name, array in arrays.items()}
        for array in arrays.values():
            mapped.release(array)
        yield batch, replicas.share(chosen)


class Held:
    """Rows of features for repeated measurements of accuracies.

    Args:
      features: `Features`; rows: int [n] of them; endpoints: names; classes: int [C], the label of
        each logit.
    """

    def __init__(
        self, features: "Features", rows: np.ndarray, endpoints: Sequence[str], classes: np.ndarray
    ) -> None:
        self._features, self._rows, self._classes = features, rows, classes
        if not len(rows):
            return  # then endpoints may be missing
        size = sum(
            features.endpoints[e].dtype.itemsize * features.endpoints[e].shape[1] for e in endpoints
        ) * len(rows)
        self._kept = {e: list(self._read(e)) for e in endpoints} if size <= _RESIDENT else {}

    def _read(self, endpoint: str) -> Iterator[tuple[tf.Tensor, np.ndarray]]:
        values = self._features.endpoints[endpoint]
        for part in in_chunks(self._rows, values.shape[1]):
            # Adjacent rows are a slice, which is read without a copy.
            chosen = slice(part[0], part[-1] + 1) if part[-1] - part[0] + 1 == len(part) else part
            x = tf.constant(values[chosen])
            mapped.release(values)
            yield x, self._features.labels[part]

    def accuracies(self, classifiers: Sequence[Readout]) -> list[Optional[float]]:
        """The accuracy of each classifier: list of float; of None where there are no rows."""
        if not len(self._rows):
            return [None] * len(classifiers)
        right = dict.fromkeys(classifiers, 0)
        for endpoint in dict.fromkeys(c.endpoint for c in classifiers):
            for x, labels in self._kept.get(endpoint) or self._read(endpoint):
                for c in (c for c in classifiers if c.endpoint == endpoint):
                    right[c] += int(
                        np.sum(self._classes[c.predict(tf.cast(x, c.dtype)).numpy()] == labels)
                    )
        return [right[c] / len(self._rows) for c in classifiers]

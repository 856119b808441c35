"""A task under its check: made anew on equal terms, and compared."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl import backbones, data, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.errors import UserError
from tfssl.pretext.task import Batch, Pretext
from tfssl.runtime import strategy as strategies
from tfssl.step.phases import Context, run_due

ROWS = 8  # images of a global batch
State = list[tuple[str, np.ndarray]]


class SmallNetwork(tf.keras.Model):
    """Two convolutions and two batch normalizations: images [N, H, W, C] -> [N, h, w, 8].

    Args:
      sync, groups: of the normalizations, and of those of a task's head: their statistics are those
        of all replicas together, or of groups of the batch.
    """

    def __init__(self, sync: bool = False, groups: int = 1) -> None:
        super().__init__(name="small")
        self.settings: dict[str, Any] = {"sync": sync, "groups": groups}
        self.convolutions = [
            tf.keras.layers.Conv2D(6, 3, 2, use_bias=False, name="conv1"),
            tf.keras.layers.Conv2D(8, 3, use_bias=False, name="conv2"),
        ]
        self.norms = [BatchNorm(0.8, **self.settings, name=name) for name in ("norm1", "norm2")]

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = images
        for convolution, norm in zip(self.convolutions, self.norms):
            x = tf.nn.relu(norm(convolution(x), training=training))
        return x

    def get_config(self) -> dict[str, Any]:
        return dict(self.settings)


def small_network(sync: bool = False, groups: int = 1) -> tf.keras.Model:
    """A `SmallNetwork` as a backbone."""
    network = backbones.build(SmallNetwork(sync, groups))
    network.norm_policy = backbones.Norm(sync=sync, groups=groups)
    return network


class Subject:
    """The task under its check: how it is made, always on equal terms, and its name."""

    def __init__(
        self,
        task: Callable[..., Pretext],
        source: data.Source,
        backbone: Callable[..., Any],
        settings: Mapping[str, Any],
    ) -> None:
        self.name, self.source = getattr(task, "__qualname__", str(task)), source
        self._task, self._backbone, self._settings = task, backbone, dict(settings)
        if isinstance(task, type):
            known = {"num_classes": source.num_classes or 0, "num_images": source.num_examples}
            taken = {
                k: v for k, v in known.items() if any(k in _arguments(c) for c in task.__mro__)
            }
            self._settings = {"image_size": 16, **taken, **settings}

    def build(
        self,
        seed: int = 1,
        strategy: tf.distribute.Strategy | None = None,
        sync: bool = False,
        groups: int = 1,
        accumulate_steps: int = 1,
    ) -> Pretext:
        """A new model of equal weights for equal seeds, all of whose variables exist."""
        tf.keras.utils.set_random_seed(seed)
        with (strategy or tf.distribute.get_strategy()).scope():
            backbone = self._backbone(sync=sync, groups=groups)
            if isinstance(self._task, type):
                model = pretext.build(self._task, backbone, **self._settings)
            else:
                model = self._task(backbone, **self._settings)
            assert isinstance(model, Pretext), (
                f"{self.name}: a task is a tfssl.pretext.task.Pretext"
            )
            model.compile(
                tf.keras.optimizers.SGD(0.5, momentum=0.9), accumulate_steps=accumulate_steps
            )
            model.batch_size, model.total_steps = ROWS, 100
            model.epoch_steps = self.source.num_examples / ROWS
            model.prepare()
        run_due(model.phases(), self.context(model), 0)
        return model

    def context(self, model: Pretext) -> Context:
        """What the phases of a model get."""
        strategy = model.distribute_strategy
        return Context(
            strategy,
            lambda: strategies.evaluation_data(strategy, model, self.source, ROWS),
            self.source.places,
            prepare=model.to_float,
        )

    def expect(self, kept: Any, clause: str) -> None:
        """Raise an AssertionError of a broken clause, unless it is kept."""
        assert kept, f"{self.name}: {clause}"

    def expect_equal(self, ours: State, expected: State, tolerance: float, clause: str) -> None:
        """Of every variable, relative to its own largest value."""
        self.expect(
            [x.shape for _, x in ours] == [x.shape for _, x in expected],
            f"{clause}; there are other variables",
        )
        for (_, x), (name, y) in zip(ours, expected):
            if y.dtype.kind == "f":
                apart = np.abs(x - y).max(initial=0.0) if np.isfinite(x).all() else np.inf
                self.expect(
                    apart <= tolerance * np.abs(y).max(initial=0.0) + 1e-14,
                    f"{clause}; {name} differs by {apart:.2g}",
                )
            else:
                self.expect(np.array_equal(x, y), f"{clause}; {name} differs")


def _arguments(cls: type) -> Collection[str]:
    return inspect.signature(vars(cls)["__init__"]).parameters if "__init__" in vars(cls) else ()


def state_of(model: Pretext, moving: bool = True) -> State:
    """[(name, value)] of what a checkpoint holds, and the metrics since they were last reset."""
    statistics = {
        id(v)
        for layer in model.submodules
        if isinstance(layer, tf.keras.layers.BatchNormalization)
        for v in (layer.moving_mean, layer.moving_variance)
    }
    variables = [
        v
        for v in [*model.variables, *model.optimizer.variables]
        if moving or id(v) not in statistics
    ]
    metrics = [(f"metric {name!r}", value.numpy()) for name, value in model.results().items()]
    return [*((v.name, v.numpy()) for v in variables), *metrics]


def leaves_of(batch: Batch) -> State:
    """[(entry, value)] of all its tensors."""
    return [
        (name, np.asarray(x))
        for name, value in sorted(batch.items())
        for x in tf.nest.flatten(value)
    ]


@contextlib.contextmanager
def computing_in(name: str) -> Iterator[None]:
    """Keras computes in float64, or by a policy."""
    policy, floatx = tf.keras.mixed_precision.global_policy().name, tf.keras.backend.floatx()
    tf.keras.mixed_precision.set_global_policy(None if name == "float64" else name)
    tf.keras.backend.set_floatx("float64" if name == "float64" else "float32")
    try:
        yield
    finally:
        tf.keras.backend.set_floatx(floatx)
        tf.keras.mixed_precision.set_global_policy(None if policy == floatx else policy)


_strategies: list[
    tf.distribute.Strategy
] = []  # one for the process: a second one would take the first one's collective keys


def all_processors() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2 or ROWS % len(devices):
        raise UserError(
            "check_task needs 2, 4 or 8 logical CPUs for its replicas, and there are "
            f"{len(devices)}: say, before TensorFlow starts, "
            'tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], '
            '[tf.config.LogicalDeviceConfiguration()] * 2), or skip=["replicas"]'
        )
    if not _strategies:
        _strategies.append(
            tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(len(devices))])
        )
    return _strategies[0]

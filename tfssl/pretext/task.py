"""A pretext task: a Keras model that owns a backbone, a head and an objective."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import tensorflow as tf

from tfssl import optim
from tfssl.backbones import drop_path
from tfssl.backbones.norm import BatchNorm, debiased
from tfssl.data import pipeline
from tfssl.data.ops.draws import Draws, hashed, rows_of
from tfssl.data.sources import require
from tfssl.data.sources.base import ANNOTATIONS, Source
from tfssl.data.sources.frames import Clips
from tfssl.errors import UserError, check_choice
from tfssl.optim.groups import Group
from tfssl.optim.groups import check as check_groups
from tfssl.optim.groups import use as use_groups
from tfssl.pretext.contract import Batch, Contract, Example, Losses, Measured
from tfssl.step import gradients
from tfssl.step.measures import Measures

__all__ = ["Batch", "Example", "Losses", "Measured", "Pretext"]

_RANDOM = (
    tf.keras.layers.Dropout,
    tf.keras.layers.AlphaDropout,
    tf.keras.layers.GaussianDropout,
    tf.keras.layers.GaussianNoise,
)
ROWS = {
    "label": tf.int64,
    "index": tf.int64,
    "number": tf.int64,
    "seed": tf.int64,
    "weight": tf.float32,
    "replaced": tf.bool,
}


class Pretext(Contract):
    """Base class of all tasks: what they share beside the hooks of their `Contract`.

    Args:
      backbone: a `tf.keras.Model` from `tfssl.backbones.build`: images -> endpoints.
      image_size: side of the square images that the backbone sees, in pixels.
      weight_decay: factor w of 0.5 * w * sum ||kernel||^2 over the kernels of convolutions and
        dense layers, added to the loss (the 2019 study: 1e-4). The reported loss leaves it out.
      decay: kernels, or all: weight decay acts on biases and normalizations too, as PyTorch's
        optimizers have it for all parameters.
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        weight_decay: float = 1e-4,
        decay: str = "kernels",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if image_size < 1:
            raise UserError(
                f"image_size={image_size} is the side of the images that the network sees: at "
                "least 1 pixel"
            )
        self.image_size = image_size
        check_choice("decay", decay, ("kernels", "all"))
        self.weight_decay, self.decay = weight_decay, decay
        # What a run tells its task: images of a global batch, steps of an epoch (of the data),
        # steps in all. 0: nobody has.
        self.batch_size, self.total_steps = 0, 0
        self.epoch_steps: float = 0
        self._measures: Optional[Measures] = None
        self._accumulate_steps = 1

    def norm(self, name: str, **settings: Any) -> BatchNorm:
        """A batch normalization for the task's head, whose statistics span what the backbone's
        do."""
        return self.backbone.norm_policy.batch(name, **settings)

    def endpoints(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Images [N, H, W, 3] in [0, 1] -> dict of the backbone's endpoints: what `call` trains,
        whichever network is published."""
        return self.backbone(self.normalize(images), training=training)

    def to_float(self, batch: Batch) -> Batch:
        """The batch with uint8 tensors as floats in [0, 1], and all others as they are: images
        travel to the device as bytes."""
        scale = tf.constant(
            1 / 255, tf.keras.backend.floatx()
        )  # a cast would round it to float32 first
        return tf.nest.map_structure(
            lambda x: tf.cast(x, scale.dtype) * scale if x.dtype == tf.uint8 else x, batch
        )

    def dataset(
        self,
        source: Any,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        steps: Optional[int] = None,
        **rows: Any,
    ) -> tf.data.Dataset:
        """The training batches of a source (see `data.pipeline.training_batches`), ready for `fit`.

        Raises:
          UserError: as of `require`; or examples have no static shape.
        """
        self.require(source)
        source = self.with_frames(self.order(source))
        data = pipeline.training_batches(
            source, self.example, batch_size, seed, start_step, steps, **rows
        )
        for name, specs in data.element_spec.items():
            for shape in (spec.shape[1:] for spec in tf.nest.flatten(specs)):
                if not shape.is_fully_defined():
                    raise UserError(
                        f"{type(self).__name__}.example() returns {name!r} of {shape}: give all "
                        "examples one shape (tf.ensure_shape)"
                    )
        return data

    def evaluation_dataset(self, source: Any, batch_size: int, **rows: Any) -> tf.data.Dataset:
        """One deterministic pass over a source, ready for `evaluate`."""
        source = self.with_frames(source)
        return pipeline.evaluation_batches(source, self.example, batch_size, **rows)

    def require(self, source: Source) -> None:
        """Refuse a source that does not provide what the task needs with its settings, or has more
        images than the task has entries.

        Raises:
          UserError: it names what is missing, and who has it.
        """
        if 0 < self.num_images < source.num_examples:
            raise UserError(
                f"num_images={self.num_images} does not hold the {source.num_examples} images of "
                "the training split: leave it out"
            )
        given = {name: getattr(self, name) for name in self.needs_of}
        require_all(self, given, source, f"task {self.task or type(self).__name__!r}")

    def with_frames(self, source: Source) -> Source:
        """The source as examples are made of it: with the frames of each example's `clip`, where
        the task needs any."""
        return Clips(source, self.clip) if self._takes_frames else source

    @property
    def _takes_frames(self) -> bool:
        asking = (whats for name, whats in self.needs_of.items() if getattr(self, name))
        return "frames" in self.needs or any("frames" in whats for whats in asking)

    def prepare(self) -> None:
        """Create all variables, the optimizer's too where the model is compiled, by tracing one
        step: nothing is computed.

        Raises:
          UserError: the settings do not go with the batch.
        """
        if self._measures is not None:
            return
        if self.spans_batch and self.batch_size == 1:
            raise UserError(
                f"batch_size=1: task {self.task!r} compares the images of a batch, or watches how "
                "far they spread: take 2 or more"
            )
        batch = self.zero_batch(2)
        with self.distribute_strategy.scope():
            self._measures = Measures(self.chance())
            # In a graph that nobody runs: tf.function would trace a second time, once the variables
            # are there.
            with tf.__internal__.FuncGraph("prepare").as_default():
                self._plain(lambda: self(self.augment(self.to_float(batch), Draws(batch))))()
            self.start()
            if getattr(self, "optimizer", None) is not None:
                self._use_groups()
                optim.create_slots(self.optimizer, self.trainable_variables)

    def _use_groups(self) -> None:
        groups = self.groups()
        check_groups(groups, self.trainable_variables)
        use_groups(self.optimizer, groups)

    def zero_batch(self, rows: int) -> Batch:
        """A batch of the types and shapes that `dataset` delivers, all zeros: for tracing."""
        example = pipeline.row(self.example, self.zero_example(), tf.zeros([2], tf.int64))
        batch = {name: tf.zeros([rows], dtype) for name, dtype in ROWS.items()}
        return {
            **batch,
            **tf.nest.map_structure(lambda x: tf.zeros([rows, *x.shape], x.dtype), example),
        }

    def zero_example(self) -> Example:
        """A source's example of a black image, for tracing: with what `needs` names, as far as our
        own sources know its shape; a task that needs something else adds that here."""
        side, zero = self.image_size, tf.zeros([], tf.int64)
        channels = getattr(self.backbone, "input_channels", 3)
        specs = {
            name: spec for need in self.needs for name, spec in ANNOTATIONS.get(need, {}).items()
        }
        annotations = {
            name: tf.zeros([n or side for n in spec.shape], spec.dtype)
            for name, spec in specs.items()
        }
        # of RGB the bytes; other images come as floats, see `data.ops.pixels`
        image = tf.zeros([side, side, channels], tf.uint8 if channels == 3 else tf.float32)
        if self._takes_frames:
            positions = self.clip(zero, zero + 1, tf.zeros([2], tf.int64))
            annotations["frames"] = (image,) * positions.shape[0]
            annotations["positions"] = tf.zeros_like(positions)
            annotations["sequence"] = tf.zeros([], tf.int32)
        return {"image": image, "label": zero, "index": zero, **annotations}

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        return self._measures.all if self._measures else []

    @property
    def counters(self) -> dict[str, float]:
        """{"replaced": unreadable images, "nonfinite_steps": steps whose loss was NaN or infinite},
        since metrics were last reset."""
        return {name: float(metric.result()) for name, metric in self._prepared().counters.items()}

    def _prepared(self) -> Measures:
        """What `prepare` made."""
        if self._measures is None:
            raise RuntimeError("no variables yet: call prepare() first")
        return self._measures

    def kernels(self) -> list[tf.Variable]:
        """The kernels (see `optim.is_kernel`) that weight decay acts on."""
        return [variable for variable in self.decayable() if optim.is_kernel(variable)]

    def decayable(self) -> list[tf.Variable]:
        """The trainable variables of the groups that weight decay acts on."""
        return self._of_groups(lambda group: group.decay != 0)

    def decaying(self) -> list[tf.Variable]:
        """The variables that weight decay acts on, by the setting `decay`."""
        return self.kernels() if self.decay == "kernels" else self.decayable()

    def adapted(self) -> list[tf.Variable]:
        """The variables whose steps LARS and LAMB scale, and whose weight decay they carry,
        likewise."""
        adapted = self._of_groups(lambda group: group.adapts)
        return [v for v in adapted if self.decay == "all" or optim.is_kernel(v)]

    def unclipped(self) -> list[tf.Variable]:
        """The trainable variables of the layers whose attribute `clipped` is False: the norm of all
        gradients together, by which `global_clipnorm` clips, is without theirs."""
        left_out = (m for m in self.submodules if not getattr(m, "clipped", True))
        return [variable for layer in left_out for variable in layer.trainable_variables]

    def _of_groups(self, chosen: Callable[[Group], bool]) -> list[tf.Variable]:
        ids = {id(v) for group in self.groups() if chosen(group) for v in group.variables}
        return [variable for variable in self.trainable_variables if id(variable) in ids]

    def compile(
        self, optimizer: tf.keras.optimizers.Optimizer, accumulate_steps: int = 1, **keras: Any
    ) -> None:
        """As in Keras; the loss and the metrics are the task's own.

        Args:
          accumulate_steps: each replica's part of a batch is computed in so many equal parts, one
            after the other, whose gradients are summed: less memory, and the same result, but for
            batch normalization, which sees each part by itself. Where the loss compares the images
            of a batch, the parts' outputs are computed first, then the loss of all, and each part
            again for its gradients (gradient caching, Gao et al., arXiv 2101.06983): a third more
            computation.

        Raises:
          UserError: batch statistics are synchronized over replicas, which parts cannot be; parts
            are computed twice, and a layer of the network draws.
        """
        strategy = self.distribute_strategy
        synchronized = strategy.num_replicas_in_sync > 1 and self.backbone.norm_policy.sync
        if (
            accumulate_steps > 1
            and synchronized
            and not isinstance(strategy, tf.distribute.TPUStrategy)
        ):
            raise UserError(
                f"--accumulate_steps={accumulate_steps} and --sync_batch_norm together need a TPU: "
                "other replicas cannot meet within a "
                "loop; leave one of them out"
            )
        random = [
            layer.name
            for layer in self.submodules
            if isinstance(layer, _RANDOM) and vars(layer).get("rate", 1)
        ]
        if random and self.spans_batch and accumulate_steps > 1:
            raise UserError(
                f"--accumulate_steps={accumulate_steps}: {', '.join(random)} of the backbone would "
                "draw anew in the second of two passes: leave it out, or these layers"
            )
        super().compile(optimizer=optimizer, **keras)
        optim.tell_kernels(self.optimizer, self.decaying, self.adapted, self.unclipped)
        self._accumulate_steps = accumulate_steps
        if self._measures is not None:
            self._use_groups()

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch = self.to_float(batch)
        draws = Draws(batch, replicas)
        batch = self.augment(batch, draws)
        if any(getattr(part, "drop_path", 0) for part in self.submodules):
            batch = {**batch, _PATHS: draws.keys(view=1 << 20)}  # no task draws that many views
        # The mean is that of the global batch; the optimizer sums the replicas' gradients.
        fraction, parts = 1 / replicas, self._accumulate_steps
        step = gradients.Step(
            self._forward,
            self._scaled_losses,
            self._scaled_decays,
            self.trainable_variables,
            self._players(),
        )
        with debiased(self.optimizer.iterations, parts):
            if parts == 1:
                scaled, outputs = gradients.plain(step, batch, fraction)
            elif self.spans_batch:
                scaled, outputs = gradients.cached(step, batch, parts, fraction)
            else:
                scaled, outputs = (
                    gradients.accumulated(step, batch, parts, 1 / (parts * replicas)),
                    None,
                )
        unscaled = self._loss_scaling("get_unscaled_gradients", scaled)
        self.optimizer.apply_gradients(zip(unscaled, self.trainable_variables))
        self.after_step(batch, outputs)
        self._prepared().count("replaced", tf.cast(batch["replaced"], tf.float32))
        return {}

    def _forward(self, batch: Batch) -> Any:
        """The outputs in training; of the same part of a batch networks skip the same blocks."""
        bits = functools.partial(_bits, batch[_PATHS]) if _PATHS in batch else None
        with drop_path.drawn(bits):
            return self(batch, training=True)

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        batch = self.to_float(batch)
        losses, measured = self.objective(batch, self(batch, training=False))
        self._prepared().track(batch["weight"], {**_reported(losses), **measured})
        return {}

    def results(self) -> dict[str, tf.Tensor]:
        return self._prepared().results()

    @property
    def autograph(self) -> bool:
        return any(network.autograph for network in (self.backbone, *self.published))

    def _scaled_losses(self, batch: Batch, outputs: Any, fraction: float) -> dict[str, tf.Tensor]:
        """{player: its loss}, as the gradients need it; and all that is measured is tracked."""
        losses, measured = self.objective(batch, outputs)
        measured = {**_reported(losses), **measured}
        self._prepared().track(batch["weight"], measured)
        # Without an online probe's, which is in the losses but not in what is reported.
        reported = tf.add_n([tf.reduce_mean(measured[name]) for name in _reported(losses)])
        self._prepared().count(
            "nonfinite_steps", tf.cast(~tf.math.is_finite(reported), tf.float32) * fraction
        )
        losses = losses if isinstance(losses, dict) else {"": losses}
        if losses.keys() != self._players().keys():
            raise UserError(
                f"objective() has losses of {_names(losses)}, and groups() players "
                f"{_names(self._players())}"
            )
        return {
            player: self._loss_scaling("get_scaled_loss", tf.reduce_mean(loss) * fraction)
            for player, loss in losses.items()
        }

    def _scaled_decays(self, fraction: float) -> dict[str, tf.Tensor]:
        """{player: weight decay of its variables}, likewise."""
        if not self.weight_decay:
            return {}
        floatx = tf.keras.backend.floatx()
        factors = {id(v): group.decay for group in self.groups() for v in group.variables}
        decayed = {id(v) for v in self.decaying()}
        decays = {}
        for player, positions in self._players().items():
            own = [
                self.trainable_variables[i]
                for i in positions
                if id(self.trainable_variables[i]) in decayed
            ]
            halves = [(factors[id(v)], tf.nn.l2_loss(tf.cast(v, floatx))) for v in own]
            total = tf.add_n(
                [half if factor == 1 else factor * half for factor, half in halves]
                or [tf.zeros([], floatx)]
            )
            decays[player] = self._loss_scaling(
                "get_scaled_loss", self.weight_decay * total * fraction
            )
        return decays

    def _players(self) -> dict[str, list[int]]:
        """{player: positions of its variables among the trainable ones}."""
        of = {id(v): group.player for group in self.groups() for v in group.variables}
        players = dict.fromkeys(of.values())
        return {
            player: [i for i, v in enumerate(self.trainable_variables) if of[id(v)] == player]
            for player in players
        }

    def _loss_scaling(self, step: str, values: Any) -> Any:
        """With float16's optimizer, one of its two steps; values as they are with all others."""
        return getattr(self.optimizer, step, lambda values: values)(values)


def require_all(
    task: Union[Contract, type[Contract]], settings: Mapping[str, Any], source: Source, who: str
) -> None:
    """Refuse a source that does not provide what a task needs with its settings.

    Args:
      task: it, or its class.
      settings: those of `task.needs_of` at least.
      source: a `Source`.
      who: for the message: "--task=simclr".

    Raises:
      UserError: it names what is missing, and who has it.
    """
    require(source, task.needs, who)
    for name, needs in task.needs_of.items():
        if settings.get(name):
            require(source, needs, f"{who} with {name}={settings[name]}")


_PATHS = "drop_path"  # of a batch: keys of the images, for drop path


def _bits(keys: tf.Tensor, rows: int, shape: Sequence[int], use: int) -> tf.Tensor:
    return hashed(rows_of(keys, rows, use), shape)


def _reported(losses: Losses) -> dict[str, tf.Tensor]:
    """{metric: loss per image}: "loss", or of several players "<player>_loss" for each; "loss" is
    then their sum."""
    if not isinstance(losses, dict):
        return {"loss": losses}
    return {
        "loss": tf.add_n(list(losses.values())),
        **{f"{player}_loss": loss for player, loss in losses.items()},
    }


def _names(players: Iterable[str]) -> str:
    return ", ".join(map(repr, players))


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalized(images: tf.Tensor) -> tf.Tensor:
    """Images in [0, 1] less ImageNet's mean, by its deviation; of other than three channels, each
    by the mean of the three."""
    mean, std = (tf.constant(x, images.dtype) for x in (IMAGENET_MEAN, IMAGENET_STD))
    if images.shape[-1] != 3:
        mean, std = tf.reduce_mean(mean), tf.reduce_mean(std)
    return (images - mean) / std


def image_major(images: tf.Tensor) -> tf.Tensor:
    """The views, copies or patches of all images as rows: [N, K, H, W, C] -> [N * K, H, W, C]."""
    return tf.reshape(images, [-1, *images.shape[2:]])


def cross_entropy_chance(classes: int) -> dict[str, float]:
    """Loss and accuracy of a uniform guess among `classes`."""
    return {"loss": math.log(classes), "accuracy": 1 / classes}

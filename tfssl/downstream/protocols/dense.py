"""Base of the protocols of dense prediction: feature maps, heads on them, and the training loop of
the heads.

A protocol adds a `Task`: annotations, head, loss and metric.

Maps are computed once (`maps.py`); where the backbone is fine-tuned, the images pass through the
module in each step.
"""

import contextlib
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Optional

import numpy as np
import tensorflow as tf

from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream.features.maps import IMAGES, Maps, check_endpoints, image_sides
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.downstream.solvers import sgd
from tfssl.errors import UserError, check_choice
from tfssl.hub.load import Module
from tfssl.losses import replicas

TRUNKS = ("frozen", "fine_tuned")
Example = dict[str, tf.Tensor]
# (image, annotations, its number)
View = Callable[[tf.Tensor, Example, tf.Tensor], tuple[tf.Tensor, Example]]
Predictions = Iterable[tuple[Any, int]]  # (output of `decode` for an image, its number)
Predict = Callable[[tf.Tensor], Any]  # a batch of a network's array -> output of `decode`
HEADS = ("linear", "dilated")


class Task:
    """One run of a dense protocol; `Dense.run` calls these in this order.

    Args:
      size: (height, width) of all images.
      seed: of random views.
      mirrored: whether heads are trained on horizontally flipped images too.
    """

    def __init__(self, size: tuple[int, int], seed: int = 0, mirrored: bool = False) -> None:
        self.size, self.seed, self.mirrored = size, seed, mirrored

    def read(self, example: Example) -> tuple[tf.Tensor, Example]:
        """Graph function: an example of a source -> (image uint8 [*size, 3], dict of
        annotations)."""
        raise NotImplementedError

    def mirror(self, image: tf.Tensor, annotations: Example) -> tuple[tf.Tensor, Example]:
        """Graph function: image and annotations, as of `read`, flipped horizontally."""
        raise NotImplementedError

    def others(self) -> list[View]:
        """Further views of training images: functions (image, annotations, the image's number) ->
        (image, annotations)."""
        return (
            [lambda image, annotations, _: self.mirror(image, annotations)] if self.mirrored else []
        )

    def prepare(self, maps: Maps, source: Source) -> None:
        """Read what the head depends on, such as the number of classes, from all training images
        (`Maps`)."""

    def tested(self, maps: Maps) -> bool:
        """Whether the images (`Maps`) have annotations to compare predictions with."""
        return True

    def targets(self, maps: Maps) -> dict[str, np.ndarray]:
        """The targets of `loss`: dict of arrays [R, ...]."""
        raise NotImplementedError

    def head(self) -> tf.keras.Model:
        """A Keras model [N, h, w, C] -> outputs; of a list of maps where the protocol's `levels` is
        one."""
        raise NotImplementedError

    def loss(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        """Graph function: scalar."""
        raise NotImplementedError

    def decode(self, outputs: tf.Tensor) -> Any:
        """Graph function: predictions, a nest of tensors with a row for each image; `measure` gets
        them as arrays."""
        raise NotImplementedError

    def measure(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> dict[str, Any]:
        """Fields of a result, {"value": ..., ...}; `predicted` yields (prediction, number of the
        image) in the order of `images`."""
        raise NotImplementedError

    def picture(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> Optional[bytes]:
        """PNG bytes of a few predictions, for a report; None: there is no such picture."""

    def published(self, network: "DenseModel") -> Any:
        """What `Data.publish` receives of a trained network; None: nothing."""


class Dense(Protocol[Source]):
    """A head on each feature map [N, h, w, C] of a module on whole images.

    `Data` has sources and a module; without a validation split a part of `train` is held out to
    choose the endpoint, and the reported head is then trained on all of it. `train_labels` is not
    used: all annotated images are. The replicas of `strategy` share the batches of a head on frozen
    maps; all else, fine-tuning too (a module's BN is of one replica), is computed on one device.

    Args:
      size: HEIGHT,WIDTH in pixels that images are resized to (detection: scaled to fit, and
        padded); 0,0: those of the first.
      trunk: Whether the module is frozen or fine-tuned too, with batch statistics where it has BN;
        it is restored afterwards.
      trunk_rate: Factor of the module's learning rate, where it is fine-tuned.
      epochs: Passes over the images.
      batch_size: Images per step, at most all.
      learning_rate: Of Adam, at the first step; it falls along a cosine.
    """

    reads = "maps"
    one_pass = True  # maps are computed once
    flag_prefix = "dense_"
    order_independent = False
    quick = {"train_labels": 500, "epochs": 15}
    trials = {"epochs": 1}, {"epochs": 4}
    repeated: ClassVar[tuple[str, ...]] = ()  # settings of its own that results repeat

    def __init__(
        self,
        size: Sequence[int] = (0, 0),
        trunk: Literal["frozen", "fine_tuned"] = "frozen",
        trunk_rate: float = 1.0,
        epochs: int = 60,
        batch_size: int = 8,
        learning_rate: float = 0.01,
    ) -> None:
        if len(size) != 2:
            raise UserError(
                f"size={','.join(map(str, size))}: give HEIGHT,WIDTH in pixels, such as 360,480"
            )
        check_choice("trunk", trunk, TRUNKS)
        self.size, self.trunk, self.trunk_rate = (size[0], size[1]), trunk, trunk_rate
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate

    def task(self, size: tuple[int, int], seed: int) -> Task:
        """The `Task` on images of one size."""
        raise NotImplementedError

    def passes(self) -> float:
        return self.epochs

    def work(self, train: int, test: int, dims: int) -> float:
        return (min(train, 10_000) + test) * dims

    def endpoints(
        self, data: Data[Source], names: Optional[Sequence[str]] = None, pixels: bool = True
    ) -> list[str]:
        pixels = pixels and self.trunk == "frozen"
        return check_endpoints(
            data.required_module, image_sides(data.train, self.size), self.name, names, not pixels
        )

    def run(self, data: Data[Source], endpoints: Sequence[str]) -> Iterator[Result]:
        module, seed, val, frozen = (
            data.required_module,
            data.seed,
            data.val,
            self.trunk == "frozen",
        )
        size = image_sides(data.train, self.size)
        task = self.task(size, seed)
        parts = {
            part: Maps(
                module,
                source,
                tf.nest.flatten([self.levels(e) for e in endpoints]) if frozen else [IMAGES],
                task.read,
                task.others() if part == "train" else (),
            )
            for part, source in data.named_parts.items()
        }
        learned = parts["train"]
        task.prepare(learned, data.train)
        if not task.tested(parts["test"]):
            source = f"{data.test.spec} {data.test.split}"
            raise UserError(
                f"{source}: no image shows what {self.name} asks for: nothing to measure"
            )
        targets, order = (
            task.targets(learned),
            np.random.default_rng(seed).permutation(len(learned)),
        )
        held_out = order[: 0 if val else round(data.val_fraction * len(order))]

        def made(name: str, rows: np.ndarray) -> DenseModel:
            tf.keras.utils.set_random_seed(seed)
            return DenseModel(
                task.head(), module, learned, self.levels(name), rows, self.trunk, self.trunk_rate
            )

        def fit(name: str, images: np.ndarray, title: str) -> tuple[DenseModel, Optional[float]]:
            rows = learned.rows(images, all_views=True)
            network = made(name, rows)
            steps = self.epochs, self.batch_size, self.learning_rate
            arguments = task.loss, targets, rows, *steps, seed, title
            if data.strategy is None or data.replicas == 1 or not frozen:
                return network, learn(network, *arguments)
            with data.strategy.scope():
                copies = made(name, rows)
                loss = learn(copies, *arguments)
            for variable, learned_value in zip(network.head.variables, copies.head.variables):
                variable.assign(learned_value.numpy())
            return network, loss

        def predictions(
            predict: Predict, part: str, images: Sequence[int], name: str, at_once: int = 8
        ) -> Predictions:
            names, rows = self.levels(name) if frozen else IMAGES, parts[part].rows(images)
            arrays = tf.nest.map_structure(parts[part].arrays.__getitem__, names)
            for i in range(0, len(rows), at_once):
                batch = tf.nest.map_structure(
                    np.asarray, predict(_rows(arrays, rows[i : i + at_once]))
                )
                for j, image_number in enumerate(images[i : i + at_once]):
                    yield tf.nest.map_structure(operator.itemgetter(j), batch), image_number

        def measure(
            predict: Predict, part: str, images: Sequence[int], name: str
        ) -> dict[str, Any]:
            return task.measure(predictions(predict, part, images, name), parts[part], images)

        for name in endpoints:
            begun, val_value, title = time.time(), None, f"{self.name} {name}"
            with restored([] if frozen else module.variables):
                if len(held_out):
                    trial, _ = fit(name, order[len(held_out) :], f"{title}, to choose")
                    predict = predictor(trial, task.decode)
                    val_value = _known(measure(predict, "train", held_out.tolist(), name)["value"])
            with restored([] if frozen else module.variables):
                network, loss = fit(name, order, title)
                predict = predictor(network, task.decode)
                if val:
                    val_value = _known(
                        measure(predict, "val", range(len(parts["val"])), name)["value"]
                    )
                measured = dict(measure(predict, "test", range(len(parts["test"])), name))
                shown = list(parts["test"].shown)
                picture = task.picture(
                    predictions(predict, "test", shown, name), parts["test"], shown
                )
                published = task.published(network) if data.publish else None
                if data.publish and published is not None:
                    data.publish(published)
            yield Result(
                protocol=self.name,
                endpoint=name,
                metric=self.metric,
                value=measured.pop("value"),
                val_value=val_value,
                train_labels=len(order),
                chosen_on=data.chosen_on if val or len(held_out) else None,
                details={
                    **measured,
                    "size": list(size),
                    "trunk": self.trunk,
                    **({} if frozen else {"trunk_rate": self.trunk_rate}),
                    **{setting: getattr(self, setting) for setting in self.repeated},
                    "epochs": self.epochs,
                    "learning_rate": self.learning_rate,
                    "loss": loss,
                    "diverged": loss is None,
                    "unreadable": {part: maps.dropped for part, maps in parts.items()},
                },
                picture=picture,
                seconds=time.time() - begun,
            )


def _rows(arrays: Any, rows: np.ndarray) -> Any:
    """Some rows of each array of a nest, as tensors."""
    return tf.nest.map_structure(lambda array: tf.constant(array[rows]), arrays)


def _known(value: float) -> Optional[float]:
    """None for NaN, the mean of nothing."""
    return None if np.isnan(value) else value


def shaped_like(annotation: tf.Tensor, picture: tf.Tensor) -> tf.Tensor:
    """An annotation [h, w, ...] of a picture, encoded or [H, W, 3]; InvalidArgumentError where its
    sides are not in the picture's proportion, to a pixel, as of one that is turned."""
    theirs, its = (tf.cast(x, tf.int64) for x in (image.image_size(picture), tf.shape(annotation)))
    apart = tf.abs(theirs[0] * its[1] - theirs[1] * its[0])
    said = "an annotation is not in its picture's proportion"
    with tf.control_dependencies(
        [tf.debugging.assert_less_equal(apart, tf.reduce_max(theirs), said)]
    ):
        return tf.identity(annotation)


def head(kind: str, outputs: int) -> tf.keras.Model:
    """A head: "linear", a 1x1 convolution to `outputs` channels; "dilated", the same after two 3x3
    convolutions of 256 channels and dilation 6, each with BN and ReLU, as in MoCo's FCN (He et al.,
    arXiv 1911.05722)."""
    layers = []
    for _ in range(2 if kind == "dilated" else 0):
        layers += [
            tf.keras.layers.Conv2D(256, 3, padding="same", dilation_rate=6, use_bias=False),
            tf.keras.layers.BatchNormalization(momentum=0.9, synchronized=replicas.count() > 1),
            tf.keras.layers.ReLU(),
        ]
    last = tf.keras.layers.Conv2D(
        outputs, 1, kernel_initializer="zeros" if not layers else "glorot_uniform"
    )
    return tf.keras.Sequential([*layers, last])


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Mean cross-entropy of logits [N, h, w, C], resized to `size`, and labels int [N, *size], -1
    for none; of several replicas, each one's part of the mean."""
    labels = tf.cast(labels, tf.int32)
    logits = tf.image.resize(logits, size)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    known = tf.cast(labels >= 0, losses.dtype)
    return tf.reduce_sum(known * losses) / tf.maximum(replicas.total(tf.reduce_sum(known)), 1.0)


class DenseModel:
    """A head on one endpoint, or on a list of them: callable, maps [N, h, w, C] -> outputs.

    With a fine-tuned backbone it takes images uint8 [N, H, W, 3]. Channels are standardized first:
    by mean and standard deviation over the maps of `rows`; or, with a fine-tuned backbone, of the
    batch, by BN.
    """

    def __init__(
        self,
        head: tf.keras.Model,
        module: Module,
        maps: Maps,
        name: Any,
        rows: np.ndarray,
        trunk: str = "frozen",
        trunk_rate: float = 1.0,
    ) -> None:
        self.head, self._trunk_rate = head, trunk_rate
        self.module, self.name = module, name
        self._norms: list[tf.keras.layers.Layer] = []
        if trunk == "frozen":
            self.array, self._trunk = tf.nest.map_structure(maps.arrays.__getitem__, name), []
            arrays = tf.nest.flatten(self.array)
            shapes = [array.shape[1:] for array in arrays]
            moments = [_moments(array, rows) for array in arrays]

            def standardized(x: Any, training: bool) -> Any:
                flat = zip(tf.nest.flatten(x), moments)
                found = [(tf.cast(v, tf.keras.backend.floatx()) - m) / std for v, (m, std) in flat]
                return tf.nest.pack_sequence_as(name, found)
        else:
            height, width = maps.arrays[IMAGES].shape[1:3]
            of_module, names = module.shapes((height, width)), tf.nest.flatten(name)
            shapes, norms = [of_module[one] for one in names], self._norms
            for shape in shapes:
                norms.append(
                    tf.keras.layers.BatchNormalization(center=False, scale=False, momentum=0.9)
                )
                norms[-1].build((None, *shape))
            self.array, self._trunk = maps.arrays[IMAGES], list(module.trainable_variables)

            def standardized(x: Any, training: bool) -> Any:
                endpoints = module.endpoints(tf.cast(x, tf.float32) / 255, training)
                found = [norm(endpoints[one], training=training) for one, norm in zip(names, norms)]
                return tf.nest.pack_sequence_as(name, found)

        self._map = standardized
        batches: list[Any] = [(None, *shape) for shape in shapes]
        head.build(batches[0] if isinstance(name, str) else batches)

    def __call__(self, x: Any, training: bool = False) -> Any:
        return self.head(self._map(x, training), training=training)

    def of_images(self, images: tf.Tensor) -> Any:
        """Outputs in inference of images uint8 [N, H, W, 3]."""
        if self._norms:
            return self(images)
        endpoints = self.module.endpoints(tf.cast(images, tf.float32) / 255)
        return self(tf.nest.map_structure(endpoints.__getitem__, self.name))

    @property
    def variables(self) -> list[tf.Variable]:
        """Those of the module, of its maps' normalization and of the head."""
        norms = [v for norm in self._norms for v in norm.variables]
        return [*self.module.variables, *norms, *self.head.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """Those of the module and of the head."""
        return [*self.module.trainable_variables, *self.head.trainable_variables]

    def groups(self) -> list[tuple[list[tf.Variable], float]]:
        """[(variables, factor of the learning rate)]."""
        trunk = [(self._trunk, self._trunk_rate)] if self._trunk else []
        return [(self.head.trainable_variables, 1.0), *trunk]


def _moments(array: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] over some rows, computed in float64."""
    count, (total, squares) = 0, np.zeros((2, array.shape[-1]))
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        values = array[np.sort(part)].astype(np.float64).reshape(-1, array.shape[-1])
        total, squares, count = (
            total + values.sum(0),
            squares + (values**2).sum(0),
            count + len(values),
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-6
    return mean.astype(np.float32), std.astype(np.float32)


def learn(
    network: DenseModel,
    loss: Callable[[tf.Tensor, Example], tf.Tensor],
    targets: dict[str, np.ndarray],
    rows: np.ndarray,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    title: str = "",
) -> Optional[float]:
    """Train a network by Adam with cosine decay of the learning rate, on all replicas of the
    strategy in whose scope it is called and the network made.

    Args:
      network: a DenseModel.
      loss: graph function (outputs, batch of targets) -> scalar; of several replicas, each one's
        part of it.
      targets: dict of arrays [R, ...].
      rows: int [n], of the network's array and of the targets.
      epochs, batch_size: an epoch has floor(n / batch_size) batches, at least one, of all rows.
      learning_rate: of the first step.
      seed: of the order.
      title: of the progress bar.

    Returns:
      the mean loss of the last epoch, None where it is not finite.

    Raises:
      UserError: the replicas cannot share a batch.
    """
    strategy = tf.distribute.get_strategy()
    shares = strategy.num_replicas_in_sync
    if batch_size % shares or len(rows) < shares:
        raise UserError(
            f"batch_size={batch_size} of {len(rows)} views does not divide over {shares} replicas: "
            "give a multiple of their number"
        )
    batch_size = min(batch_size, len(rows) // shares * shares)
    steps = len(rows) // batch_size

    def shared(arrays: Any, chosen: np.ndarray) -> Any:
        """Some rows of each array: tensors; of several replicas, each one's share of them."""
        if shares == 1:
            return _rows(arrays, chosen)
        parts = np.split(chosen, shares)
        return tf.nest.map_structure(
            lambda array: strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
            ),
            arrays,
        )

    graph = tf.function(step_of(network, loss, learning_rate, epochs * steps), autograph=False)
    compiled, total = None, 0.0
    order, progress = (
        np.random.default_rng([seed, 1]),
        sgd.Progress(title, sgd.SGDSettings(epochs, (), batch_size, 0), steps),
    )
    for epoch in range(1, epochs + 1):
        shuffled = order.permutation(rows)
        total = tf.zeros([], tf.float64)
        for i in range(0, steps * batch_size, batch_size):
            batch = shared((network.array, targets), shuffled[i : i + batch_size])
            # traced by hand: TensorFlow warns of many traces
            compiled = compiled or graph.get_concrete_function(*batch)
            total += tf.cast(compiled(*batch), tf.float64)
            progress.step(epoch)
    progress.close()
    mean = float(total) / steps
    return mean if np.isfinite(mean) else None


def step_of(
    network: DenseModel,
    loss: Callable[[tf.Tensor, Example], tf.Tensor],
    learning_rate: float,
    steps: int,
) -> Callable[[Any, Example], tf.Tensor]:
    """One step of `learn`, whose arguments these are, of so many `steps`: the graph function (rows
    of the network's array, rows of the targets) -> loss."""
    strategy = tf.distribute.get_strategy()
    groups = [
        (
            tf.keras.optimizers.Adam(
                tf.keras.optimizers.schedules.CosineDecay(rate * learning_rate, steps)
            ),
            variables,
        )
        for variables, rate in network.groups()
    ]
    for optimizer, variables in groups:
        optimizer.build(variables)

    def of_replica(x: Any, batch: Example) -> tf.Tensor:
        """A replica's part of a step; returns its part of the loss."""
        with tf.GradientTape() as tape:
            value = loss(network(x, training=True), batch)
        gradients = iter(tape.gradient(value, [v for _, variables in groups for v in variables]))
        for optimizer, variables in groups:
            pairs = [(next(gradients), v) for v in variables]  # None for layers above the endpoint
            # summed over replicas
            optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        return value

    def step(x: Any, batch: Example) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(of_replica, (x, batch)), axis=None)

    return step


def predictor(network: DenseModel, decode: Callable[[tf.Tensor], Any]) -> Predict:
    """The graph function batch of the network's array -> decode(outputs), traced by hand:
    TensorFlow warns of many traces."""
    spec = tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), network.array
    )
    return tf.function(lambda x: decode(network(x)), autograph=False).get_concrete_function(spec)


@contextlib.contextmanager
def restored(variables: Iterable[tf.Variable]) -> Iterator[None]:
    """A context at whose end variables have the values of its begin."""
    values = [v.numpy() for v in variables]
    try:
        yield
    finally:
        for v, value in zip(variables, values):
            v.assign(value)

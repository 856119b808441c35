"""The pretext task: a Keras model that owns a backbone, a head and an objective, and the one training step."""

import math
import time

import tensorflow as tf

from tfssl import optim
from tfssl.backbones.norm import BatchNorm, debiased, frozen_statistics
from tfssl.data import pipeline
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError, check_choice


class Pretext(tf.keras.Model):
    """Base class of all tasks. A subclass adds what its paper adds:

      example(image, seed)     one image, encoded or uint8 -> what becomes of it (host, inside tf.data; seed None: deterministic;
                               traced without autograph: tf.cond where a tensor decides)
      augment(batch, draws)    batched, on the device, in training only
      call(batch, training)    -> outputs of the network
      objective(batch, outputs) -> (loss per example [n], {metric: value per example [n], or (value, weight)})
      adjust(gradients)        what becomes of them before the optimizer gets them
      after_step(batch, outputs)  updates of state: EMA networks, queues
      start()                  state that begins as a copy of other variables
      normalise(images)        [0, 1] -> what the backbone was trained on
      chance()                 {"loss": ..., metric: ...}: the levels of an encoder that knows nothing; its keys name the metrics

    Args:
      backbone: a `tf.keras.Model` from `tfssl.backbones.build`: images -> endpoints.
      image_size: side of the square images that the backbone sees, in pixels.
      weight_decay: factor w of 0.5 * w * sum ||kernel||^2 over the kernels of convolutions and dense layers, added to the loss (the
        2019 study: 1e-4). The reported loss leaves it out.
      decay: kernels, or all: weight decay acts on biases and normalizations too, as PyTorch's optimizers have it for all parameters.
    """

    task = None  # the registered name
    spans_batch = False  # whether an image's loss depends on the other images of the batch
    num_images = 0  # of the data set, where the task keeps a place for each
    settings = None  # what `pretext.build` was given: enough to build the same task again

    def __init__(self, backbone, image_size=224, weight_decay=1e-4, decay="kernels"):
        super().__init__()
        self.backbone = backbone
        if image_size < 1:
            raise UserError(
                f"image_size={image_size} is the side of the images that the network sees: at least 1 pixel"
            )
        self.image_size = image_size
        check_choice("decay", decay, ("kernels", "all"))
        self.weight_decay, self.decay = weight_decay, decay
        # What a run tells its task: images of a global batch, steps of an epoch (of the data), steps in all. 0: nobody has.
        self.batch_size, self.epoch_steps, self.total_steps = 0, 0, 0
        self._measures = None
        self._accumulate_steps = 1

    # What a task defines.

    @staticmethod
    def from_data(settings, source, workdir):
        """Settings that a run measures on its images: {name: value} to take the place of those given. `source` None: what was kept of them
        in the workdir."""
        return {}

    def example(self, image, seed):
        raise NotImplementedError

    def augment(self, batch, draws):
        return batch

    def objective(self, batch, outputs):
        raise NotImplementedError

    def after_step(self, batch, outputs):
        """Called after each training step, on each replica; `outputs` is None where the step was computed in parts that are independent."""
        return None

    def adjust(self, gradients):
        """The gradients, in the order of `trainable_variables`, as the optimizer gets them."""
        return gradients

    def start(self):
        """Called once all variables exist, and again after initial weights were loaded."""
        return None

    def normalise(self, images):
        """Images in [0, 1] to [-1, 1], as in the Inception recipe."""
        return 2.0 * images - 1.0

    def chance(self):
        raise NotImplementedError

    def alarm(self, measured):
        """A warning about the {metric: value} of the latest steps, or None."""
        return None

    def views(self, batch):
        """The images that the network sees for an (augmented) batch: [n, H, W, 3] in [0, 1], for people to look at."""
        return batch["image"]

    def pictures(self, batch):
        """[n, H, W, 3] in [0, 1] that show, for an evaluation batch, what the task has learned; None where there is nothing to see."""
        return None

    @property
    def evaluation_size(self):
        """(side of the central crop, shorter side before it), in pixels: how images come to the published encoder."""
        raise NotImplementedError

    @property
    def min_image_size(self):
        """The smallest side of an image that `encode` makes sense of, in pixels."""
        return self.backbone.min_image_size

    # What all tasks share.

    def norm(self, name, **settings):
        """A batch normalisation for the task's head, whose statistics span what the backbone's do."""
        return BatchNorm(sync=self.backbone.bn_sync, groups=self.backbone.bn_groups, name=name, **settings)

    def encode(self, images, training=False):
        """Images [N, H, W, 3] in [0, 1] -> dict of endpoints. Export publishes this."""
        return self.backbone(self.normalise(images), training=training)

    def to_float(self, batch):
        """The batch with its uint8 images as floats in [0, 1]: they travel to the device as bytes."""
        scale = tf.constant(1 / 255, tf.keras.backend.floatx())  # a cast would round it to float32 first
        as_float = tf.nest.map_structure(lambda x: tf.cast(x, scale.dtype) * scale, batch["image"])
        return {**batch, "image": as_float}

    def dataset(self, source, batch_size, seed=0, start_step=0, steps=None, **rows):
        """The training batches of a source (see `data.pipeline.training_batches`), ready for `fit`.

        Raises:
          UserError: the task has no place for so many images.
        """
        if 0 < self.num_images < source.num_examples:
            raise UserError(
                f"num_images={self.num_images} does not hold the {source.num_examples} images of the training split: leave it out"
            )
        return pipeline.training_batches(source, self.example, batch_size, seed, start_step, steps, **rows)

    def evaluation_dataset(self, source, batch_size, **rows):
        """One deterministic pass over a source, ready for `evaluate`."""
        return pipeline.evaluation_batches(source, self.example, batch_size, **rows)

    def prepare(self):
        """Create all variables, the optimizer's too where the model is compiled, by tracing one step: nothing is computed."""
        if self._measures is not None:
            return
        batch = self.zero_batch(2)
        with self.distribute_strategy.scope():
            self._measures = _Measures(self.chance())
            # In a graph that nobody runs: tf.function would trace a second time, once the variables are there.
            with tf.__internal__.FuncGraph("prepare").as_default():
                self._plain(lambda: self(self.augment(self.to_float(batch), Draws(batch))))()
            self.start()
            if getattr(self, "optimizer", None) is not None:
                optim.create_slots(self.optimizer, self.trainable_variables)

    def zero_batch(self, rows):
        """A batch of the types and shapes that `dataset` delivers, all zeros: for tracing."""
        image = self.example(tf.zeros([self.image_size, self.image_size, 3], tf.uint8), tf.zeros([2], tf.int64))
        batch = {name: tf.zeros([rows], dtype) for name, dtype in ROWS.items()}
        return {**batch, "image": tf.nest.map_structure(lambda x: tf.zeros([rows, *x.shape], x.dtype), image)}

    @property
    def metrics(self):
        return self._measures.all if self._measures else []

    @property
    def counters(self):
        """{"replaced": unreadable images, "nonfinite_steps": steps whose loss was NaN or infinite}, since metrics were last reset."""
        return {name: float(metric.result()) for name, metric in self._measures.counters.items()}

    def kernels(self):
        """The kernels (see `optim.is_kernel`) that weight decay acts on: of all layers that are not exempt."""
        return [variable for variable in self.decayable() if optim.is_kernel(variable)]

    def decayable(self):
        """The trainable variables of all layers that are not exempt, by a `decayed` that is False. A task's own are: SwAV's prototypes are
        directions."""
        exempt = {id(v) for m in self.submodules if not getattr(m, "decayed", True) for v in m.variables}
        exempt |= {id(v) for v in self._trainable_weights}
        return [variable for variable in self.trainable_variables if id(variable) not in exempt]

    def decaying(self) -> list[tf.Variable]:
        """The variables that weight decay acts on, by the setting `decay`."""
        return self.kernels() if self.decay == "kernels" else self.decayable()

    def adapted(self) -> list[tf.Variable]:
        """The variables whose steps LARS and LAMB scale, and whose weight decay they carry."""
        return self.decaying()

    def compile(self, optimizer, accumulate_steps=1, **keras):
        """As in Keras; the loss and the metrics are the task's own.

        Args:
          accumulate_steps: each replica's share of a batch is computed in so many equal parts, one after the other, whose gradients are
            summed: less memory, and the same result, but for batch normalisation, which sees each part by itself. Where the loss compares
            the images of a batch, the parts' outputs are computed first, then the loss of all, and each part again for its gradients
            (Gao et al., arXiv 2101.06983): a third more computation.

        Raises:
          UserError: the replicas' batch statistics are one, which parts cannot be.
        """
        strategy = self.distribute_strategy
        meet = strategy.num_replicas_in_sync > 1 and getattr(self.backbone, "bn_sync", False)
        if accumulate_steps > 1 and meet and not isinstance(strategy, tf.distribute.TPUStrategy):
            raise UserError(
                f"--accumulate_steps={accumulate_steps} and --sync_batch_norm together need a TPU: other replicas cannot meet within a "
                "loop; leave one of them out"
            )
        super().compile(optimizer=optimizer, **keras)
        optim.tell_kernels(self.optimizer, self.decaying, self.adapted)
        self._accumulate_steps = accumulate_steps

    def train_step(self, batch):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch = self.to_float(batch)
        batch = self.augment(batch, Draws(batch, replicas))
        # Each part takes its share of the mean over the global batch; the optimizer sums the replicas' gradients.
        parts = self._accumulate_steps
        with debiased(self.optimizer.iterations, parts):
            if parts == 1:
                gradients, outputs = self._gradients(batch, 1 / replicas)
            elif self.spans_batch:
                gradients, outputs = self._cached_gradients(batch, parts, 1 / replicas)
            else:
                gradients, outputs = self._summed_gradients(batch, parts, 1 / (parts * replicas)), None
        self.optimizer.apply_gradients(zip(self.adjust(gradients), self.trainable_variables))  # noqa: B905 (Python 3.9)
        self.after_step(batch, outputs)
        self._measures.counters["replaced"].update_state(tf.cast(batch["replaced"], tf.float32))
        return {}

    def _gradients(self, batch, share):
        """One forward and one backward pass; `share`: of the batch in the loss."""
        with tf.GradientTape() as tape:
            outputs = self(batch, training=True)
            scaled = self._scaled_loss(batch, outputs, share) + self._scaled_decay(share)
        gradients = tape.gradient(scaled, self.trainable_variables, unconnected_gradients="zero")
        return self._loss_scaling("get_unscaled_gradients", gradients), outputs

    def _scaled_loss(self, batch, outputs, share):
        losses, measured = self.objective(batch, outputs)
        loss = tf.reduce_mean(losses) * share
        self._track(batch, losses, measured)
        own = tf.reduce_mean(measured.get("loss", losses))  # without an online probe's
        self._measures.counters["nonfinite_steps"].update_state(tf.cast(~tf.math.is_finite(own), tf.float32) * share)
        return self._loss_scaling("get_scaled_loss", loss)

    def _scaled_decay(self, share):
        if not self.weight_decay:
            return 0.0
        floatx = tf.keras.backend.floatx()
        decay = tf.add_n([tf.nn.l2_loss(tf.cast(variable, floatx)) for variable in self.decaying()])
        return self._loss_scaling("get_scaled_loss", self.weight_decay * decay * share)

    def _summed_gradients(self, batch, parts, share):
        """The parts of a batch one after the other, each with its own loss."""
        part = self._cut(batch, parts)
        return self._sum_over(parts, lambda i: self._gradients(part(i), share)[0])

    def _cached_gradients(self, batch, parts, share):
        """Outputs of all parts; the loss of all and its gradients by the outputs; each part again, for its share of the gradients."""
        part = self._cut(batch, parts)
        with frozen_statistics():  # the second pass moves them
            shapes = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self(part(0), training=True))
            outputs = tf.map_fn(
                lambda i: self(part(i), training=True),
                tf.range(parts),
                fn_output_signature=shapes,
                parallel_iterations=1,
            )
        outputs = tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), outputs)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            scaled = self._scaled_loss(batch, outputs, share)
        by_output = tf.nest.map_structure(
            lambda g: tf.reshape(g, [parts, -1, *g.shape[1:]]),
            tape.gradient(scaled, outputs, unconnected_gradients="zero"),
        )

        def gradients(i):
            with tf.GradientTape() as tape:
                again = self(part(i), training=True)
            share_of = tf.nest.map_structure(lambda g: g[i], by_output)
            return tape.gradient(
                again, self.trainable_variables, output_gradients=share_of, unconnected_gradients="zero"
            )

        with tf.GradientTape() as tape:
            decay = self._scaled_decay(share)
        sums = self._sum_over(parts, gradients)
        if self.weight_decay:
            decays = tape.gradient(decay, self.trainable_variables, unconnected_gradients="zero")
            sums = [s + d for s, d in zip(sums, decays)]  # noqa: B905 (Python 3.9)
        return self._loss_scaling("get_unscaled_gradients", sums), outputs

    def _cut(self, batch, parts):
        """A function i -> the i-th part of this replica's batch."""
        rows = batch["weight"].shape[0]
        if rows % parts:
            raise UserError(f"--accumulate_steps={parts} does not divide the {rows} images of a replica")
        cut = tf.nest.map_structure(lambda x: tf.reshape(x, [parts, rows // parts, *x.shape[1:]]), batch)
        return lambda i: tf.nest.map_structure(lambda x: x[i], cut)

    def _sum_over(self, parts, gradients):
        def add(i, sums):
            return i + 1, [s + g for s, g in zip(sums, gradients(i))]  # noqa: B905 (Python 3.9)

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
        # Exactly one part at a time: their activations are what there is no room for.
        return tf.while_loop(lambda i, sums: i < parts, add, (0, zeros), parallel_iterations=1)[1]

    def _loss_scaling(self, step, values):
        """With float16's optimizer, one of its two steps; values as they are with all others."""
        return getattr(self.optimizer, step, lambda values: values)(values)

    def test_step(self, batch):
        batch = self.to_float(batch)
        losses, measured = self.objective(batch, self(batch, training=False))
        self._track(batch, losses, measured)
        return {}

    def _track(self, batch, losses, measured):
        copies = losses.shape[0] // batch["weight"].shape[0]  # examples that became of one image
        weight = tf.repeat(batch["weight"], copies)
        for name, values in {"loss": losses, **measured}.items():
            values, share = values if isinstance(values, tuple) else (values, 1.0)
            # where: the blank rows of an evaluation must not turn 0 * NaN into NaN
            values = tf.where(weight > 0, values, tf.zeros_like(values))
            self._measures.means[name].update_state(values, weight * tf.cast(share, weight.dtype))

    def _results(self):
        """{metric: its mean since metrics were last reset}; NaN of no image."""
        means = self._measures.means.items()
        return {name: tf.where(mean.count > 0, mean.result(), math.nan) for name, mean in means}

    def make_train_function(self, force=False):
        """Keras's training loop, which also measures, inside the compiled function, how long it waits for input."""
        if self.train_function is not None and not force:
            return self.train_function
        run_step = self._compiled(self.train_step, self._train_counter)
        repeated = self._repeats()
        now = _clock()

        def timed_next(iterator):
            before = now()
            with tf.control_dependencies([before]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                return batch, now() - before

        def train_function(iterator):
            def step(waited):
                batch, seconds = timed_next(iterator)
                with tf.control_dependencies([seconds]):  # or one core may look at the clock after the step
                    self.distribute_strategy.run(run_step, args=(batch,))
                return waited + seconds

            waited = repeated(step, tf.zeros([], tf.float64))
            return {**self._results(), "input_seconds": waited}

        self.train_function = self._as_graph(train_function)
        return self.train_function

    def make_test_function(self, force=False):
        if self.test_function is not None and not force:
            return self.test_function
        run_step = self._compiled(self.test_step, self._test_counter)
        repeated = self._repeats()

        def test_function(iterator):
            def step(steps):
                self.distribute_strategy.run(run_step, args=(next(iterator),))
                return steps + 1

            repeated(step, 0)
            return self._results()

        self.test_function = self._as_graph(test_function)
        return self.test_function

    def _compiled(self, step, counter):
        self.prepare()
        step = self._plain(step)
        if self._jit_compile:
            step = tf.function(step, jit_compile=True, autograph=self.backbone.autograph)

        def run_step(batch):
            step(batch)
            counter.assign_add(1)

        return run_step

    def _plain(self, function):
        """The function, not to be converted by AutoGraph unless the backbone needs that."""
        return function if self.backbone.autograph else tf.autograph.experimental.do_not_convert(function)

    def _repeats(self):
        """A function (step, value) -> the value after `steps_per_execution` calls of `step`."""
        if int(self._steps_per_execution.numpy()) == 1:  # A loop would be traced, optimized and started for nothing.
            return lambda step, value: step(value)

        def repeated(step, value):
            # Spelled out: a quarter of the time of tracing went into AutoGraph's conversions of what is around the step.
            count = tf.convert_to_tensor(self._steps_per_execution)  # Keras lowers it for what is left over at the end
            return tf.while_loop(
                lambda i, _: i < count, lambda i, value: (i + 1, step(value)), (tf.zeros_like(count), value)
            )[1]

        return repeated

    def _as_graph(self, function):
        return function if self.run_eagerly else tf.function(function, autograph=self.backbone.autograph)


ROWS = {
    "label": tf.int64,
    "index": tf.int64,
    "number": tf.int64,
    "seed": tf.int64,
    "weight": tf.float32,
    "replaced": tf.bool,
}


class _Measures:
    """The running metrics; a plain object, so that Keras keeps them out of the model's weights and checkpoints."""

    def __init__(self, names):
        self.means = {name: tf.keras.metrics.Mean(name) for name in names}
        self.counters = {name: tf.keras.metrics.Sum(name) for name in ("replaced", "nonfinite_steps")}
        self.all = [*self.means.values(), *self.counters.values()]


def _clock():
    """A function that gives the time inside a graph. TensorFlow's own refuses to run under op determinism."""
    try:
        with tf.init_scope():
            tf.timestamp()
        return tf.timestamp
    except tf.errors.FailedPreconditionError:
        return lambda: tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalised(images):
    """Images in [0, 1] less ImageNet's mean, by its deviation."""
    return (images - tf.constant(IMAGENET_MEAN, images.dtype)) / tf.constant(IMAGENET_STD, images.dtype)


def cross_entropy_chance(classes):
    """Loss and accuracy of a uniform guess among `classes`."""
    return {"loss": math.log(classes), "accuracy": 1 / classes}

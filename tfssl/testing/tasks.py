"""The check of a pretext task."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl import data, export
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.task import Batch, Pretext
from tfssl.step.phases import run_due
from tfssl.testing.subject import (
    ROWS,
    State,
    Subject,
    all_processors,
    computing_in,
    leaves_of,
    small_network,
    state_of,
)
from tfssl.training.checkpoints import Checkpoints

PARTS = ("resume", "replicas", "accumulation", "xla", "precision", "export")
SEED = 2  # of the batches


def check_task(
    task: type[Pretext] | Callable[..., Pretext],
    source: data.Source | None = None,
    replicas: tf.distribute.Strategy | None = None,
    skip: Collection[str] = (),
    backbone: Callable[..., tf.keras.Model] = small_network,
    **settings: Any,
) -> None:
    """Hold a task to the contract of `Pretext`, by a few steps of a tiny network: about ten
    seconds.

    Always: batches have static shapes and are the same each time; `augment` is, too; `call` uses
    every trainable variable and `objective` none; losses and metrics are values of each image,
    named as in `chance`; blank rows of an evaluation count for nothing; all variables exist before
    the first step, which changes all that are trainable; the phases of step 0, which are run before
    it, change nothing when they are run again; `encode` uses the published networks alone. In
    double precision, to 1e-9 of each variable's largest value, and to be left out by name in
    `skip`:

      resume        a run that was stopped and goes on in another process is the uninterrupted one;
                    on `replicas`, too
      replicas      several replicas that share the batch draw, measure and learn what one does
      accumulation  a batch in parts is the whole batch; moving statistics, which see the parts one
                    by one, are not compared
      xla           a step that XLA compiled is the step
      precision     a step in mixed bfloat16 is finite, changes all weights and leaves them in
                    float32
      export        the module computes what `encode` does and holds the published networks'
                    variables, and no others

    Args:
      task: the class, or a function (backbone, **settings) -> task.
      source: of at least 16 images; None: 48 letters of ten classes.
      replicas: a strategy of several replicas on this machine; None: all logical CPUs. TensorFlow
        has one unless it is told otherwise before it starts:
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2).
      skip: parts to be left out.
      backbone: function (sync, groups) -> a backbone whose batch normalizations are synchronized
        over replicas, or act in groups of the batch.
      **settings: of the task, small ones. A class gets image_size=16, and the source's num_classes
        and num_images, unless they are given.

    Raises:
      AssertionError: a clause of the contract is broken.
      UserError: there is no such part, or there are too few devices.
    """
    if unknown := set(skip) - set(PARTS):
        raise UserError(
            f"skip={', '.join(sorted(unknown))}: the parts of check_task are {', '.join(PARTS)}"
        )
    if replicas is None and "replicas" not in skip:
        replicas = all_processors()
    source = data.open_source("glyphs:48") if source is None else source
    with computing_in("float64"):
        subject = Subject(task, source, backbone, settings)
        model = subject.build(sync=True)
        batches = _batches(subject, model)
        state = [*model.variables, *model.optimizer.variables]
        phased = [(v.name, v.numpy()) for v in state]
        run_due(model.phases(), subject.context(model), 0)
        clause = "phases() are idempotent: called again at the same step, they change nothing"
        subject.expect_equal([(v.name, v.numpy()) for v in state], phased, 0, clause)
        start = [(v, v.numpy()) for v in model.variables]
        _check_one_step(subject, model, batches[0])
        subject.expect(
            len(model.variables) == len(start),
            "all variables exist before the first step: prepare() makes them",
        )
        _check_evaluation(subject, model)
        _check_published(subject, model)
        for variable, value in start:
            variable.assign(value)
        with tempfile.TemporaryDirectory() as folder:
            _check_training(subject, model, batches, folder, replicas, skip)
            if "export" not in skip:
                _check_export(subject, model, folder)
            if "accumulation" not in skip:
                _check_accumulation(subject, batches[0], skip)
            elif "xla" not in skip:
                _check_compiled(subject, model, batches[0], folder)
    if "precision" not in skip:
        with computing_in("mixed_bfloat16"):
            _check_precision(subject, batches[0])


def _batches(subject: Subject, model: Pretext) -> list[Batch]:
    """Two training batches."""
    dataset = model.dataset(subject.source, ROWS, seed=SEED, steps=2)
    shapes = [spec.shape for spec in tf.nest.flatten(dataset.element_spec)]
    subject.expect(
        all(shape.is_fully_defined() for shape in shapes),
        f"example(): every tensor has a static shape; these are {', '.join(map(str, shapes))}",
    )
    batches, again = list(dataset), next(iter(dataset))
    subject.expect_equal(
        leaves_of(again), leaves_of(batches[0]), 0, "example() is a function of image and seed"
    )
    return batches


def _augmented(model: Pretext, batch: Batch) -> Batch:
    return model.augment(model.to_float(batch), Draws(batch))


def _check_one_step(subject: Subject, model: Pretext, batch: Batch) -> None:
    """What is called in a step, one by one."""
    augmented, again = _augmented(model, batch), _augmented(model, batch)
    subject.expect_equal(
        leaves_of(again), leaves_of(augmented), 0, "augment() draws from `draws` alone"
    )
    subject.expect(
        "weight" in augmented and "replaced" in augmented,
        "augment() keeps the entries that it does not change",
    )

    trainable = model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = model(augmented, training=True)
        values = [x for x in tf.nest.flatten(outputs) if x.dtype.is_floating]
        total = tf.add_n([tf.reduce_sum(tf.cast(x, tf.float64)) for x in values])
    gradients = tape.gradient(total, trainable)
    unused = [v.name for v, gradient in zip(trainable, gradients) if gradient is None]
    subject.expect(
        not unused,
        f"call() uses every trainable variable; its outputs do not depend on {', '.join(unused)}",
    )
    first = all(x.shape.rank and x.shape[0] % ROWS == 0 for x in tf.nest.flatten(outputs))
    subject.expect(first, "call() returns tensors whose first axis is that of the images")

    with tf.GradientTape() as tape:
        losses, measured = model.objective(augmented, outputs)
        players = losses if isinstance(losses, dict) else {"": losses}
        total = tf.add_n([tf.reduce_sum(loss) for loss in players.values()])
    gradients = tape.gradient(total, trainable)
    used = [v.name for v, gradient in zip(trainable, gradients) if gradient is not None]
    subject.expect(
        not used,
        f"objective() sends no gradient to a variable, but to {', '.join(used)}: that is for "
        "call()",
    )
    named = {
        f"the loss of player {name!r}" if name else "the loss": loss
        for name, loss in players.items()
    }
    for name, value in {
        **named,
        **{f"metric {name!r}": value for name, value in measured.items()},
    }.items():
        for part in value if isinstance(value, tuple) else (value,):
            shape = tf.convert_to_tensor(part).shape
            each = shape.rank == 1 and shape[0] % ROWS == 0 and shape[0] > 0
            subject.expect(
                each,
                f"objective(): {name} has a value for each image, [n]; it is {shape} of {ROWS} "
                "images",
            )
    for name, loss in named.items():
        subject.expect(np.isfinite(loss).all(), f"objective(): {name} is finite at the start")
    reported = {"loss", *measured, *(f"{player}_loss" for player in players if player)}
    levels = model.chance()
    subject.expect(
        set(levels) == reported,
        f"chance() has the level of each metric; it names {', '.join(sorted(levels))}, and the "
        "metrics are "
        f"{', '.join(sorted(reported))}",
    )
    subject.expect(
        all(isinstance(float(level), float) for level in levels.values()), "chance() gives numbers"
    )
    looked_at = model.preview(augmented)
    fit_to_see = (
        looked_at.shape.rank == 4 and looked_at.shape[-1] == 3 and looked_at.dtype.is_floating
    )
    in_range = fit_to_see and np.min(looked_at) >= -1e-6 and np.max(looked_at) <= 1 + 1e-6
    subject.expect(in_range, "preview() is images [n, H, W, 3] in [0, 1]")


def _check_evaluation(subject: Subject, model: Pretext) -> None:
    dataset = model.evaluation_dataset(subject.source, ROWS).take(1)
    (batch,), (again,) = list(dataset), list(dataset)
    subject.expect_equal(
        leaves_of(again), leaves_of(batch), 0, "example() with seed None is deterministic"
    )
    kept = tf.range(ROWS) < ROWS - 2
    weight = tf.where(kept, batch["weight"], 0.0)
    blank = {
        k: tf.nest.map_structure(lambda x: tf.where(_as_rows(kept, x), x, tf.zeros_like(x)), v)
        for k, v in batch.items()
    }
    found = []
    for rows in (batch, blank):
        model.reset_metrics()
        model.test_step({**rows, "weight": weight})
        found.append([(name, value.numpy()) for name, value in model.results().items()])
    model.reset_metrics()
    names = [
        name
        for (name, one), (_, other) in zip(*found)
        if not np.allclose(one, other, 1e-9, equal_nan=True)
    ]
    subject.expect(
        not names,
        f"objective(): rows of weight 0 count for nothing; they change {', '.join(names)}",
    )


def _as_rows(kept: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(kept, [-1] + [1] * (x.shape.rank - 1))


def _check_published(subject: Subject, model: Pretext) -> None:
    networks: Any = model.published
    subject.expect(isinstance(networks, tuple) and networks, "published is a tuple of networks")
    for network in networks:
        subject.expect(
            network.trainable_variables,
            f"published: {network.name} can be fine-tuned: it has trainable variables",
        )
    size, _ = model.evaluation_size
    images = tf.TensorSpec([2, size, size, 3], tf.float32)
    endpoints: list[tuple[str, tf.Tensor]] = []

    def encode(images: tf.Tensor) -> None:
        endpoints.extend(model.encode(images).items())

    graph = tf.function(encode, autograph=model.autograph).get_concrete_function(images).graph
    name, last = endpoints[-1]
    vector = name == "pre_logits" and last.shape.rank == 2 and last.shape[0] == 2
    subject.expect(
        vector, f"encode() ends in pre_logits [N, D]; it ends in {name} {last.shape} of 2 images"
    )
    theirs = {id(v) for network in networks for v in network.variables}
    others = [v.name for v in graph.variables if id(v) not in theirs]
    subject.expect(
        not others,
        f"encode() uses the variables of the published networks alone, and not {', '.join(others)}",
    )


def _check_training(
    subject: Subject,
    model: Pretext,
    batches: list[Batch],
    folder: str,
    replicas: tf.distribute.Strategy | None,
    skip: Collection[str],
) -> None:
    """Two steps: uninterrupted, resumed after the first, and the same on replicas, which begin from
    a checkpoint of the start. The checkpoints stay in `folder`, by `_kept`."""
    begun, count = [v.numpy() for v in model.trainable_variables], len(state_of(model))
    augmented = _augmented(model, batches[0])
    states = []
    _kept(model, folder, 0).save(0)
    for step, batch in enumerate(batches, 1):
        model.reset_metrics()
        model.train_step(batch)
        states.append(state_of(model))
        _kept(model, folder, step).save(step)
    subject.expect(
        len(states[-1]) == count, "all variables exist before the first step: prepare() makes them"
    )
    still = [v.name for v, old in zip(model.trainable_variables, begun) if np.array_equal(v, old)]
    subject.expect(
        not still,
        f"the loss depends on every trainable variable; two steps do not change {', '.join(still)}",
    )
    resumed = (
        "a resumed run is the uninterrupted one: what a step needs of earlier ones is in variables"
    )
    if replicas is None or "replicas" in skip:
        if "resume" not in skip:
            other = subject.build(seed=7, sync=True)
            _kept(other, folder, 1).restore()
            other.train_step(batches[1])
            subject.expect_equal(state_of(other), states[1], 1e-12, resumed)
        return
    # Made of other weights, which the checkpoint replaces: what it does not hold would differ.
    together = subject.build(seed=7, strategy=replicas, sync=True)
    _kept(together, folder, 0).restore()
    step_on, count = _on_replicas(together, replicas), replicas.num_replicas_in_sync
    for number, (batch, state) in enumerate(zip(batches, states)):
        together.reset_metrics()
        drawn = step_on(batch)
        if number == 0:
            clause = (
                f"augment() gives the same rows however many replicas share the batch, here {count}"
            )
            subject.expect_equal(leaves_of(drawn), leaves_of(augmented), 1e-9, clause)
        subject.expect_equal(
            state_of(together),
            state,
            1e-9,
            f"{count} replicas learn what one does: sums and rows are of all replicas",
        )
    if "resume" not in skip:
        _kept(together, folder, 1).restore()
        together.reset_metrics()
        step_on(batches[1])
        subject.expect_equal(
            state_of(together), states[1], 1e-9, f"{resumed}; here one of one replica, on {count}"
        )


def _kept(model: Pretext, folder: str, step: int) -> Checkpoints:
    """The checkpoint after a step of `_check_training`."""
    return Checkpoints(model, f"{folder}/{step}")


def _on_replicas(model: Any, strategy: tf.distribute.Strategy) -> Callable[[Batch], Batch]:
    """A function: one training step on a global batch -> the augmented batch, put together from the
    replicas'."""
    count, augment = strategy.num_replicas_in_sync, model.augment
    own, structures = threading.local(), []  # replicas are traced in threads of their own

    def remembered(batch: Batch, draws: Draws) -> Batch:
        own.batch = augment(batch, draws)
        return own.batch

    def step(batch: Batch) -> list[tf.Tensor]:
        model.train_step(batch)
        structures.append(tf.nest.map_structure(lambda x: None, own.batch))
        return tf.nest.flatten(own.batch)

    model.augment = remembered
    run = tf.function(lambda batch: strategy.run(step, (batch,)), autograph=model.autograph)

    def on_replicas(batch: Batch) -> Batch:
        share = ROWS // count

        def part(context: Any) -> Batch:
            first = context.replica_id_in_sync_group * share
            return tf.nest.map_structure(lambda x: x[first : first + share], batch)

        found = run(strategy.experimental_distribute_values_from_function(part))
        rows = [
            np.concatenate([np.asarray(x) for x in strategy.experimental_local_results(leaf)])
            for leaf in found
        ]
        return tf.nest.pack_sequence_as(structures[0], rows)

    return on_replicas


XLA = "a step that XLA compiled is the step"


def _check_compiled(subject: Subject, model: Any, batch: Batch, folder: str) -> None:
    """The first step of `_check_training` again, under XLA."""
    _kept(model, folder, 1).restore()
    expected = state_of(model)[: len(model.variables) + len(model.optimizer.variables)]
    _kept(model, folder, 0).restore()
    try:
        _compiled(model, batch, _augmented(model, batch))
        found = state_of(model)[: len(expected)]
        subject.expect_equal(found, expected, 1e-8, XLA)
    except Exception as error:
        raise _broken(subject, XLA, error) from error


def _check_accumulation(subject: Subject, batch: Batch, skip: Collection[str]) -> None:
    """A step in parts, under XLA unless that is skipped; which of the two is to blame is found out
    if it is not the step."""
    parts = 2
    model = subject.build(groups=parts)
    augmented = _augmented(model, batch)
    model.train_step(batch)
    expected = state_of(model, moving=False)

    def of_parts(jit: bool) -> State:
        model = subject.build(accumulate_steps=parts)
        _compiled(model, batch, augmented, jit)
        return state_of(model, moving=False)

    accumulation = "accumulation: a batch in parts is the whole batch"
    try:
        subject.expect_equal(of_parts(jit="xla" not in skip), expected, 1e-8, accumulation)
    except Exception as error:
        if "xla" in skip:
            raise _broken(subject, accumulation, error) from error
        try:
            subject.expect_equal(of_parts(jit=False), expected, 1e-8, accumulation)
        except Exception as other:
            raise _broken(subject, accumulation, other) from other
        raise _broken(subject, XLA, error) from error


def _compiled(model: Any, batch: Batch, augmented: Batch, jit: bool = True) -> None:
    """A training step of a batch that is augmented already, in one graph."""
    augment = model.augment

    def step(batch: Batch, augmented: Batch) -> Batch:
        drawn = augment(
            Pretext.to_float(model, batch), Draws(batch)
        )  # compiled as well, though XLA draws other numbers
        model.to_float, model.augment = (lambda batch: batch), (lambda batch, draws: augmented)
        model.train_step(batch)
        return drawn

    tf.function(step, jit_compile=jit, autograph=model.autograph)(batch, augmented)


def _broken(subject: Subject, clause: str, error: Exception) -> AssertionError:
    said = str(error).partition("\n")[0]
    if isinstance(error, AssertionError):
        said = said.rpartition("; ")[2]
    return AssertionError(f"{subject.name}: {clause}; {said}")


def _check_precision(subject: Subject, batch: Batch) -> None:
    model = subject.build()
    batch = tf.nest.map_structure(
        lambda x: tf.cast(x, tf.float32) if x.dtype == tf.float64 else x, batch
    )
    begun = [v.numpy() for v in model.trainable_variables]
    model.train_step(batch)
    subject.expect(np.isfinite(model.results()["loss"]), "in mixed bfloat16 the loss is finite")
    low = [v.name for v in model.trainable_variables if v.dtype != tf.float32]
    subject.expect(not low, f"in mixed bfloat16 variables are float32, and not {', '.join(low)}")
    moved = zip(model.trainable_variables, begun)
    still = [v.name for v, old in moved if not np.isfinite(v).all() or np.array_equal(v, old)]
    subject.expect(
        not still,
        f"in mixed bfloat16 a step changes all weights; {', '.join(still)} stays or is not finite",
    )


def _check_export(subject: Subject, model: Pretext, folder: str) -> None:
    module = tf.saved_model.load(export.save(model, f"{folder}/module"))
    size, _ = model.evaluation_size
    images = np.random.default_rng(0).random([3, size, size, 3], np.float32)
    ours, theirs = (
        [(name, np.asarray(x, np.float32)) for name, x in sorted(endpoints.items())]
        for endpoints in (module.endpoints(images), model.encode(tf.constant(images)))
    )
    subject.expect(
        [n for n, _ in ours] == [n for n, _ in theirs], "the module has the endpoints of encode()"
    )
    subject.expect_equal(ours, theirs, 1e-5, "the module computes what encode() does")
    variables = [(v.name, v.numpy()) for network in model.published for v in network.variables]
    held = [(v.name, v.numpy()) for v in module.variables]
    subject.expect_equal(
        held, variables, 0, "the module holds the published networks' variables, and no others"
    )

"""Phases on a small clustering task: what they see and write, on replicas, in parts, with XLA, and
after a kill."""

import functools
import re
import shutil
import signal

import numpy as np
import pytest
import runs
import tensorflow as tf
from clustering import Balanced, Clustering, register

import tfssl
from tfssl import backbones, optim
from tfssl.runtime import strategy as strategies
from tfssl.step import phases
from tfssl.training.checkpoints import Checkpoints

BATCH = 8


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def build(strategy, images=48, task=Clustering, **compiled):
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        network = tf.keras.Sequential(
            [tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv")]
        )
        model = task(
            backbones.build(network),
            num_images=images,
            image_size=16,
            color=False,
            weight_decay=0.01,
        )
        model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), **compiled)
        model.epoch_steps = 6
        model.prepare()
    return model


def context_of(model, strategy, source, batch=BATCH):
    evaluation = lambda: strategies.evaluation_data(strategy, model, source, batch)  # noqa: E731
    return phases.Context(strategy, evaluation, source.places, 3, model.to_float)


def fit(model, strategy, source, start=0, end=5):
    """As `train` does it: phases, and fits between them; (history of the last fit, variables)."""
    context, step = context_of(model, strategy, source), start
    while step < end:
        phases.run_due(model.phases(), context, step)
        until = phases.next_due(model.phases(), step, end)
        data = strategies.training_data(strategy, model, source, BATCH, 2, step, until - step)
        history = model.fit(data, steps_per_epoch=until - step, verbose=0).history
        step = until
    history.pop("input_seconds")
    return history, state_of(model)


def state_of(model):
    return {
        re.sub(
            r"(clustering|balanced|sequential)(_\d+)?/", "", v.name
        ): v.numpy()  # the number is of models in this process
        for v in [*model.variables, *model.optimizer.variables]
    }


def trained(source, strategy=None, **compiled):
    strategy = strategy or tf.distribute.get_strategy()
    return fit(build(strategy, **compiled), strategy, source)


@functools.cache
def trained_alone(source):
    """The reference of several tests, in float64."""
    return trained(source)


def assert_close(one, other, tolerance):
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=tolerance, err_msg=name)
    assert len(one[1]) == len(other[1])
    for (name, x), y in zip(one[1].items(), other[1].values()):
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * np.abs(x).max() + 1e-14, err_msg=name
        )


def test_when():
    steps = [phases.Phase(4, dict), phases.Phase(6, dict)]
    assert [phases.next_due(steps, step, 10) for step in (0, 3, 4, 5, 6, 8)] == [4, 4, 6, 6, 8, 10]
    assert phases.next_due([], 3, 10) == 10
    ran = []
    steps = [
        phases.Phase(every, lambda context, n=every: ran.append((context.step, n)))
        for every in (2, 3)
    ]
    for step in range(7):
        phases.run_due(steps, phases.Context(None, tuple, 0), step)
    assert ran == [(0, 2), (0, 3), (2, 2), (3, 3), (4, 2), (6, 2), (6, 3)]


def test_all_images_are_seen_in_split_order(photos, tmp_path, replicas):
    """Also with a blank part of the last batch, and without an image that cannot be read."""
    files = sorted(photos.rglob("*.jpg"))[:11]
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / files[4].name).write_bytes(b"nothing")
    source = tfssl.open_source(f"folder:{tmp_path}")
    place = {source.name(i).rpartition("/")[2]: i for i in range(11)}
    damaged, whole = place[files[4].name], place[files[7].name]
    rows = {}
    for strategy in (tf.distribute.get_strategy(), replicas):
        model = build(strategy, 11)
        context = context_of(model, strategy, source, 4)
        for _ in range(2):  # traced once
            found, seen = context.embed(mean_color)
        rows[strategy.num_replicas_in_sync] = found
        assert (
            list(np.flatnonzero(~seen)) == [damaged]
            and found.shape == (11, 3)
            and (found[damaged] == 0).all()
        )
    np.testing.assert_allclose(*rows.values(), rtol=1e-5)
    one = model.example({"image": tf.constant(files[7].read_bytes())}, None)["image"]
    np.testing.assert_allclose(rows[1][whole], one.numpy().mean((0, 1)) / 255, rtol=1e-4)
    assert (
        len(context._traced) == 1
        and next(iter(context._traced.values())).experimental_get_tracing_count() == 1
    )


def mean_color(batch):
    return tf.reduce_mean(batch["image"], [1, 2])


def test_a_phase_is_idempotent_and_forgets_the_head(source):
    strategy = tf.distribute.get_strategy()
    model = build(strategy)
    fit(model, strategy, source, end=2)
    context = context_of(model, strategy, source)
    phases.run_due(model.phases(), context, 2)
    first = state_of(model)
    phases.run_due(model.phases(), context, 2)
    runs.assert_identical(first, state_of(model))
    slots = {name: x for name, x in first.items() if name.startswith("m/")}
    assert len(slots) == 4 and all(x.any() != ("head" in name) for name, x in slots.items())
    assert set(first["assigned:0"]) == {0, 1, 2}


def test_the_first_loss_after_a_phase_is_chances(source):
    """The new head knows nothing: log K, to 1%."""
    model = build(tf.distribute.get_strategy())
    history, _ = fit(model, tf.distribute.get_strategy(), source, end=1)
    assert history["loss"][0] == pytest.approx(np.log(3), rel=0.01)


def test_replicas_train_like_one(source, replicas, float64):
    assert_close(trained_alone(source), trained(source, replicas), 1e-9)


def test_parts_are_the_whole_batch(source, float64):
    assert_close(trained_alone(source), trained(source, accumulate_steps=2), 1e-9)


def test_it_compiles(source, float64):
    assert_close(trained_alone(source), trained(source, jit_compile=True), 1e-9)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """(Folder with the checkpoint at step 2, all variables at step 4) of a run that nobody killed,
    whose order follows its clusters."""
    folder, strategy = tmp_path_factory.mktemp("whole"), tf.distribute.get_strategy()
    model = build(strategy, task=Balanced)
    fit(model, strategy, source, end=2)
    Checkpoints(model, str(folder)).save(2)
    return folder, fit(model, strategy, source, 2, 4)[1]


@pytest.mark.parametrize("moment", ["before", "in", "after"])
def test_a_killed_run_goes_on_bit_by_bit(source, whole, moment, tmp_path, monkeypatch):
    """The checkpoint at step 2 is from before the phase at step 2; one at step 3 holds its
    labels."""
    strategy, folder = tf.distribute.get_strategy(), shutil.copytree(whole[0], tmp_path / "killed")

    def restored():
        model = build(strategy, task=Balanced)
        saver = Checkpoints(model, str(folder))
        return model, saver, saver.restore()

    model, saver, step = restored()
    if moment == "in":  # half of what the phase writes is written
        with monkeypatch.context() as patch:
            patch.setattr(optim, "forget", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                fit(model, strategy, source, step)
        model, _, step = restored()
    if moment == "after":
        fit(model, strategy, source, step, 3)
        saver.save(3)
        model, _, step = restored()
    assert step == (3 if moment == "after" else 2)
    runs.assert_identical(whole[1], fit(model, strategy, source, step, 4)[1])


def test_an_order_by_pseudo_labels_shows_all_clusters_alike(source, replicas):
    """30, 12 and 6 images: a third of the examples each, and within a cluster its images alike, to
    four standard errors."""
    model = build(tf.distribute.get_strategy(), task=Balanced)
    assert model.order(source) is source  # nothing is clustered yet
    labels = np.repeat([0, 1, 2], [30, 12, 6])[np.random.default_rng(0).permutation(48)]
    model.assigned.assign(labels)
    count = 100 * 48
    records = next(iter(model.order(source).records(seed=1).take(count).batch(count)))
    drawn = np.bincount(records["index"], minlength=48)
    shares = 1 / 3 / np.bincount(labels)[labels]
    for expected, found in ((shares, drawn), (np.full(3, 1 / 3), np.bincount(labels, drawn))):
        assert np.all(
            np.abs(found - count * expected) < 4 * np.sqrt(count * expected * (1 - expected))
        )

    for strategy in (tf.distribute.get_strategy(), replicas):
        model = build(strategy, task=Balanced)
        model.assigned.assign(labels)
        batch = next(iter(strategies.training_data(strategy, model, source, BATCH, 1, 3, 1)))
        rows = np.concatenate(
            [x.numpy() for x in strategy.experimental_local_results(batch["index"])]
        )
        np.testing.assert_array_equal(rows, records["index"][3 * BATCH : 4 * BATCH])


@pytest.mark.slow
def test_a_killed_command_goes_on_bit_by_bit(photos, tmp_path):
    """`tfssl-train`, killed in the phase at step 3 and after that at step 6."""
    flags = [
        *runs.TINY,
        "--task=clustering",
        f"--dataset=folder:{photos}",
        "--train_steps=8",
        "--every=3",
        "--log_steps=1",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = runs.command("train", *flags, f"--workdir={whole}", first=register)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("clustering at")] == [
        f"clustering at step {step}" for step in (0, 3, 6)
    ]
    assert "between steps, at step 6  objective" in done.stdout
    for awaited in ("clustering at step 3", "between steps, at step 6"):
        status, _ = runs.kill_when([*flags, f"--workdir={killed}"], awaited, first=register)
        assert status == -signal.SIGKILL
    done = runs.command("train", *flags, f"--workdir={killed}", first=register)
    assert "resuming at step 6" in done.stdout
    runs.assert_identical(*(runs.weights(folder, 8) for folder in (whole, killed)))

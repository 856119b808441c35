"""Local Aggregation: its loss against instance discrimination and a naive loop."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import task

SETTINGS = {
    "num_images": 24, "projection_size": 4, "clusters": 5, "clusterings": 3,
    "background_neighbors": 24, "form": "cross_entropy", "negatives": 0,
}  # fmt: skip


def naive(model, z, index, neighbors):
    """Image by image, with the image's own entry among both kinds of neighbors."""
    bank, labels, losses = model.bank.entries.numpy(), model.clusterings.labels.numpy(), []
    for v, i in zip(z / np.linalg.norm(z, axis=1, keepdims=True), index):
        p = np.exp(bank @ v / model.temperature)
        others = [j for j in np.argsort(-p) if j != i][: neighbors - 1]
        close = [i] + [j for j in others if (labels[:, i] == labels[:, j])[labels[:, i] >= 0].any()]
        losses.append(-np.log(p[close].sum() / p[[i, *others]].sum()))
    return losses


def test_the_loss_is_the_papers(float64):
    model = task("local_aggregation", **SETTINGS)
    rng = np.random.default_rng(0)
    z, index = tf.constant(rng.normal(size=[6, 4])), np.arange(6, dtype=np.int64) * 3
    batch = {"index": tf.constant(index)}
    loss = lambda: model.aggregate(batch, z).loss.numpy()  # noqa: E731
    instance = model.discriminate(batch, z)
    # All are neighbors, and each is its own cluster: before the first clustering, and by labels.
    for labels in (-np.ones([3, 24], int), np.tile(np.arange(24), [3, 1])):
        model.clusterings.labels.assign(labels)
        np.testing.assert_allclose(loss(), instance.loss, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(model.aggregate(batch, z).accuracy, instance.accuracy)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        ours, theirs = model.aggregate(batch, z).loss, model.discriminate(batch, z).loss
    np.testing.assert_allclose(tape.gradient(ours, z), tape.gradient(theirs, z), atol=1e-12)

    labels = rng.integers(0, 5, [3, 24])
    last = np.full(6, np.inf)
    for count in (1, 2, 3):  # more clusterings only add close neighbors
        model.clusterings.labels.assign(np.where(np.arange(3)[:, None] < count, labels, -1))
        for neighbors in (24, 9):
            model.background_neighbors = neighbors
            np.testing.assert_allclose(
                loss(), naive(model, z.numpy(), index, neighbors), rtol=1e-10
            )
        model.background_neighbors = 24
        assert (loss() <= last + 1e-12).all()
        last = loss()
    model.clusterings.labels.assign((labels + 2) % 5)  # other names
    np.testing.assert_allclose(loss(), last, atol=1e-12)
    model.clusterings.labels.assign(np.zeros([3, 24], int))
    np.testing.assert_allclose(loss(), 0, atol=1e-12)


@pytest.mark.parametrize("epoch_steps", [6, 6.25, 5.75])
def test_instance_discrimination_comes_first(source, epoch_steps):
    """And the first clustering with the first step of aggregation, of epochs that are no whole
    number of steps too."""
    model = task("local_aggregation", **{**SETTINGS, "num_images": 48}, instance_epochs=2.0)
    model.epoch_steps = epoch_steps
    model.clusterings.labels.assign(np.zeros([3, 48], int))
    batch = model.to_float(next(iter(model.dataset(source, 6))))
    outputs = model(batch)
    for step, loss in ((11, model.discriminate(batch, outputs["z"][:, 0]).loss), (12, 24 * [0])):
        model.optimizer.iterations.assign(step)
        np.testing.assert_allclose(model.contrast(batch, outputs)[0], loss[:6], atol=1e-5)
    ran = []
    model.clusterings.compute = lambda *_: ran.append(1) or (None, {})
    for step in (6, 12):
        model.cluster(type("Context", (), {"step": step}))
    assert ran == [1] and model.phases()[0].every == 6

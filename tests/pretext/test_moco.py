"""MoCo: its queue, its key network, and the order in which keys are computed."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import SMALL, normalized, task, tiny, train
from sequences import Sequences

from tfssl import pretext
from tfssl.backbones.norm import BatchNorm, Norm
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.losses import replicas as replicas_module
from tfssl.pretext.parts.views import Views
from tfssl.runtime import strategy as strategies


def test_moco_fills_its_queue_with_keys_and_follows(source):
    model = task("moco", queue_size=12, key_momentum=0.5, projection_size=4)
    old = model.queue.rows.numpy()
    train(model, source, 1)
    rows = model.queue.rows.numpy()
    np.testing.assert_array_equal(rows[8:], old[:4])
    np.testing.assert_allclose(np.linalg.norm(rows[:8], axis=1), 1, rtol=1e-5)
    pairs = zip(model.keys.twins[1].trainable_variables, model.projection.trainable_variables)
    assert all(np.any(k.numpy() != q.numpy()) for k, q in pairs)
    assert not {id(v) for v in model.keys.non_trainable_variables} & {
        id(v) for v in model.trainable_variables
    }


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_do_not_depend_on_the_order_they_are_computed_in(symmetric, source):
    """Where nothing is normalized over the batch, a query's key is that of its image's other view,
    as the policy makes it."""
    model = task(
        "moco", queue_size=16, projection_size=4, symmetric=symmetric, augmentation="moco_v2"
    )
    batch = model.to_float(next(iter(model.dataset(source, 8))))
    views = Views.augment(model, batch, Draws(batch))["image"][0]
    shuffled = model.augment(batch, Draws(batch))
    assert sorted(shuffled["place"].numpy()) == list(range(8)) != list(shuffled["place"].numpy())
    outputs = model(shuffled, training=True)
    for p, (query, key) in enumerate([(0, 1), (1, 0)][: 1 + symmetric]):
        np.testing.assert_allclose(shuffled["image"][0][:, p], views[:, query], atol=1e-6)
        want = tf.math.l2_normalize(model.keys(model.normalize(views[:, key])), 1)
        np.testing.assert_allclose(model.own_keys(shuffled, outputs)[:, p], want, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_querys_key_is_normalized_with_other_images(count, monkeypatch):
    """Means of a query's group and of its key's group, of features whose two views correlate by
    0.8: the correlation is 0.8 times the share of images that the groups have in common, 0.12 in
    the published code (256 images in 8 groups, in a random order of all)."""
    rows, groups = 256, []
    images = (
        np.zeros([rows, 2, 2, 2, 3], np.uint8)
        + np.arange(rows, dtype=np.uint8)[:, None, None, None, None]
    )
    monkeypatch.setattr(replicas_module, "count", lambda: count)
    monkeypatch.setattr(
        replicas_module, "gather_bytes", lambda x: tf.constant(images[:, 1:]), raising=False
    )

    def record(layer, x, training=None):
        if training:
            groups.append(np.split(np.round(255 * x[:, 0, 0, 0].numpy()).astype(int), layer.groups))
        return x

    monkeypatch.setattr(BatchNorm, "call", record)
    settings = {"image_size": 2, "augmentation": "crop", "normalization": "none", "queue_size": 256}
    model = pretext.build("moco", normalized(), **settings)
    model.batch_size = rows
    model.prepare()
    shares = []
    for step in range(3):
        of_query, of_key, per_replica = {}, {}, rows // count
        for first in range(0, rows, per_replica):
            numbers = tf.constant(step * rows + first + np.arange(per_replica), tf.int64)
            batch = {
                "image": (tf.constant(images[first : first + per_replica]),),
                "number": numbers,
            }
            batch = model.to_float({**batch, "seed": tf.zeros_like(numbers)})
            groups.clear()
            model(model.augment(batch, Draws(batch, count)), training=True)
            for where, cut in zip((of_query, of_key), groups):
                where.update({row: set(group) for group in cut for row in group})
        assert sorted(of_query) == sorted(of_key) == list(range(rows))
        shares += [
            len(of_query[i] & of_key[i]) / np.sqrt(len(of_query[i]) * len(of_key[i]))
            for i in range(rows)
        ]
    assert 0.8 * np.mean(shares) < 0.15


def test_moco_splits_batch_normalisation_by_default():
    for parts, groups in ((1, 8), (4, 2), (16, 1)):
        model = pretext.build("moco", normalized(), **SMALL)
        model.compile(tf.keras.optimizers.SGD(), accumulate_steps=parts)
        model.prepare()
        for network in (model.backbone, model.keys.twins[0]):
            assert [
                layer.groups for layer in network.submodules if isinstance(layer, BatchNorm)
            ] == [groups]
    given = normalized()
    given.norm_policy = Norm(groups=2)
    model = pretext.build("moco", given, **SMALL)
    model.prepare()
    assert model.backbone.norm_policy == Norm(groups=2)


def test_keys_of_full_depth_keep_it_on_replicas(replicas):
    """Images that are floats, of which a fiftieth of the range is used: their keys are of the same
    views, to the last bit."""

    class Dark(Sequences):
        def fetch(self, record):
            found = super().fetch(record)
            return {**found, "image": tf.cast(found["image"], tf.float32) / 255 / 50}

    with replicas.scope():
        model = task("moco", augmentation="crop", augment_on="host", queue_size=16)

    def keys(batch):
        batch = model.to_float(batch)
        return model.augment(batch, Draws(batch, replicas.num_replicas_in_sync))["keys"]

    data = iter(strategies.training_data(replicas, model, Dark([12, 12]), 8, 0, 0, 1))
    batch = next(data)
    found = tf.function(lambda batch: replicas.run(keys, (batch,)))(batch)
    found, views = (
        np.concatenate([x.numpy()[:, -1] for x in replicas.experimental_local_results(of)])
        for of in (found, batch["image"][0])
    )
    assert len(np.unique(views)) > 255 and views.max() < 0.03
    flat = {x.tobytes() for x in views}
    assert len(flat) == 8 and {x.tobytes() for x in found} == flat


@pytest.mark.parametrize("name", ["moco", "infomin"])
def test_mocos_synchronized_statistics_are_warned_of(name, caplog):
    settings = {"image_size": 16, "queue_size": 32, "jigsaw_size": 24, "jigsaw_patch_size": 7}
    settings = {k: v for k, v in settings.items() if name == "infomin" or "jigsaw" not in k}
    for sync in (False, True):
        backbone = normalized()
        backbone.norm_policy = Norm(sync=sync)
        model = pretext.build(name, backbone, **settings)
        model.compile(tf.keras.optimizers.SGD())
        warned = [
            r.getMessage()
            for r in caplog.records
            if f"--task={name} with --sync_batch_norm" in r.getMessage()
        ]
        assert len(warned) == sync and model.backbone.norm_policy.groups == 1


def test_batches_that_moco_cannot_use_are_refused():
    for batch_size, message in (
        (12, "the 12 images .* 8 equal groups"),
        (64, "queue_size=32 does not hold the 64 embeddings"),
    ):
        model = pretext.build("moco", tiny(), queue_size=32, **SMALL)
        model.batch_size = batch_size
        with pytest.raises(UserError, match=message):
            model.prepare()

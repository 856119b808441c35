"""The joint-embedding methods: heads as published, state that moves as it should, views, the probe, and warnings."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.data import augmentation
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.losses import replicas as replicas_module
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Bank, Queue
from tfssl.pretext.parts.target import MomentumNetwork, cosine_momentum
from tfssl.pretext.parts.views import Views
from tfssl.training.checkpoints import Checkpoints

SMALL = {"image_size": 16, "augmentation": "crop"}


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def tiny(channels=6):
    return backbones.build(
        tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(channels, 3, 2, activation="tanh", name="conv"),
                tf.keras.layers.GlobalAveragePooling2D(name="pool"),
            ]
        )
    )


def normalized():
    """A batch normalization and a mean."""
    network = tf.keras.Sequential([BatchNorm(name="norm"), tf.keras.layers.GlobalAveragePooling2D(name="pool")])
    return backbones.build(network)


def task(name, **settings):
    model = pretext.build(name, tiny(), **{**SMALL, **settings})
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.prepare()
    return model


def train(model, source, steps, batch_size=8):
    return model.fit(model.dataset(source, batch_size, steps=steps), steps_per_epoch=steps, verbose=0).history


def head_parameters(name, width=2048, **settings):
    """Parameters of the heads on features of a ResNet-50's width, counted without running the network."""
    features = tf.keras.Sequential(
        [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(width, use_bias=False)]
    )
    model = pretext.build(name, features, image_size=8, augmentation="crop", **settings)
    model.prepare()
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables) - 3 * width


def dense(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs


@pytest.mark.parametrize(
    "name,settings,expected",
    [
        # By the layers that the papers and their code name; two parameters a unit for a full batch normalisation.
        ("simclr", {}, 2048**2 + 2 * 2048 + 2048 * 128 + 128),
        ("simclr", {"projection_layers": 3}, 2 * (2048**2 + 2 * 2048) + 2048 * 128 + 128),
        ("moco", {"projection_layers": 1, "queue_size": 8}, dense(2048, 128)),
        ("moco", {"queue_size": 8}, dense(2048, 2048) + dense(2048, 128)),
        (
            "byol",
            {},
            dense(2048, 4096) + 2 * 4096 + 4096 * 256 + dense(256, 4096) + 2 * 4096 + 4096 * 256,
        ),
        ("simsiam", {}, 3 * 2048**2 + 2 * 2 * 2048 + 2048 * 512 + 2 * 512 + dense(512, 2048)),
        ("swav", {}, dense(2048, 2048) + 2 * 2048 + dense(2048, 128) + 3000 * 128),
        ("instance_discrimination", {"num_images": 4}, dense(2048, 128)),
    ],
)
def test_heads_have_the_published_size(name, settings, expected):
    assert head_parameters(name, **settings) == expected


def test_mlp_is_the_naive_one(float64):
    head = MLP("head", [5, 3], bias=(True, False), norm={}, last_norm="scale")
    x = np.random.default_rng(0).normal(size=(7, 4))
    y = head(tf.constant(x), training=True).numpy()
    weights = {v.name.split("/", 1)[1]: v.numpy() for v in head.trainable_variables}
    assert sorted(weights) == [
        "bn1/beta:0",
        "bn1/gamma:0",
        "bn2/gamma:0",
        "dense1/bias:0",
        "dense1/kernel:0",
        "dense2/kernel:0",
    ]

    def normalised(h):
        return (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)

    hidden = np.maximum(normalised(x @ weights["dense1/kernel:0"] + weights["dense1/bias:0"]), 0)
    np.testing.assert_allclose(y, normalised(hidden @ weights["dense2/kernel:0"]), rtol=1e-9, atol=1e-12)


def test_momentum_network(float64):
    tf.keras.utils.set_random_seed(0)
    network, head = tiny(), MLP("head", [3])
    follower = MomentumNetwork(network, head)
    images = tf.random.stateless_uniform([2, 8, 8, 3], [0, 1], dtype=tf.float64)

    def online():
        return head(network(images)["pre_logits"])

    assert np.any(online().numpy() != follower(images).numpy())
    follower.copy()
    np.testing.assert_array_equal(online(), follower(images))
    before = [v.numpy() for v in head.trainable_variables]
    for v in head.trainable_variables:
        v.assign_add(tf.ones_like(v))
    follower.follow(0.9)
    for old, v in zip(before, follower.twins[1].trainable_variables):  # noqa: B905 (Python 3.9)
        np.testing.assert_allclose(v, 0.9 * old + 0.1 * (old + 1), rtol=1e-12)
    assert follower.trainable_variables == () and len(follower.non_trainable_variables) == 4


def test_momentum_rises_along_half_a_cosine():
    at = [float(cosine_momentum(0.99, step, 100)) for step in (0, 50, 100, 150)]
    np.testing.assert_allclose(at, [0.99, 0.995, 1, 1], atol=1e-7)
    assert float(cosine_momentum(0.99, 70, 0)) == pytest.approx(0.99)


def test_queue_keeps_the_newest_first():
    queue = Queue(6, 2, filled=False)
    for first in (0.0, 4.0, 8.0):
        queue.push(tf.constant([[first + i, 0.0] for i in range(4)]))
    np.testing.assert_array_equal(queue.rows[:, 0], [8, 9, 10, 11, 4, 5])
    assert int(queue.count) == 6
    with pytest.raises(UserError, match="a queue of 6 does not hold the 7 embeddings of one step"):
        queue.push(tf.zeros([7, 2]))
    np.testing.assert_allclose(np.linalg.norm(Queue(50, 8).rows, axis=1), 1, rtol=1e-6)


def test_bank_moves_entries_and_keeps_their_norm():
    bank = Bank(5, 3, momentum=0.5)
    before = bank.entries.numpy()
    rows = tf.math.l2_normalize(tf.constant([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), 1)
    bank.update(tf.constant([4, 1, 4], tf.int64), rows)  # an image that stands there twice: by its first row
    for i, row in ((4, rows[0]), (1, rows[1])):
        moved = 0.5 * before[i] + 0.5 * row.numpy()
        np.testing.assert_allclose(bank.entries[i], moved / np.linalg.norm(moved), rtol=1e-6)
    np.testing.assert_array_equal(bank.entries.numpy()[[0, 2, 3]], before[[0, 2, 3]])


def test_moco_fills_its_queue_with_keys_and_follows(source):
    model = task("moco", queue_size=12, key_momentum=0.5, projection_size=4)
    old = model.queue.rows.numpy()
    train(model, source, 1)
    rows = model.queue.rows.numpy()
    np.testing.assert_array_equal(rows[8:], old[:4])
    np.testing.assert_allclose(np.linalg.norm(rows[:8], axis=1), 1, rtol=1e-5)
    pairs = zip(model.keys.twins[1].trainable_variables, model.projection.trainable_variables)  # noqa: B905
    assert all(np.any(k.numpy() != q.numpy()) for k, q in pairs)
    assert not {id(v) for v in model.keys.non_trainable_variables} & {id(v) for v in model.trainable_variables}


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_do_not_depend_on_the_order_they_are_computed_in(symmetric, source):
    """Where nothing is normalized over the batch, a query's key is that of its image's other view, as the policy makes it."""
    model = task("moco", queue_size=16, projection_size=4, symmetric=symmetric, augmentation="moco_v2")
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
    """Means of a query's group and of its key's group, of features whose two views correlate by 0.8: the correlation is 0.8 times the share
    of images that the groups have in common, 0.12 in the published code (256 images in 8 groups, in a random order of all)."""
    rows, groups = 256, []
    images = np.zeros([rows, 2, 2, 2, 3], np.uint8) + np.arange(rows, dtype=np.uint8)[:, None, None, None, None]
    monkeypatch.setattr(replicas_module, "count", lambda: count)
    monkeypatch.setattr(replicas_module, "gather_bytes", lambda x: tf.constant(images[:, 1:]), raising=False)

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
            batch = {"image": (tf.constant(images[first : first + per_replica]),), "number": numbers}
            batch = model.to_float({**batch, "seed": tf.zeros_like(numbers)})
            groups.clear()
            model(model.augment(batch, Draws(batch, count)), training=True)
            for where, cut in zip((of_query, of_key), groups):
                where.update({row: set(group) for group in cut for row in group})
        assert sorted(of_query) == sorted(of_key) == list(range(rows))
        shares += [len(of_query[i] & of_key[i]) / np.sqrt(len(of_query[i]) * len(of_key[i])) for i in range(rows)]
    assert 0.8 * np.mean(shares) < 0.15


def test_simclr_with_a_memory(source):
    """Both views of each image enter the queue as the slower network sees them, and count as candidates from the next step on."""
    model = task("simclr", queue_size=32, key_momentum=0.5, projection_size=4)
    model.batch_size = 8
    assert model.chance()["accuracy"] == 1 / (15 + 32)
    start, kernel = model.queue.rows.numpy(), model.keys.twins[1].trainable_variables[0].numpy()
    train(model, source, 1)
    rows, followed = model.queue.rows.numpy(), model.projection.trainable_variables[0].numpy()
    np.testing.assert_array_equal(rows[16:], start[:16])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        model.keys.twins[1].trainable_variables[0], (kernel + followed) / 2, rtol=1e-5, atol=1e-7
    )
    small = pretext.build("simclr", tiny(), queue_size=15, **SMALL)
    small.batch_size = 8
    with pytest.raises(UserError, match="queue_size=15 does not hold the 16 views of one step"):
        small.prepare()


def test_moco_splits_batch_normalisation_by_default():
    for parts, groups in ((1, 8), (4, 2), (16, 1)):
        model = pretext.build("moco", normalized(), **SMALL)
        model.compile(tf.keras.optimizers.SGD(), accumulate_steps=parts)
        model.prepare()
        for network in (model.backbone, model.keys.twins[0]):
            assert [layer.groups for layer in network.submodules if isinstance(layer, BatchNorm)] == [groups]
    given = normalized()
    given.bn_groups = 2
    model = pretext.build("moco", given, **SMALL)
    model.prepare()
    assert model.backbone.bn_groups == 2


@pytest.mark.parametrize("name", ["moco", "infomin"])
def test_mocos_synchronized_statistics_are_warned_of(name, caplog):
    settings = {"image_size": 16, "queue_size": 32, "jigsaw_size": 24, "jigsaw_patch_size": 7}
    settings = {k: v for k, v in settings.items() if name == "infomin" or "jigsaw" not in k}
    for sync in (False, True):
        backbone = normalized()
        backbone.bn_sync = sync
        model = pretext.build(name, backbone, **settings)
        model.compile(tf.keras.optimizers.SGD())
        warned = [r.getMessage() for r in caplog.records if f"--task={name} with --sync_batch_norm" in r.getMessage()]
        assert len(warned) == sync and model.backbone.bn_groups == 1


def test_batches_that_moco_cannot_use_are_refused():
    for batch_size, message in (
        (12, "the 12 images .* 8 equal groups"),
        (64, "queue_size=32 does not hold the 64 keys"),
    ):
        model = pretext.build("moco", tiny(), queue_size=32, **SMALL)
        model.batch_size = batch_size
        with pytest.raises(UserError, match=message):
            model.prepare()


def test_byols_target_moves_slower(source):
    model = task("byol", projection_hidden=8, projection_size=4, target_momentum=0.9, momentum_schedule="constant")
    before = [v.numpy() for v in model.target.twins[0].trainable_variables]
    train(model, source, 1)
    for old, mine, online in zip(before, model.target.twins[0].trainable_variables, model.backbone.trainable_variables):  # noqa: B905
        np.testing.assert_allclose(mine, 0.9 * old + 0.1 * online.numpy(), atol=1e-6)


def test_swavs_prototypes_are_directions_that_wait(source):
    model = task("swav", projection_hidden=8, projection_size=4, prototypes=5, small_crops=0, freeze_prototypes_steps=2)
    before = model.prototypes.numpy()
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, rtol=1e-6)
    train(model, source, 2)
    np.testing.assert_allclose(model.prototypes, before, atol=1e-6)
    train(model, source, 2)
    assert np.abs(model.prototypes.numpy() - before).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(model.prototypes, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("policy,name", [("float32", "nesterov"), ("mixed_float16", "adam")])
def test_simsiams_prediction_keeps_the_peak_rate(policy, name, fixed):
    """With any optimizer: where the cosine is at half, the same gradients move it twice as far. Adam's first step is the rate."""
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = task("simsiam", projection_size=8, prediction_size=4, fixed_prediction_rate=fixed)
        model.compile(tfssl.optim.build(name, tfssl.optim.schedule("cosine", 0.4, 10), momentum=0.5))
        model.prepare()
        model.optimizer.iterations.assign(5)
        before = [v.numpy() for v in model.trainable_variables]
        scale = model.optimizer.loss_scale if policy == "mixed_float16" else 1.0
        scaled = [tf.ones_like(v) * scale for v in model.trainable_variables]
        gradients = model._loss_scaling("get_unscaled_gradients", scaled)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))  # noqa: B905
        moved = {id(v): b - v.numpy() for b, v in zip(before, model.trainable_variables)}  # noqa: B905
        own = {id(v) for v in model.prediction.trainable_variables}
        (slow,) = {round(float(moved[i].mean()), 5) for i in moved if i not in own}
        (fast,) = {round(float(moved[i].mean()), 5) for i in own}
        assert slow > 0.1 and fast == pytest.approx((1 + fixed) * slow, rel=1e-3)
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_swavs_head_normalizes_crops_of_all_sizes_together(source, float64):
    """As the published code's forward_head: scores by hand, with statistics over the joined views of both sizes."""
    settings = {"small_crops": 3, "small_size": 8, "freeze_prototypes_steps": 0}
    model = task("swav", projection_hidden=8, projection_size=4, prototypes=5, **settings)
    batch = model.to_float(next(iter(model.dataset(source, 6))))
    scores = model(batch, training=True)["scores"].numpy()  # NxVxK
    features = [
        model.encode(tf.reshape(x, [-1, *x.shape[2:]]))["pre_logits"].numpy().reshape([6, x.shape[1], -1])
        for x in batch["image"]
    ]
    x = np.concatenate(features, 1)  # NxVxD
    assert x.shape[1] == 5
    hidden, last = model.projection.dense
    h = x @ hidden.kernel.numpy() + hidden.bias.numpy()
    h = np.maximum((h - h.mean((0, 1))) / np.sqrt(h.var((0, 1)) + 1e-5), 0)
    z = h @ last.kernel.numpy() + last.bias.numpy()
    want = z / np.linalg.norm(z, axis=-1, keepdims=True) @ model.prototypes.numpy().T
    np.testing.assert_allclose(scores, want, rtol=1e-8, atol=1e-10)


def test_simclrs_loss_as_published_code_has_it():
    """Twice the paper's: the sum of the means of first and second views."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 4))
    z = np.stack([first, second], 1)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    flat = z.transpose(1, 0, 2).reshape(16, 4)
    logits = np.where(np.eye(16, dtype=bool), -np.inf, flat @ flat.T / 0.1)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(16), (np.arange(16) + 8) % 16]
    for factor, want in ((1.0, each.mean()), (2.0, each[:8].mean() + each[8:].mean())):
        model = pretext.build("simclr", tiny(), loss_factor=factor, **SMALL)
        model.batch_size = 8
        loss, _ = model.contrast({"weight": tf.ones([8])}, {"z": tf.constant(z)})
        np.testing.assert_allclose(tf.reduce_mean(loss), want, rtol=1e-9)
        assert model.chance()["loss"] == pytest.approx(factor * np.log(15))


def test_negatives_reach_every_image_of_a_large_bank():
    """Of 2^25 images; no bank of that size is made. A float32 has 24 bits: by it, odd entries beyond 2^24 would never be drawn."""
    model = task("instance_discrimination", num_images=4, negatives=1000)
    model.num_images = 2**25
    batch = {"number": tf.range(8, dtype=tf.int64), "seed": tf.zeros([8], tf.int64)}
    drawn = model.augment({**batch, "image": (tf.zeros([8, 1, 16, 16, 3]),)}, Draws(batch))["negatives"].numpy()
    assert drawn.shape == (8, 1000) and drawn.min() >= 0 and 0.99 * 2**25 < drawn.max() < 2**25
    beyond = drawn[drawn >= 2**24]
    assert abs(len(beyond) / drawn.size - 0.5) < 0.03 and abs((beyond % 2).mean() - 0.5) < 0.03


def test_views_are_crops_of_one_image(source):
    """Two groups of sizes; the first two views differ; the same seed, the same views; evaluation is deterministic."""
    model = task("swav", projection_hidden=8, projection_size=4, prototypes=5, small_crops=3, small_size=8)
    record = tf.io.encode_png(tf.cast(tf.random.stateless_uniform([20, 24, 3], [0, 1], 0, 256, tf.int32), tf.uint8))
    large, small = model.example(record, tf.constant([1, 2], tf.int64))
    assert large.shape == (2, 16, 16, 3) and small.shape == (3, 8, 8, 3)
    assert np.any(large[0] != large[1])
    again = model.example(record, tf.constant([1, 2], tf.int64))[0]
    np.testing.assert_array_equal(large, again)
    np.testing.assert_array_equal(model.example(record, None)[0], model.example(record, None)[0])


@pytest.mark.parametrize("policy", augmentation.POLICIES)
@pytest.mark.parametrize(
    "name, settings",
    [("swav", {"prototypes": 5}), ("swav", {"prototypes": 5, "min_area": 0.06}), ("pirl", {"num_images": 2})],
)
def test_crops_have_the_areas_that_are_asked_for(name, settings, policy):
    """In each group of views, whatever the policy wants covered: never the whole image in a group of small ones."""
    model = pretext.build(name, tiny(), image_size=224, augmentation=policy, **settings)
    groups = model.crops()
    assert len(groups) == 2
    for group, first in model._numbered(groups):
        low, high = group.area or (model.min_area or model.policies()[0].crop_area[0], 1.0)
        for region in model.regions(group, first)[:2]:
            areas = []
            for seed in range(60):
                _, extent = region.policy.sample_crop(tf.constant([375, 500, 3]), tf.constant([seed, 1], tf.int64))
                areas.append(int(extent[0] * extent[1]) / (375 * 500))
            assert low - 0.002 <= min(areas) and max(areas) <= high + 0.002
            assert np.ptp(areas) > 0.6 * (high - low)


def test_the_policy_acts_on_host_and_device_alike(source):
    """As distributions: means and deviations of pixels over many draws."""
    found = {}
    for where in ("host", "device"):
        model = pretext.build("simclr", tiny(), image_size=12, augmentation="simclr", augment_on=where)
        images = []
        for batch in model.dataset(source, 48, seed=3, steps=6):
            images.append(model.augment(model.to_float(batch), Draws(batch))["image"][0])
        images = tf.concat(images, 0).numpy()
        found[where] = (images.mean(), images.std(), images.mean((1, 2, 3)).std())
    np.testing.assert_allclose(found["host"], found["device"], atol=0.02)


def test_the_probe_learns_and_sends_no_gradient(source):
    with_probe, without = (task("simclr", projection_size=4, num_classes=c) for c in (2, 0))
    for model in (with_probe, without):
        tf.keras.utils.set_random_seed(0)
        for v, w in zip(model.backbone.variables, with_probe.backbone.variables):  # noqa: B905
            v.assign(w)
        for v, w in zip(model.projection.variables, with_probe.projection.variables):  # noqa: B905
            v.assign(w)
    histories = [train(model, source, 3) for model in (with_probe, without)]
    for v, w in zip(with_probe.backbone.variables, without.backbone.variables):  # noqa: B905
        np.testing.assert_allclose(v, w, atol=1e-6)
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)  # the method's own is reported
    assert "probe_accuracy" in histories[0] and "probe_accuracy" not in histories[1]


def test_a_probe_that_diverged_stops_nobody(source, tmp_path):
    """The method learns as beside a healthy one, in float16 too, whose loss scaling would skip every step; checkpoints are written; it is
    said once."""
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        states = []
        for kernel in (0.0, np.nan):
            tf.keras.utils.set_random_seed(0)
            model = task("simclr", projection_size=4, num_classes=2)
            sgd = tf.keras.optimizers.SGD(0.1)
            model.compile(tf.keras.mixed_precision.LossScaleOptimizer(sgd, initial_scale=16))  # which overflows nowhere
            model.probe.kernel.assign(tf.fill(model.probe.kernel.shape, kernel))
            before = model.projection.dense[0].kernel.numpy()
            train(model, source, 2)
            states.append([v.numpy() for part in (model.backbone, model.projection) for v in part.trainable_variables])
            assert np.any(model.projection.dense[0].kernel.numpy() != before)
        assert model.counters["nonfinite_steps"] == 0
        for healthy, beside in zip(*states):
            np.testing.assert_allclose(beside, healthy, rtol=1e-5, atol=1e-7)
        Checkpoints(model, str(tmp_path)).save(2)
        assert sorted(path.name for path in tmp_path.glob("*.index")) == ["ckpt-2.index"]
        measured = {m.name: float(m.result()) for m in model.metrics}
        assert np.isfinite(measured["loss"]) and np.isnan(measured["probe_accuracy"])
        assert "online probe" in model.alarm(measured) and model.alarm(measured) is None
        model.projection.dense[0].kernel.assign_add(tf.fill(model.projection.dense[0].kernel.shape, np.nan))
        train(model, source, 1)
        assert model.counters["nonfinite_steps"] == 1  # the method's own
        with pytest.raises(UserError, match="is not finite after step 3"):
            Checkpoints(model, str(tmp_path)).save(3)
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_labels_are_never_required(source, photos, tmp_path):
    for path in photos.rglob("*.jpg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    history = train(task("simclr", projection_size=4), tfssl.open_source(f"folder:{tmp_path}"), 1)
    assert np.isfinite(history["loss"][0])


def test_a_collapse_is_told():
    model = task("simsiam", projection_size=8, prediction_size=4)
    assert "collapsed" in model.alarm({"spread": 0.01}) and model.alarm({"spread": 0.8}) is None


def test_a_model_that_cannot_be_made_twice_is_refused():
    class Own(tf.keras.Model):
        def __init__(self, dense):
            super().__init__()
            self.dense = dense

        def call(self, images):
            return self.dense(tf.reduce_mean(images, [1, 2]))

    with pytest.raises(UserError, match="cannot be made twice"):
        pretext.build("byol", Own(tf.keras.layers.Dense(3)), image_size=16)


@pytest.mark.parametrize(
    "name,settings,message",
    [
        ("simclr", {"augmentation": "none"}, "no augmentation policy 'none'"),
        ("simclr", {"augment_on": "gpu"}, "augment_on=gpu: choose one of device, host"),
        ("byol", {"momentum_schedule": "linear"}, "momentum_schedule=linear"),
        ("instance_discrimination", {}, "num_images is missing"),
        ("instance_discrimination", {"num_images": 5, "negatives": 0}, "take form=cross_entropy"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        pretext.build(name, tiny(), **{"image_size": 16, **settings})

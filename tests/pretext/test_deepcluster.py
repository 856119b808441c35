"""DeepCluster: its input, features, balance and the classifier that begins anew."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import tiny
from sklearn.cluster import KMeans

from tfssl import pretext
from tfssl.errors import UserError
from tfssl.pretext.deepcluster import derivatives, whitened
from tfssl.runtime import strategy as strategies
from tfssl.step.phases import Context, run_due
from tfssl.training.checkpoints import Checkpoints

SETTINGS = {"num_images": 48, "image_size": 16, "clusters": 4, "pca_size": 5}


def build(optimizer=None, **settings):
    model = pretext.build("deepcluster", tiny(), **{**SETTINGS, **settings})
    model.compile(optimizer or tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.epoch_steps = 6
    model.prepare()
    return model


def context_of(model, source):
    strategy = tf.distribute.get_strategy()
    batches = lambda: strategies.evaluation_data(strategy, model, source, 8)  # noqa: E731
    return Context(strategy, batches, source.places, 3, model.to_float)


def test_the_input_is_the_published_filters(float64):
    gray = np.random.default_rng(0).normal(size=[2, 7, 9, 1])
    filters = [[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]]
    kernel = np.moveaxis(np.array(filters, float), 0, 2)[:, :, None]  # 3x3x1x2
    np.testing.assert_allclose(derivatives(gray), tf.nn.conv2d(gray, kernel, 1, "SAME"), atol=1e-12)
    ramp = derivatives(tf.tile(tf.range(9.0)[None, None, :, None], [1, 7, 1, 1]))[0, 1:-1, 1:-1]
    assert (ramp[..., 0].numpy() == -8).all() and (ramp[..., 1].numpy() == 0).all()
    model = build()
    gray = model.normalize(tf.ones([1, 16, 16, 3]))
    mean = np.mean((1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])
    assert gray.shape == (1, 16, 16, 2) and float(gray[0, 5, 0, 0]) == pytest.approx(-4 * mean)


def test_whitened_rows_have_the_identity_as_covariance():
    """Before they are brought to norm 1, which is undone here; rows that are not there count for
    nothing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[400, 6]) @ rng.normal(size=[6, 6]) + 3
    known = np.arange(400) % 7 > 0
    white = whitened(np.where(known[:, None], rows, 99.0), known, 6, chunk=64)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), known, atol=1e-9)
    centered = rows[known] - rows[known].mean(0)
    mahalanobis = np.sqrt(
        (centered @ np.linalg.inv(np.cov(centered.T, bias=True)) * centered).sum(1)
    )
    undone = white[known] * mahalanobis[:, None]
    np.testing.assert_allclose(np.cov(undone.T, bias=True), np.eye(6), atol=1e-8)
    flat = whitened(rows * [1, 1, 1, 1, 0, 0], known, 6)
    assert (flat[:, 4:] == 0).all() and np.linalg.norm(flat, axis=1)[1] == pytest.approx(1)


def test_a_phase_clusters_and_the_classifier_knows_nothing(source, float64):
    model = build()
    model.fit(model.dataset(source, 8, steps=2), steps_per_epoch=2, verbose=0)
    context = context_of(model, source)
    rows, seen = context.embed(model.features)
    context.step = 6
    report = run_due(model.phases(), context, 6)
    white = whitened(rows, seen, 5)
    start = np.random.default_rng([3, 6]).choice(48, 4, replace=False)
    theirs = KMeans(4, init=white[start], n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(
        white
    )
    np.testing.assert_array_equal(model.clusterings.labels[0], theirs.labels_)
    assert report["objective"] == pytest.approx(theirs.inertia_ / 48, rel=1e-4)

    # The loss is log K; it forgets its momentum in the phase, and after each step.
    batch = next(iter(model.dataset(source, 48)))
    losses = lambda: model.objective(batch, model(model.to_float(batch)))[0].numpy()  # noqa: E731
    before = losses()
    assert before.mean() == pytest.approx(np.log(4), rel=0.01)
    order = [2, 0, 3, 1]  # labels by other names, and the classifier's columns with them
    model.clusterings.labels.assign(np.argsort(order)[model.clusterings.labels.numpy()])
    for v in model.head.trainable_variables:
        v.assign(v.numpy()[..., order])
    np.testing.assert_allclose(losses(), before, atol=1e-12)
    old = [v.numpy() for v in model.head.trainable_variables]
    model.fit(model.dataset(source, 8, steps=1), steps_per_epoch=1, verbose=0)
    slots = [
        v.numpy() for v in model.optimizer.variables if "head" in v.name and v.shape.rank in (1, 2)
    ]
    assert len(slots) == 2 and not any(v.any() for v in slots)
    assert all((v.numpy() != x).any() for v, x in zip(model.head.trainable_variables, old))


def test_every_cluster_is_shown_as_often_as_any_other(source):
    """31, 12 and 5 images: 17 draws of each cluster in each 48 before they are cut; none twice in a
    large one."""
    model = build()
    assert model.order(source) is source  # nothing is clustered yet
    labels = np.repeat([0, 2, 3], [31, 12, 5])[np.random.default_rng(0).permutation(48)]
    model.clusterings.labels.assign(labels[None])
    records = list(model.order(source).records(seed=1).take(10 * 48).batch(48))
    index = np.stack([r["index"].numpy() for r in records])  # 10x48
    counts = np.stack([np.bincount(labels[block], minlength=4) for block in index])
    assert (counts.sum(1) == 48).all() and (counts[:, 1] == 0).all()
    assert counts.max() == 17 and counts[:, [0, 2, 3]].min() >= 14
    for block in index:
        assert np.bincount(block, minlength=48)[labels == 0].max() == 1
    drawn = np.bincount(index.ravel(), minlength=48)
    assert drawn.min() > 0 and len({tuple(block) for block in index}) == 10
    # The weights of the loss make the plain mean the expectation of that.
    model.balance = "weight"
    weights = model._weights(tf.constant(labels, tf.int32), tf.float64).numpy()
    np.testing.assert_allclose(weights, 48 / 3 / np.bincount(labels)[labels], rtol=1e-12)
    assert weights.mean() == pytest.approx(1)


def test_what_does_not_fit_is_refused(source):
    with pytest.raises(UserError, match="take --optimizer=sgd, or --head_momentum"):
        build(tf.keras.optimizers.Adam())
    build(tf.keras.optimizers.Adam(), head_momentum=True)
    with pytest.raises(UserError, match="clusters=60 need as many images at least"):
        build(clusters=60)
    model = build()
    model.clusterings.labels.assign(np.zeros([1, 48]))
    stream = type("Stream", (), {"random_access": False, "spec": "tfrecord:x"})
    with pytest.raises(UserError, match="take --balance=weight"):
        model.order(stream)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(source, tmp_path, monkeypatch):
    """Killed in the phase at step 2, half of which is written, and one step after it."""
    strategy, saved = tf.distribute.get_strategy(), str(tmp_path)

    def go_on(model, step, end):
        context = context_of(model, source)
        while step < end:
            run_due(model.phases(), context, step)
            data = strategies.training_data(strategy, model, source, 24, 2, step, 1)
            model.fit(data, steps_per_epoch=1, verbose=0)
            step += 1
        return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]

    def restored():
        tf.keras.utils.set_random_seed(5)
        model = build(clustering_epochs=1 / 3)
        return model, Checkpoints(model, saved).restore()

    model = build(clustering_epochs=1 / 3)
    assert model.phases()[0].every == 2
    go_on(model, 0, 2)
    Checkpoints(model, saved).save(2)
    whole = go_on(model, 2, 4)
    model, step = restored()
    with monkeypatch.context() as patch:
        patch.setattr(model, "_forget_head", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go_on(model, step, 4)
    assert Checkpoints(model, saved).restore() == 2
    go_on(model, 2, 3)
    Checkpoints(model, saved).save(3)
    model, step = restored()
    assert step == 3
    for x, y in zip(go_on(model, step, 4), whole):
        np.testing.assert_array_equal(x, y)

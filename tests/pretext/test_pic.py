"""PIC: its softmax, its order."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import dense, head_parameters, task

import tfssl
from tfssl import optim
from tfssl.errors import UserError

SMALL = {"small_crops": 2, "small_size": 8, "projection_size": 4, "num_images": 48}


def orders(source, count, seed=3, start=0, **settings):
    """Indices of examples as a run sees them."""
    ordered = task("pic", **{**SMALL, **settings}).order(source)
    records = ordered.records(seed=seed, start=start).take(count)
    return np.array([int(record["index"]) for record in records])


def test_a_window_slides_over_a_fixed_order(source):
    """Each window has as many images, of which the next one keeps all but those it moves on by; in
    a round each image comes window / stride times; any start gives the same tail."""
    found = orders(source, 12 * 24, window=24, window_stride=4).reshape(12, 24)
    windows = [set(row) for row in found]
    assert all(len(window) == 24 for window in windows)
    assert all(len(a & b) == 20 for a, b in zip(windows, windows[1:]))
    assert np.array_equal(np.bincount(found.ravel(), minlength=48), np.full(48, 6))
    assert not windows[0] & windows[6]  # half a round later
    assert not np.array_equal(found[0], np.sort(found[0]))
    others = np.array(sorted(windows[0] & windows[1]))
    place = [[list(row).index(i) for i in others] for row in found[:2]]
    assert place[0] != place[1]  # in another order
    for start in (1, 24, 100):
        tail = orders(source, 40, start=start, window=24, window_stride=4)
        np.testing.assert_array_equal(tail, found.ravel()[start : start + 40])
    assert set(orders(source, 24, seed=4, window=24, window_stride=4)) != windows[0]
    model = task("pic", **SMALL, window=48, window_stride=4)
    assert model.order(source) is source


def test_several_pipelines_share_the_windows(source):
    """The rows that three input pipelines deliver, one of them to two replicas, are those of one:
    the window is that of the global batch, wherever a run starts."""
    model = task("pic", **SMALL, window=24, window_stride=4)

    def rows(**share):
        return list(model.dataset(source, 12, 3, 7, 4, **share).as_numpy_iterator())

    whole, first, last = rows(), rows(rows=(0, 4)), rows(rows=(8, 12))
    pair = iter(rows(rows=(4, 8), chunk=2))
    for step, batch in enumerate(whole):
        parts = [tf.nest.flatten(p) for p in (first[step], next(pair), next(pair), last[step])]
        for found, *shared in zip(tf.nest.flatten(batch), *parts):
            np.testing.assert_array_equal(np.concatenate(shared), found)
    np.testing.assert_array_equal(
        np.concatenate([batch["index"] for batch in whole]),
        orders(source, 48, start=12 * 7, window=24, window_stride=4),
    )


def test_the_loss_and_its_floor(float64):
    """The loss is a softmax over cosines, whatever the norms; directions at the corners of a simplex
    have the least one."""
    model = task("pic", **SMALL)
    rng = np.random.default_rng(0)
    z, w = rng.standard_normal([5, 3, 4]), rng.standard_normal([48, 4])
    index = np.array([0, 7, 7, 30, 50])  # the last one of other images than the training split's
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, w)]
    logits = unit[0] @ unit[1].T / 0.2
    own = np.take_along_axis(logits, (index % 48)[:, None, None], 2)[..., 0]
    expected = (np.log(np.exp(logits).sum(-1)) - own).mean(1)
    for scale in (1.0, 7.0):
        model.classes.kernel.assign(w * scale)
        scores = model.classes(tf.constant(z))
        loss, _ = model.contrast({"index": tf.constant(index)}, {"scores": scores})
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.math.log_softmax(model.classes(tf.constant(z[:, 0])) / 0.2)[:, 0])
    gradient = tape.gradient(loss, model.classes.kernel).numpy()
    np.testing.assert_allclose((gradient * model.classes.kernel.numpy()).sum(1), 0, atol=1e-12)
    simplex = np.eye(48) - 1 / 48
    classes = tfssl.pretext.parts.heads.Prototypes("classes", 48)
    classes(tf.constant(simplex))
    classes.kernel.assign(simplex)
    logits = classes(tf.constant(simplex)).numpy() / 0.2
    least = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert least == pytest.approx(np.log(1 + 47 * np.exp(-(1 + 1 / 47) / 0.2)))
    assert model.chance()["loss"] == pytest.approx(np.log(48))


def test_the_floor_of_imagenet_and_others():
    """The values that docs/methods.md names."""
    for n, t, floor in ((1281167, 0.2, 9.063), (20000, 0.2, 4.911), (20000, 0.1, 0.646)):
        assert np.log1p((n - 1) * np.exp(-(1 + 1 / (n - 1)) / t)) == pytest.approx(floor, abs=1e-3)


def test_directions_learn_from_the_large_view_alone_and_decay(source):
    model = task("pic", **SMALL, num_classes=2)
    batch = model.to_float(next(iter(model.dataset(source, 4))))
    with tf.GradientTape(persistent=True) as tape:
        scores = model(batch, training=True)["scores"]
        large, small = tf.reduce_sum(scores[:, 0, :5]), tf.reduce_sum(scores[:, 1:, :5])
    kernel = model.classes.kernel
    assert np.abs(tape.gradient(large, kernel)).max() > 0
    zero = tape.gradient(small, kernel, unconnected_gradients="zero")
    assert np.abs(zero).max() == 0
    assert any(v is kernel for v in model.kernels()) and optim.is_kernel(kernel)


def test_published_parameters_and_bad_settings():
    """Two linear layers with biases; a direction for each image."""
    found = head_parameters("pic", num_images=10, small_crops=0)
    assert found == dense(2048, 2048) + dense(2048, 128) + 10 * 128
    with pytest.raises(UserError, match="window_stride=9: a window of 8 images"):
        task("pic", **SMALL, window=8, window_stride=9)
    with pytest.raises(UserError, match="num_images is missing"):
        task("pic", **{**SMALL, "num_images": 0})

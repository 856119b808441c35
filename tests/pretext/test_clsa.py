"""CLSA: its losses against loops, its views."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import task, tiny

from tfssl import pretext
from tfssl.errors import UserError

SMALL = {"queue_size": 12, "projection_size": 4, "strong_sizes": "8", "split_batch_norm": 0}


def batch_of(rng, rows, views, size=4):
    """(batch, outputs, queries [N, V, E] and candidates [N + K, E] of norm 1)."""
    model = task("clsa", **SMALL, weak_sizes=",".join(["8"] * (views - 2)))
    queries, keys = rng.standard_normal([rows, views, size]), rng.standard_normal([rows, size])
    queue = rng.standard_normal([12, size])
    queries, keys, queue = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys, queue)
    )
    model.queue.rows.assign(queue)
    outputs = {"queries": tf.constant(queries * 3), "keys": tf.constant(keys[:, None])}
    return model, outputs, queries, np.concatenate([keys, queue])


@pytest.mark.parametrize("views", [2, 4])
def test_losses_equal_loops(views, float64):
    """Sums over the weak views, and over pairs of a weak and a strong one; candidates are the keys
    of the batch, but for blank rows, and the queue."""
    rng = np.random.default_rng(0)
    model, outputs, queries, candidates = batch_of(rng, 5, views)
    weight = tf.constant([1.0, 1, 1, 1, 0])
    loss, metrics = model.contrast({"weight": weight}, outputs)
    used = np.delete(candidates, 4, 0)
    p = np.exp(queries @ used.T / 0.2)
    p /= p.sum(-1, keepdims=True)
    for n in range(4):
        weak = [-np.log(p[n, v, n]) for v in range(views - 1)]
        strong = [-(p[n, v] * np.log(p[n, -1])).sum() for v in range(views - 1)]
        np.testing.assert_allclose(loss[n], sum(weak) + sum(strong), rtol=1e-9)
        np.testing.assert_allclose(metrics["strong_loss"][n], sum(strong), rtol=1e-9)
    model.strong_weight = 0.0
    np.testing.assert_allclose(model.contrast({"weight": weight}, outputs)[0][3], sum(weak))


def test_a_strong_view_like_the_weak_one_learns_nothing(float64):
    """Its loss is the entropy then, which is the least; the weak view gets no gradient of it."""
    model, outputs, queries, candidates = batch_of(np.random.default_rng(1), 3, 2)
    same = tf.Variable(np.repeat(queries[:, :1], 2, 1))
    with tf.GradientTape() as tape:
        found = {**outputs, "queries": same}
        strong = model.contrast({"weight": tf.ones([3])}, found)[1]["strong_loss"]
    np.testing.assert_allclose(tape.gradient(strong, same), 0, atol=1e-12)
    p = np.exp(queries[:, 0] @ candidates.T / 0.2)
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(strong, -(p * np.log(p)).sum(1), rtol=1e-9)


def test_views_of_the_paper():
    """Areas of the multi-crop recipe; RandAugment of 5 ops on the strong views alone."""
    sizes = "192,160,128,96"
    model = pretext.build(
        "clsa", tiny(), image_size=224, augmentation="moco_v2", queue_size=12, weak_sizes=sizes,
        strong_sizes=f"224,{sizes}",
    )  # fmt: skip
    published = {224: (0.2, 1), 192: (0.172, 0.86), 160: (0.143, 0.715), 128: (0.114, 0.571),
                 96: (0.086, 0.429)}  # fmt: skip
    first, *further = model.crops()
    assert (first.count, first.size, first.area) == (2, 224, None) and len(further) == 9
    for crop in further:
        np.testing.assert_allclose(crop.area, published[crop.size], atol=4e-3)
    assert [policy.randaugment for policy in model.policies()] == [0] * 6 + [5] * 5
    assert {policy.randaugment_pool for policy in model.policies()[6:]} == {"clsa"}
    assert {policy.crop_area for policy in model.policies()} == {(0.2, 1.0)}
    model.batch_size = 20
    assert model.chance()["loss"] == pytest.approx((5 + 25) * np.log(32))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"symmetric": True}, "symmetric"),
        ({"strong_sizes": "8,x"}, "a comma list of pixels"),
        ({"weak_sizes": "17"}, "at most image_size=16"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        task("clsa", **{**SMALL, **settings})

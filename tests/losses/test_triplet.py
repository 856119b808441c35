"""The semi-hard triplet loss against a naive O(B^3) NumPy reading of its definition, and against
TensorFlow Addons where there is one."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses.triplet import semihard_triplets, triplet_semihard

try:
    from tensorflow_addons.losses import triplet_semihard_loss
except ImportError:  # Python 3.12 and newer
    triplet_semihard_loss = None


def naive(labels, embeddings, margin=0.5, anchors=None, valid=None):
    """By definition, one triplet at a time: per anchor (loss, pairs, losing pairs, pairs without a
    semi-hard negative, share of (positive, negative) in order), and the gradient of the mean."""
    rows = len(labels)
    valid = np.ones(rows, bool) if valid is None else valid
    apart = embeddings[:, None] - embeddings
    distances = (apart**2).sum(-1)
    gradient, results = np.zeros_like(embeddings), []
    for a in range(rows) if anchors is None else anchors:
        negatives = [n for n in range(rows) if valid[n] and labels[n] != labels[a]]
        positives = [p for p in range(rows) if valid[p] and labels[p] == labels[a] and p != a]
        loss, losing, without, in_order = 0, 0, 0, []
        for p in positives if negatives else []:
            farther = [n for n in negatives if distances[a, n] > distances[a, p]]
            in_order.append(len(farther) / len(negatives))
            without += not farther
            n = (
                min(farther, key=distances[a].item)
                if farther
                else max(negatives, key=distances[a].item)
            )
            term = margin + distances[a, p] - distances[a, n]
            if term > 0:
                loss, losing = loss + term, losing + 1
                gradient[a] += 2 * (apart[a, p] - apart[a, n])
                gradient[p] -= 2 * apart[a, p]
                gradient[n] += 2 * apart[a, n]
        results.append(
            (loss, len(positives), losing, without, np.mean(in_order) if in_order else 0)
        )
    results = np.array(results, float).T
    return results, gradient / max(results[1].sum(), 1)


def layout(seed):
    """Labels and embeddings [B, D] of norm 1, at least two classes and one pair.

    Odd seeds have classes apart. With every third, the first class lies at two opposite poles and
    all others between, nearer to each of its members than its own other pole: it has no semi-hard
    negatives.
    """
    rng = np.random.default_rng(seed)
    rows = (12, 33)[seed // 2 % 2]
    classes = rng.integers(2, rows)
    labels = np.concatenate([[0, 0, 0, 1], rng.integers(0, classes, rows - 4)])
    rng.shuffle(labels)
    embeddings = rng.normal(size=[rows, 8])
    if seed % 2:
        embeddings += rng.normal(size=[classes, 8])[labels]
    if seed % 3 == 0:
        poles = rng.choice([-9, 9], rows)
        embeddings[:, 0] = np.where(labels == 0, poles, 0)
    return labels, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def loss_and_gradient(function, labels, embeddings):
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        loss = function(labels, embeddings)
    return loss, tape.gradient(loss, embeddings)


MODES = {
    "eager": loss_and_gradient,
    "graph": tf.function(loss_and_gradient),
    "xla": tf.function(loss_and_gradient, jit_compile=True),
}


def ours(mode, labels, embeddings):
    return MODES[mode](triplet_semihard, tf.constant(labels), tf.constant(embeddings))


@pytest.mark.parametrize("mode", MODES)
def test_random_layouts(mode):
    """Value and gradient in single precision on 20 layouts, by the definition and by TensorFlow
    Addons."""
    without_semihard = 0
    for seed in range(20):
        labels, embeddings = layout(seed)
        single = embeddings.astype(np.float32)
        loss, gradient = ours(mode, labels, single)
        (sums, pairs, _, without, _), want = naive(labels, embeddings)
        assert loss.dtype == tf.float32
        np.testing.assert_allclose(loss, sums.sum() / pairs.sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        without_semihard += without.any()
        if triplet_semihard_loss:
            reference = loss_and_gradient(
                lambda y, x: triplet_semihard_loss(y, x, margin=0.5, distance_metric="squared-L2"),
                tf.constant(labels),
                tf.constant(single),
            )
            np.testing.assert_allclose(loss, reference[0], rtol=1e-5)
            np.testing.assert_allclose(
                gradient, reference[1], rtol=1e-5, atol=1e-5 * np.abs(want).max()
            )
    assert 6 < without_semihard < 20  # both kinds occur


@pytest.mark.parametrize("mode", MODES)
def test_double_precision_is_kept(mode):
    labels, embeddings = layout(1)
    loss, gradient = ours(mode, labels, embeddings)
    (sums, pairs, *_), want = naive(labels, embeddings)
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, sums.sum() / pairs.sum(), rtol=1e-12)
    np.testing.assert_allclose(gradient, want, atol=1e-12)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    labels, embeddings = layout(1)
    half = tf.cast(embeddings, dtype)
    loss, gradient = ours("eager", labels, half)
    assert loss.dtype == tf.float32 and gradient.dtype == dtype
    np.testing.assert_allclose(loss, triplet_semihard(labels, tf.cast(half, tf.float32)), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_at_equal_distance_a_negative_is_not_semihard(mode):
    """On a line, from the anchor 0: the positive 2; negatives -2 (no farther than it), 3 (the one),
    5."""
    labels, line = (
        np.array([0, 0, 1, 2, 3]),
        np.array([[0.0], [2.0], [-2.0], [3.0], [5.0]], np.float32),
    )
    loss, _ = ours(mode, labels, line / 4)  # margin 0.5 = 8/16
    # From 0: 8 + 4 - 9 = 3; from 2: the positive at distance 4, negatives at 16 (-2), 1 (3) and 9
    # (5): 8 + 4 - 9 = 3.
    np.testing.assert_allclose(loss, 3 / 16, rtol=1e-6)
    loss, _ = ours(mode, labels[:3], line[:3] / 4)
    # From 0 nothing is farther: the farthest, at 4, as far as the positive: 8; from 2: -2 at 16,
    # whose term is -4.
    np.testing.assert_allclose(loss, 8 / 2 / 16, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [4, 1, 2, 3]], ids=["one class", "no pair"])
def test_degenerate_batches_have_neither_loss_nor_gradient(labels, mode):
    embeddings = np.random.default_rng(0).normal(size=[4, 3]).astype(np.float32)
    loss, gradient = ours(mode, np.array(labels), embeddings)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros([4, 3]))


@pytest.mark.parametrize("mode", MODES)
def test_one_point_costs_the_margin(mode):
    """All embeddings alike: rounding may leave distances below zero, whose gradient must be
    finite."""
    point = np.random.default_rng(0).normal(size=[1, 7]).astype(np.float32)
    loss, gradient = ours(mode, np.arange(12) // 3, np.repeat(point, 12, 0))
    np.testing.assert_allclose(loss, 0.5, atol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros([12, 7]), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_nan_is_not_hidden(mode):
    embeddings = np.random.default_rng(0).normal(size=[6, 3]).astype(np.float32)
    embeddings[1, 2] = np.nan
    assert np.isnan(ours(mode, np.arange(6) // 2, embeddings)[0])


def test_each_anchor_by_itself():
    """Anchors that are some of the rows, and rows that take no part, in any order of labels."""
    for seed in range(6):
        labels, embeddings = layout(seed)
        rng = np.random.default_rng(seed)
        valid = rng.random(len(labels)) < 0.7
        anchors = rng.choice(np.flatnonzero(valid), 3)
        got = semihard_triplets(
            tf.constant(labels),
            tf.constant(embeddings),
            0.5,
            tf.constant(anchors, tf.int32),
            tf.constant(valid),
        )
        (loss, pairs, losing, _, in_order), _ = naive(labels, embeddings, 0.5, anchors, valid)
        np.testing.assert_allclose(got.loss, loss, atol=1e-12)
        np.testing.assert_array_equal(got.pairs, pairs)
        np.testing.assert_array_equal(got.losing, losing)
        np.testing.assert_allclose(got.auc, in_order, atol=1e-12)


def test_a_large_batch_of_many_pairs():
    """Long runs of positives between negatives, as the scan over the sorted rows must bridge: half
    of all pairs are positive."""
    rng = np.random.default_rng(0)
    labels, embeddings = rng.integers(0, 2, 150), rng.normal(size=[150, 2])
    loss, gradient = ours("graph", labels, embeddings)
    (sums, pairs, *_), want = naive(labels, embeddings)
    np.testing.assert_allclose(loss, sums.sum() / pairs.sum(), rtol=1e-12)
    np.testing.assert_allclose(gradient, want, atol=1e-12)
    embeddings[:, 0] += 10 * labels  # each class on its own: the longest runs
    np.testing.assert_allclose(
        semihard_triplets(tf.constant(labels), tf.constant(embeddings), 200.0).loss,
        naive(labels, embeddings, 200.0)[0][0],
    )

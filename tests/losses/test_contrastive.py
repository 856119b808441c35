"""The contrastive losses against loops written from the papers' formulas, and values known in
closed form."""

import math

import numpy as np
import pytest
import tensorflow as tf
from check_values import X, Y, normal

from tfssl.losses import contrastive


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def naive_nt_xent(z1, z2, temperature):
    """Equation 1 of the SimCLR paper, term by term: per image, the mean over its two views."""
    n, z = len(z1), unit(np.concatenate([z1, z2]))
    losses = []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        losses.append(-math.log(math.exp(z[i] @ z[positive] / temperature) / sum(others)))
    return (np.array(losses[:n]) + losses[n:]) / 2


@pytest.mark.parametrize("n,d,temperature", [(2, 3, 1.0), (5, 4, 0.1), (16, 8, 0.5)])
def test_nt_xent_is_the_formula(n, d, temperature):
    rng = np.random.default_rng(n)
    z1, z2 = rng.normal(size=(2, n, d))
    found = contrastive.nt_xent(tf.constant(z1), tf.constant(z2), temperature)
    np.testing.assert_allclose(found.loss, naive_nt_xent(z1, z2, temperature), rtol=1e-10)
    np.testing.assert_allclose(
        contrastive.nt_xent(tf.constant(3 * z1), tf.constant(z2), temperature).loss, found.loss
    )


@pytest.mark.parametrize("n", [2, 7])
def test_nt_xent_of_orthogonal_images(n):
    """Equal views of images that are orthogonal to one another: log(1 + (2n - 2) exp(-1 / t)); and
    of one point: log(2n - 1)."""
    z = tf.eye(n, dtype=tf.float64)
    found = contrastive.nt_xent(z, z, 0.5)
    np.testing.assert_allclose(found.loss, math.log(1 + (2 * n - 2) * math.exp(-2)), rtol=1e-12)
    np.testing.assert_allclose(found.accuracy, 1)
    point = tf.ones([n, 3], tf.float64)
    np.testing.assert_allclose(
        contrastive.nt_xent(point, point, 0.5).loss, math.log(2 * n - 1), rtol=1e-12
    )


def test_nt_xent_gradient():
    """By finite differences of the naive loss."""
    rng = np.random.default_rng(0)
    z1, z2 = rng.normal(size=(2, 4, 3))
    with tf.GradientTape() as tape:
        a = tf.constant(z1)
        tape.watch(a)
        loss = tf.reduce_mean(contrastive.nt_xent(a, tf.constant(z2), 0.2).loss)
    found = tape.gradient(loss, a).numpy()
    for at in np.ndindex(*z1.shape):
        step = np.zeros_like(z1)
        step[at] = 1e-6
        slope = (
            naive_nt_xent(z1 + step, z2, 0.2).mean() - naive_nt_xent(z1 - step, z2, 0.2).mean()
        ) / 2e-6
        np.testing.assert_allclose(found[at], slope, atol=1e-7)


def test_nt_xent_leaves_blank_rows_out():
    rng = np.random.default_rng(1)
    z1, z2 = rng.normal(size=(2, 6, 4))
    valid = tf.constant([True, True, False, True, True, False])
    found = contrastive.nt_xent(tf.constant(z1), tf.constant(z2), 0.3, valid).loss.numpy()[valid]
    np.testing.assert_allclose(found, naive_nt_xent(z1[valid], z2[valid], 0.3), rtol=1e-10)


def test_images_of_a_group_are_not_each_others_negatives():
    """The loss of an image is that of the batch without the others of its group; in_batch
    likewise."""
    rng, groups = np.random.default_rng(3), np.array([0, 1, 0, 2, 1, 0])
    z1, z2 = rng.normal(size=(2, 6, 4))
    found = contrastive.nt_xent(tf.constant(z1), tf.constant(z2), 0.3, groups=tf.constant(groups))
    among = contrastive.in_batch(tf.constant(z1), tf.constant(z2), 0.3, None, tf.constant(groups))
    for i in range(6):
        kept = np.flatnonzero((groups != groups[i]) | (np.arange(6) == i))
        place = list(kept).index(i)
        alone = naive_nt_xent(z1[kept], z2[kept], 0.3)[place]
        np.testing.assert_allclose(found.loss[i], alone, rtol=1e-10)
        cosines = unit(z2[kept]) @ unit(z1[i]) / 0.3
        expected = np.log(np.exp(cosines).sum()) - cosines[place]
        np.testing.assert_allclose(among.loss[i], expected, rtol=1e-10)
    each = contrastive.nt_xent(tf.constant(z1), tf.constant(z2), 0.3, groups=tf.range(6)).loss
    np.testing.assert_allclose(each, naive_nt_xent(z1, z2, 0.3), rtol=1e-10)


def test_images_of_a_group_are_positives_by_their_labels_alone():
    """By loops: frames of a sequence with the same label are positives, those without a label or
    with another are no candidates."""
    rng = np.random.default_rng(4)
    z1, z2 = rng.normal(size=(2, 6, 4))
    groups, labels = np.array([0, 0, 0, 0, 1, 1]), np.array([3, 3, 5, -1, -1, 3])
    found = contrastive.nt_xent(
        tf.constant(z1),
        tf.constant(z2),
        0.3,
        labels=tf.constant(labels),
        groups=tf.constant(groups),
    )
    views = unit(np.stack([z1, z2], 1).reshape(12, 4))
    for i in range(6):
        losses = []
        for me in (2 * i, 2 * i + 1):
            scores, positive = [], []
            for j in range(12):
                image = j // 2
                same = labels[image] == labels[i] >= 0
                if j == me or (groups[image] == groups[i] and image != i and not same):
                    continue
                scores.append(views[me] @ views[j] / 0.3)
                positive.append(same or image == i)
            scores = np.array(scores) - np.log(np.exp(scores).sum())
            losses.append(-scores[np.array(positive)].mean())
        np.testing.assert_allclose(found.loss[i], np.mean(losses), rtol=1e-10)


def test_info_nce():
    rng = np.random.default_rng(2)
    q, k, negatives = (
        rng.normal(size=(5, 4)),
        rng.normal(size=(5, 4)),
        unit(rng.normal(size=(9, 4))),
    )
    found = contrastive.info_nce(tf.constant(q), tf.constant(k), tf.constant(negatives), 0.2)
    for i, loss in enumerate(found.loss.numpy()):
        own = math.exp(unit(q[i]) @ unit(k[i]) / 0.2)
        others = sum(math.exp(unit(q[i]) @ n / 0.2) for n in negatives)
        np.testing.assert_allclose(loss, -math.log(own / (own + others)), rtol=1e-10)
        assert bool(found.accuracy[i]) == (
            own > max(math.exp(unit(q[i]) @ n / 0.2) for n in negatives)
        )


def test_nt_xent_with_memory():
    """Queries of one network, keys of another, and a queue: the candidates one by one."""
    rng = np.random.default_rng(3)
    z, keys, queue = (
        rng.normal(size=(2, 5, 4)),
        rng.normal(size=(2, 5, 4)),
        unit(rng.normal(size=(3, 4))),
    )
    found = contrastive.nt_xent(
        *map(tf.constant, z), 0.5, None, tf.constant(keys.swapaxes(0, 1)), tf.constant(queue)
    )
    for i in range(5):
        losses = []
        for view in (0, 1):
            candidates = {
                (v, j): unit(keys[v, j]) for v in (0, 1) for j in range(5) if (v, j) != (view, i)
            }
            candidates |= {("queue", k): queue[k] for k in range(3)}
            scores = {
                name: math.exp(unit(z[view, i]) @ key / 0.5) for name, key in candidates.items()
            }
            losses.append(-math.log(scores[1 - view, i] / sum(scores.values())))
        np.testing.assert_allclose(found.loss[i], np.mean(losses), rtol=1e-10)


def test_nce():
    """Equations 4 to 7 of the instance discrimination paper, as products of probabilities."""
    rng = np.random.default_rng(4)
    positive, negative, images, constant = rng.normal(size=3), rng.normal(size=(3, 5)), 40, 17.0
    found = contrastive.nce(
        tf.constant(positive), tf.constant(negative), 5 / images, constant
    ).loss.numpy()

    def from_data(score):
        p = math.exp(score) / constant
        return p / (p + 5 / images)

    for i in range(3):
        expected = -math.log(from_data(positive[i])) - sum(
            math.log(1 - from_data(n)) for n in negative[i]
        )
        np.testing.assert_allclose(found[i], expected, rtol=1e-10)


def test_cosine_distance():
    p, z = (
        tf.constant([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        tf.constant([[1.0, 0.0], [0.0, -3.0], [0.0, 1.0]]),
    )
    with tf.GradientTape() as tape:
        tape.watch([p, z])
        distance = contrastive.cosine_distance(p, z)
    np.testing.assert_allclose(distance, [0, 4, 2 - math.sqrt(2)], atol=1e-6)
    by_p, by_z = tape.gradient(distance, [p, z])
    assert by_z is None and np.any(by_p.numpy() != 0)


def test_spread():
    """1 for directions that fill the sphere, 0 for one direction."""
    z = np.random.default_rng(5).normal(size=(4000, 64))
    np.testing.assert_allclose(
        contrastive.embedding_std(tf.constant(z), tf.ones([4000])), 1, atol=0.01
    )
    assert contrastive.embedding_std(tf.constant(np.tile(z[:1], (50, 1))), tf.ones([50])) < 1e-6
    units = z[:20] / np.linalg.norm(z[:20], axis=1, keepdims=True)
    weight = tf.cast(tf.range(30) < 20, tf.float32)  # the others are blank
    found = contrastive.embedding_std(
        tf.constant(np.concatenate([z[:20], np.zeros([10, 64])])), weight
    )
    np.testing.assert_allclose(found, units.std(0).mean() * 8, rtol=1e-9)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_computes_in_float32(dtype):
    rng = np.random.default_rng(6)
    z1, z2 = (tf.cast(z, dtype) for z in rng.normal(size=(2, 8, 16)))
    found = contrastive.nt_xent(z1, z2, 0.1).loss
    assert found.dtype == tf.float32
    np.testing.assert_allclose(
        found,
        naive_nt_xent(tf.cast(z1, tf.float64).numpy(), tf.cast(z2, tf.float64).numpy(), 0.1),
        rtol=1e-4,
    )


def test_replicas_give_the_loss_of_the_whole_batch(replicas):
    rng = np.random.default_rng(7)
    count, rows = replicas.num_replicas_in_sync, 3
    z1, z2, q = (tf.constant(rng.normal(size=(count * rows, 4))) for _ in range(3))
    valid = tf.constant(rng.random(count * rows) < 0.7)
    negatives = contrastive.l2_normalize(tf.constant(rng.normal(size=(5, 4))))

    groups = tf.constant(rng.integers(0, 3, count * rows))

    def losses(z1, z2, q, valid, groups):
        with tf.GradientTape() as tape:
            tape.watch([z1, z2])
            keys = tf.stack([z2, q], 1)
            found = [
                contrastive.nt_xent(z1, z2, 0.2, valid),
                contrastive.nt_xent(z1, q, 0.2, valid, keys, negatives),
                contrastive.in_batch(z1, q, 0.2, valid, groups),
                contrastive.nt_xent(z1, z2, 0.2, groups=groups),
            ]
            total = tf.add_n([tf.reduce_sum(f.loss) for f in found])
        return (
            [f.loss for f in found]
            + tape.gradient(total, [z1, z2])
            + [contrastive.embedding_std(z1, tf.ones(z1.shape[0]))[None]]
        )

    def mine(x):
        return replicas.experimental_distribute_values_from_function(
            lambda context: x[context.replica_id_in_sync_group * rows :][:rows]
        )

    @tf.function
    def together(*parts):
        return replicas.run(losses, parts)

    parts = [
        replicas.experimental_local_results(x)
        for x in together(*map(mine, (z1, z2, q, valid, groups)))
    ]
    for whole, split in zip(losses(z1, z2, q, valid, groups), parts):
        joined = split[0] if whole.shape[0] == 1 else tf.concat(split, 0)
        np.testing.assert_allclose(joined, whole, rtol=1e-10, atol=1e-12)


def test_compiles():
    z = tf.random.stateless_normal([4, 3], [1, 2])
    for loss in (
        lambda: contrastive.nt_xent(z, z[::-1]).loss,
        lambda: contrastive.info_nce(z, z[::-1], z).loss,
    ):
        np.testing.assert_allclose(tf.function(loss, jit_compile=True)(), loss(), rtol=1e-5)


@pytest.mark.parametrize(
    "temperature,decoupled,value",
    [
        (0.1, True, -3.1622361210),
        (0.5, True, 2.5586777296),
        (0.1, False, 0.0476563458),
    ],  # the first: lightly 1.6
)
def test_decoupled_losses_of_a_second_implementation(temperature, decoupled, value):
    found = contrastive.nt_xent(X, Y, temperature, decoupled=decoupled)
    assert float(tf.reduce_mean(found.loss)) == pytest.approx(value, abs=1e-9)


def test_nearest_neighbors_as_positives():
    queue = contrastive.l2_normalize(normal(2, 128, 64))
    near = contrastive.nearest(X, queue), contrastive.nearest(Y, queue)
    for z, indices in zip(near, ([41, 26, 75, 120, 21], [50, 65, 58, 80, 94])):
        np.testing.assert_array_equal(z[:5], tf.gather(queue, indices))
    for temperature, value in ((0.1, 3.9522127694), (0.5, 3.4522228814)):
        losses = [
            contrastive.in_batch(z, normal(seed), temperature).loss for z, seed in zip(near, (4, 3))
        ]
        assert np.mean(losses) == pytest.approx(value, abs=1e-9)


def test_keys_of_the_other_view_among_those_of_the_batch():
    for temperature, value in ((0.2, 2.9015319468), (1.0, 13.8712595317)):  # MoCo v3
        losses = [
            contrastive.in_batch(normal(seed), k, temperature).loss for seed, k in ((3, Y), (4, X))
        ]
        assert 2 * temperature * np.sum(np.mean(losses, 1)) == pytest.approx(value, abs=1e-9)


def test_positives_of_the_same_label_against_naive_loops():
    labels = np.array([0, 1, 0, 2, -1, -1, 1, 0])
    z = np.stack([X[:8], Y[:8]], 1).reshape(16, -1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits, losses = z @ z.T / 0.1, []
    for i in range(16):
        others = [j for j in range(16) if j != i]
        label = labels[i // 2]
        positives = [
            j for j in others if j // 2 == i // 2 or (label >= 0 and labels[j // 2] == label)
        ]
        total = np.log(np.exp(logits[i, others]).sum())
        losses.append(-np.mean([logits[i, p] - total for p in positives]))
    found = contrastive.nt_xent(X[:8], Y[:8], 0.1, labels=labels)
    np.testing.assert_allclose(found.loss, np.reshape(losses, [8, 2]).mean(1), rtol=1e-12)
    alone = contrastive.nt_xent(X[:8], Y[:8], 0.1, labels=np.arange(8))
    np.testing.assert_allclose(alone.loss, contrastive.nt_xent(X[:8], Y[:8], 0.1).loss, rtol=1e-12)
    np.testing.assert_array_equal(alone.accuracy, contrastive.nt_xent(X[:8], Y[:8], 0.1).accuracy)

"""Sinkhorn's codes: their marginals, a naive form of the published loop, columns that take no part,
replicas."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.losses.sinkhorn import sinkhorn


def published(scores, epsilon, iterations):
    """SwAV's loop as it is described: Q [K, B] scaled to sum 1; rows to 1/K each, columns to 1/B
    each; at last times B."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * k
        q /= q.sum(0, keepdims=True) * b
    return (q * b).T


@pytest.mark.parametrize("rows,prototypes,iterations", [(8, 3, 3), (5, 12, 1), (30, 7, 5)])
def test_the_published_loop(rows, prototypes, iterations):
    scores = np.random.default_rng(rows).uniform(-1, 1, (rows, prototypes))
    found = sinkhorn(tf.constant(scores), 0.05, iterations)
    np.testing.assert_allclose(found, published(scores, 0.05, iterations), rtol=1e-9)


def test_marginals():
    """Rows are distributions; after many iterations all prototypes are used alike."""
    scores = tf.constant(np.random.default_rng(0).uniform(-1, 1, (40, 8)))
    codes = sinkhorn(scores, 0.2, 200).numpy()
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(codes.sum(0), 40 / 8, rtol=1e-9)


def test_inactive_rows_take_no_part():
    scores = np.random.default_rng(1).uniform(-1, 1, (9, 4))
    scores[5:] *= 100  # whatever stands there
    found = sinkhorn(tf.constant(scores), active=tf.range(9) < 5, own=7).numpy()
    np.testing.assert_allclose(found[:5], published(scores[:5], 0.05, 3), rtol=1e-9)
    assert np.all(found[5:] == 0) and found.shape == (7, 4)


def test_large_scores_stay_finite_and_no_gradient_flows():
    scores = tf.constant([[50.0, -50.0], [60.0, 10.0]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        codes = sinkhorn(scores)
    assert np.all(np.isfinite(codes)) and tape.gradient(codes, scores) is None


def test_replicas_assign_together(replicas):
    count = replicas.num_replicas_in_sync
    scores = tf.constant(np.random.default_rng(2).uniform(-1, 1, (4 * count, 5)))
    parts = replicas.experimental_distribute_values_from_function(
        lambda context: scores[4 * context.replica_id_in_sync_group :][:4]
    )
    found = replicas.experimental_local_results(
        tf.function(lambda x: replicas.run(sinkhorn, (x,)))(parts)
    )
    np.testing.assert_allclose(tf.concat(found, 0), published(scores.numpy(), 0.05, 3), rtol=1e-9)

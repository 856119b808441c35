"""k-means against scikit-learn and NumPy, on one device and on replicas; whitening against its
definition."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.losses.kmeans import lloyd, split_empty, whitening


def blobs(count=90, clusters=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=[clusters, 5])[rng.integers(0, clusters, count)] * 2 + rng.normal(
        size=[count, 5]
    )


def naive(rows, centroids, iterations, spherical=False):
    """Row by row."""
    if spherical:
        rows, centroids = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, centroids))

    def nearest():
        return np.array([np.argmin([((x - c) ** 2).sum() for c in centroids]) for x in rows])

    for _ in range(iterations):
        labels = nearest()
        centroids = np.stack(
            [
                rows[labels == k].mean(0) if (labels == k).any() else c
                for k, c in enumerate(centroids)
            ]
        )
        if spherical:
            centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    labels = nearest()
    return centroids, labels, ((rows - centroids[labels]) ** 2).sum()


def assert_same(found, expected):
    np.testing.assert_allclose(found.centroids, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.labels, expected[1])
    np.testing.assert_allclose(found.objective, expected[2], rtol=1e-9)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_lloyd_is_the_naive_algorithm(spherical, chunk):
    rows = blobs()
    assert_same(
        lloyd(rows, rows[:6], 5, spherical, split=False, chunk=chunk),
        naive(rows, rows[:6], 5, spherical),
    )


def test_lloyd_is_scikit_learns():
    from sklearn.cluster import KMeans

    rows = blobs(300, 5, seed=1)
    theirs = KMeans(5, init=rows[:5], n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(rows)
    ours = tf.function(lambda x: lloyd(x, x[:5], 15))(tf.constant(rows))
    assert_same(ours, (theirs.cluster_centers_, theirs.labels_, theirs.inertia_))


def test_the_objective_never_rises():
    rows = blobs(200)
    found = [float(lloyd(rows, rows[:12], i, split=False).objective) for i in range(8)]
    assert (
        all(later <= earlier + 1e-9 for earlier, later in zip(found, found[1:]))
        and found[-1] < found[0]
    )


def test_rows_without_weight_are_not_there():
    """Zeros stand for images that cannot be read."""
    rows = blobs()
    holes = np.insert(rows, [3, 50], 0.0, axis=0)
    weights = np.insert(np.ones(len(rows)), [3, 50], 0.0)
    found = lloyd(holes, rows[:6], 4, weights=weights, split=False, chunk=16)
    assert list(np.flatnonzero(np.array(found.labels) == -1)) == [3, 51]
    assert_same(found._replace(labels=found.labels[weights > 0]), naive(rows, rows[:6], 4))


@pytest.mark.parametrize("spherical", [False, True])
def test_replicas_share_the_rows(replicas, spherical):
    rows = tf.constant(blobs(91))
    cluster = lambda x: lloyd(x, x[:6], 6, spherical, chunk=8)  # noqa: E731
    each = tf.function(lambda: replicas.run(cluster, [rows]))()
    for found in zip(*map(replicas.experimental_local_results, each)):
        assert_same(type(each)(*found), tuple(cluster(rows)))


def test_it_compiles_and_repeats():
    rows = tf.constant(blobs(64), tf.float32)
    cluster = tf.function(lambda x: lloyd(x, tf.zeros([4, 5]), 5, chunk=16), jit_compile=True)
    first, second = cluster(rows), cluster(rows)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.labels, lloyd(rows, tf.zeros([4, 5]), 5, chunk=16).labels)


def test_empty_clusters_take_halves_of_the_largest():
    centroids = np.array([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0], [3.0, 3.0, 3.0], [9.0, 9.0, 9.0]])
    found, counts = split_empty(tf.constant(centroids), tf.constant([8.0, 0.0, 3.0, 0.0]), 0.5)
    # 8 becomes 4 and 4; then the first of these, 2 and 2.
    np.testing.assert_allclose(counts, [2, 4, 3, 2])
    np.testing.assert_allclose(found[1], [1.5, 1.0, -6.0])
    np.testing.assert_allclose(found[0], [0.5 * 0.5, 3 * 1.5, -2 * 0.5])
    np.testing.assert_allclose(found[3], [0.5 * 1.5, 3 * 0.5, -2 * 1.5])
    np.testing.assert_allclose(found[2], centroids[2])


def test_with_splitting_no_cluster_stays_empty():
    """From starts so far away that without it no row ever goes to them."""
    rows = blobs(200)
    start = np.concatenate([rows[:1], np.full([7, 5], 1e3)])
    used = [len(np.unique(lloyd(rows, start, 12, split=split).labels)) for split in (False, True)]
    assert used == [1, 8]


def test_fewer_rows_than_clusters_are_refused():
    with pytest.raises(UserError, match="4 clusters need as many images at least, and there are 3"):
        lloyd(np.zeros([3, 2]), np.zeros([4, 2]), 1)


def test_whitened_rows_have_the_identity_as_covariance():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    rows = rng.normal(size=[500, 8]) @ rng.normal(size=[8, 8]) + 3
    matrix = whitening(np.cov(rows.T), 5)
    white = (rows - rows.mean(0)) @ matrix
    np.testing.assert_allclose(np.cov(white.T), np.eye(5), atol=1e-8)
    np.testing.assert_allclose(
        np.abs(white), np.abs(PCA(5, whiten=True).fit_transform(rows)), rtol=1e-6, atol=1e-8
    )
    assert (matrix[np.abs(matrix).argmax(0), range(5)] > 0).all()
    flat = rows.copy()
    flat[:, 0] = 1.0
    with pytest.raises(
        UserError, match="8 whitened features are asked for, and the rows vary in 7 dimensions"
    ):
        whitening(np.cov(flat.T), 8)

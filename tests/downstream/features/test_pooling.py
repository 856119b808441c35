import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.features.pooling import pool, pooled_shape
from tfssl.errors import UserError

# Side of the map that each endpoint has at 224 pixels (ResNet of stride 32), and at 64 pixels with
# the patch tasks' strides; then what remains per width, as the 2019 study's code gives it: k ->
# [(side, features) of root, block1..4].
SIDES_224, SIDES_64 = (56, 56, 28, 14, 7), (32, 32, 16, 8, 8)
STUDY = [
    (SIDES_224, 4, [(11, 7744), (5, 6400), (4, 8192), (2, 4096), (1, 2048)]),
    (SIDES_224, 8, [(8, 8192), (4, 8192), (2, 4096), (2, 8192), (1, 4096)]),
    (SIDES_224, 12, [(6, 6912), (3, 6912), (2, 6144), (1, 3072), (1, 6144)]),
    (SIDES_224, 16, [(5, 6400), (2, 4096), (2, 8192), (1, 4096), (1, 8192)]),
    (SIDES_64, 4, [(10, 6400), (5, 6400), (4, 8192), (2, 4096), (2, 8192)]),
    (SIDES_64, 8, [(8, 8192), (4, 8192), (2, 4096), (2, 8192), (1, 4096)]),
]


@pytest.mark.parametrize("sides, width, expected", STUDY)
def test_max_pooling_leaves_what_the_study_had(sides, width, expected):
    for side, factor, (left, features) in zip(sides, (16, 64, 128, 256, 512), expected):
        shape = pooled_shape((side, side, factor * width))
        assert shape == (left, left, factor * width)
        assert np.prod(shape) == features <= 9000


@pytest.mark.parametrize("mode, reduce", [("max", np.max), ("avg", np.mean)])
def test_values_are_those_of_a_naive_loop(mode, reduce):
    maps = np.random.default_rng(0).normal(size=[2, 7, 7, 3]).astype(np.float32)
    pooled = pool(
        tf.constant(maps), mode, target=30
    ).numpy()  # stride = ceil(sqrt(147 / 30)) = 3, so 2x2x3 remain
    naive = [
        [
            reduce(m[3 * i : 3 * i + 3, 3 * j : 3 * j + 3], (0, 1))
            for i in range(2)
            for j in range(2)
        ]
        for m in maps
    ]
    np.testing.assert_allclose(pooled, np.reshape(naive, [2, 12]), rtol=1e-6)


@pytest.mark.parametrize("mode, reduce", [("adaptive_max", np.max), ("adaptive_avg", np.mean)])
def test_adaptive_regions_cover_the_map(mode, reduce):
    maps = np.random.default_rng(0).normal(size=[2, 7, 7, 2]).astype(np.float32)
    pooled = pool(
        tf.constant(maps), mode, target=20
    ).numpy()  # sqrt(20 / 2) = 3.2: a side of 3 gives 18, of 4 gives 32
    bounds = [(0, 3), (2, 5), (4, 7)]  # of 7 in three: floor(i * 7 / 3) .. ceil((i + 1) * 7 / 3)
    naive = [[reduce(m[a:b, c:d], (0, 1)) for a, b in bounds for c, d in bounds] for m in maps]
    np.testing.assert_allclose(pooled, np.reshape(naive, [2, 18]), rtol=1e-5)


@pytest.mark.parametrize(
    "side, channels", [(56, 64), (28, 512), (14, 1024), (7, 2048), (7, 8192), (10, 91)]
)
def test_adaptive_side_is_that_of_fractional_pooling(side, channels):
    """The study used tf.nn.fractional_max_pool with the ratio clip(H / t - 1e-5, 1, H)."""
    options = {int(np.floor((9000 / channels) ** 0.5)), int(np.ceil((9000 / channels) ** 0.5))}
    best = min(abs(channels * t * t - 9000) for t in options)
    target = max(1, max(t for t in options if abs(channels * t * t - 9000) == best))
    ratio = float(np.clip(side / target - 1e-5, 1, side))
    output = tf.nn.fractional_max_pool(tf.zeros([1, side, side, 1]), [1, ratio, ratio, 1], seed=1)[
        0
    ]
    assert pooled_shape((side, side, channels), "adaptive_max")[0] == output.shape[1]


def test_small_maps_and_vectors_are_only_flattened():
    maps = tf.reshape(
        tf.range(2 * 9000, dtype=tf.float32), [2, 30, 30, 10]
    )  # 9000 values: not more than the target
    np.testing.assert_array_equal(pool(maps), np.arange(18000).reshape(2, 9000))
    np.testing.assert_array_equal(pool(tf.ones([2, 10000])), np.ones([2, 10000]))


def test_oblong_maps():
    assert pooled_shape((4, 300, 64)) == (1, 100, 64)  # stride ceil(sqrt(76800 / 9000)) = 3
    assert pooled_shape((2, 300, 64)) == (1, 100, 64)  # stride 3 as well, but the map is 2 high


def test_unknown_mode():
    with pytest.raises(UserError, match="'min'.*adaptive_max"):
        pool(tf.ones([1, 4, 4, 1]), "min")

"""Batch normalization: against Keras's own layer, a naive one in NumPy, successive batches, and one
device for two."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones
from tfssl.backbones.norm import (
    BatchNorm,
    GroupNorm,
    LayerNorm,
    Norm,
    debiased,
    frozen_statistics,
    set_statistics,
)
from tfssl.errors import UserError


def rows(*shape, mean=0.5, std=2.0, seed=0):
    return np.random.default_rng(seed).normal(mean, std, shape)


def made(rank=4, channels=5, seed=1, **settings):
    layer = BatchNorm(0.8, 1e-3, **settings)
    layer.build((None,) * (rank - 1) + (channels,))
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 1.5, channels))
    return layer


def with_gradients(layer, x, training=True):
    """Output, gradients of a loss that weighs every value, and the moving statistics after it."""
    x = tf.convert_to_tensor(x)
    weights = tf.cast(tf.reshape(tf.range(tf.size(x)) % 7, x.shape), x.dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_sum(y * y * weights)
    gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
    moving = [getattr(layer, name, None) for name in ("moving_mean", "moving_variance")]
    return [y, *gradients, *moving]


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (8, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_kerass_layer(shape, training):
    ours, theirs = (
        made(len(shape)),
        tf.keras.layers.BatchNormalization(momentum=0.8, fused=True if len(shape) == 4 else None),
    )
    theirs.build((None, *shape[1:]))
    theirs.set_weights(ours.get_weights())
    x = rows(*shape).astype("float32")
    for name, mine, other in zip(
        "y dx dgamma dbeta mean variance".split(),
        with_gradients(ours, x, training),
        with_gradients(theirs, x, training),
    ):
        if len(shape) == 2 and name == "variance" and training:
            # Keras leaves out the factor n / (n - 1) for features, and applies it for maps. Ours is
            # the unbiased one for both.
            other = (other - 0.8 * made(2).moving_variance) * (8 / 7) + 0.8 * made(
                2
            ).moving_variance
        np.testing.assert_allclose(
            mine, other, rtol=1e-4, atol=1e-4 * np.abs(other).max(), err_msg=name
        )


@pytest.mark.parametrize("settings", [{}, {"sync": True}, {"groups": 1}])
def test_equals_a_naive_one_in_float64(float64, settings):
    layer, x = made(**settings), rows(6, 4, 3, 5)
    start_mean, start_variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = layer(x, training=True)
    expected = (x - mean) / np.sqrt(variance + 1e-3) * layer.gamma.numpy() + layer.beta.numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.moving_mean, 0.8 * start_mean + 0.2 * mean, rtol=1e-12)
    np.testing.assert_allclose(
        layer.moving_variance, 0.8 * start_variance + 0.2 * variance * 72 / 71, rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (12, 5)])
def test_groups_are_successive_batches(float64, shape):
    grouped, single, x = made(len(shape), groups=3), made(len(shape)), rows(*shape)
    together = with_gradients(grouped, x)
    weights = (np.arange(x.size) % 7).reshape(shape)
    outputs, gradients = [], []
    for part, weight in zip(np.split(x, 3), np.split(weights, 3)):
        part = tf.constant(part)
        with tf.GradientTape() as tape:
            tape.watch(part)
            y = single(part, training=True)
            loss = tf.reduce_sum(y * y * weight)
        outputs.append(y)
        gradients.append(tape.gradient(loss, [part, single.gamma, single.beta]))
    expected = [
        np.concatenate(outputs),
        np.concatenate([g[0] for g in gradients]),
        sum(g[1] for g in gradients),
        sum(g[2] for g in gradients),
        single.moving_mean,
        single.moving_variance,
    ]
    for mine, other in zip(together, expected):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)


def test_synchronised_replicas_are_one_batch(float64, replicas):
    count = replicas.num_replicas_in_sync
    x = rows(4 * count, 3, 2, 5)
    with replicas.scope():
        layer = made(sync=True)
    weights = tf.cast(tf.reshape(tf.range(x.size) % 7, x.shape), tf.float64)

    @tf.function
    def run(x, weights):
        def step(x, weights):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y * y * weights)
            dx, dgamma, dbeta = tape.gradient(loss, [x, layer.gamma, layer.beta])
            total = tf.distribute.get_replica_context().all_reduce("SUM", [dgamma, dbeta])
            return y, dx, *total

        return replicas.run(step, args=(x, weights))

    def shared(values):
        parts = tf.split(values, count)
        return replicas.experimental_distribute_values_from_function(
            lambda c: parts[c.replica_id_in_sync_group]
        )

    found = [replicas.experimental_local_results(r) for r in run(shared(x), shared(weights))]
    alone = with_gradients(made(), x)
    np.testing.assert_allclose(np.concatenate(found[0]), alone[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.concatenate(found[1]), alone[1], rtol=0, atol=1e-9)
    for mine, other in ((found[2], alone[2]), (found[3], alone[3])):
        for replica in mine:
            np.testing.assert_allclose(replica, other, rtol=1e-11)
    np.testing.assert_allclose(layer.moving_mean.numpy(), alone[4], rtol=1e-12)
    np.testing.assert_allclose(layer.moving_variance.numpy(), alone[5], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_of_short_floats_are_float32(dtype):
    """A mean far from zero: in bfloat16 itself, and from mean squares, the variance would be noise,
    or negative."""
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_" + dtype)
    try:
        grouped, fused = made(groups=2), made()
        x = tf.cast(rows(64, 8, 8, 5, mean=100.0, std=1.0), dtype)
        exact = x.numpy().astype("float64")
        start = grouped.moving_variance.numpy()
        y = grouped(x, training=True)
        fused(x, training=True)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    assert y.dtype == dtype
    halves = [half.reshape(-1, 5) for half in np.split(exact, 2)]
    expected = 0.64 * start + 0.16 * halves[0].var(0, ddof=1) + 0.2 * halves[1].var(0, ddof=1)
    np.testing.assert_allclose(grouped.moving_variance, expected, rtol=1e-5)
    np.testing.assert_allclose(
        fused.moving_variance, 0.8 * start + 0.2 * exact.reshape(-1, 5).var(0, ddof=1), rtol=1e-4
    )


@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"sync": True}])
def test_a_second_pass_leaves_the_statistics_alone(settings):
    layer, x = made(**settings), tf.constant(rows(4, 3, 3, 5), tf.float32)
    before = [v.numpy() for v in (layer.moving_mean, layer.moving_variance)]
    with frozen_statistics():
        frozen = layer(x, training=True)
    np.testing.assert_array_equal(before, [layer.moving_mean, layer.moving_variance])
    np.testing.assert_array_equal(frozen, layer(x, training=True))
    assert np.abs(before[0] - layer.moving_mean.numpy()).min() > 0


@pytest.mark.parametrize("groups,parts", [(1, 1), (3, 1), (1, 3)])
def test_the_initial_statistics_are_forgotten_in_a_few_steps(groups, parts, float64):
    """What a short run keeps of them is 1 / C(T + 9, 9), the product of (1 + t) / (10 + t); with
    0.99 it would be 0.9 after ten steps."""
    layer = BatchNorm(0.99, groups=groups)
    layer.build((None, 5))
    x = np.concatenate([rows(12, 5)] * groups)  # equal groups, whose order does not matter
    for step in range(10):
        with debiased(step, parts):
            for _ in range(parts):
                layer(x, training=True)
    kept = 1 / math.comb(19, 9)
    np.testing.assert_allclose(layer.moving_mean, (1 - kept) * x[:12].mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        layer.moving_variance, (1 - kept) * x[:12].var(0, ddof=1) + kept, rtol=1e-12
    )


@pytest.mark.parametrize(
    "step,keep", [(0, 0.1), (1, 2 / 11), (40, 41 / 50), (890, 0.99), (10**7, 0.99)]
)
def test_what_a_step_keeps_grows_to_the_momentum(step, keep, float64):
    layer, x = BatchNorm(0.99), rows(12, 5)
    layer.build((None, 5))
    layer.moving_mean.assign(np.ones(5))
    with debiased(tf.Variable(step, dtype=tf.int64)):
        layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, keep + (1 - keep) * x.mean(0), rtol=1e-12)
    layer(x, training=True)  # outside, as in a published module, it is the layer's own
    np.testing.assert_allclose(
        layer.moving_mean, 0.99 * keep + (1 - 0.99 * keep) * x.mean(0), rtol=1e-12
    )


def test_groups_and_replicas_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        BatchNorm(sync=True, groups=2)
    with pytest.raises(UserError, match="bn_groups=2 must be .* 1 with bn_sync"):
        Norm(sync=True, groups=2)


def test_a_policy_makes_the_layers_of_networks_and_of_heads():
    plain, grouped = Norm(), Norm(groups=4)
    assert plain.plain and not grouped.plain and not Norm(sync=True).plain
    layer = grouped.layer("bn", 0.8, 0.01)
    assert (type(layer), layer.name, layer.momentum, layer.epsilon, layer.groups) == (
        BatchNorm,
        "bn",
        0.8,
        0.01,
        4,
    )
    by_layer = Norm("layer", sync=True)
    assert isinstance(by_layer.layer("ln"), tf.keras.layers.LayerNormalization)
    head = by_layer.batch("bn", center=False)
    assert isinstance(head, BatchNorm) and head.sync and not head.center
    network = backbones.build("resnet18_v1", 1 / 16, norm_policy=grouped)
    set_statistics(network, sync=True)
    norms = [layer for layer in network.submodules if isinstance(layer, BatchNorm)]
    assert len(norms) == 20 and all(layer.sync and layer.groups == 1 for layer in norms)
    assert network.norm_policy == Norm(sync=True) == network.twin().norm_policy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_normalization_of_a_large_mean(dtype):
    """Rows far from zero keep their digits: moments are float32's, of the values as bfloat16 has
    them."""
    x = tf.cast(rows(3, 4, 5, mean=100.0), dtype)
    layer = LayerNorm(
        epsilon=1e-3, name="ln", dtype=None if dtype == "float32" else "mixed_bfloat16"
    )
    layer.build(x.shape)
    layer.gamma.assign(np.arange(1.0, 6)), layer.beta.assign(np.arange(5.0))
    y, exact = layer(x), x.numpy().astype(np.float64)
    assert y.dtype == x.dtype
    mean, variance = exact.mean(-1, keepdims=True), exact.var(-1, keepdims=True)
    expected = (exact - mean) / np.sqrt(variance + 1e-3) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(
        tf.cast(y, tf.float64), expected, rtol=1e-4 if dtype == "float32" else 0.01, atol=1e-3
    )


def test_an_untrainable_layer_uses_its_moving_statistics():
    layer, x = made(2), tf.constant(rows(4, 5), tf.float32)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_is_that_of_a_loop_and_its_gradient_is_kerass(groups, float64):
    layer, keras = GroupNorm(groups), tf.keras.layers.GroupNormalization(groups)
    x, rng = rows(2, 5, 4, 12, mean=3.0), np.random.default_rng(2)
    for one in (layer, keras):
        one.build(x.shape)
    for ours, other in zip(layer.variables, keras.variables):
        ours.assign(rng.uniform(0.5, 1.5, 12))
        other.assign(ours)
    (y, *gradients), (_, *expected) = (with_gradients(one, x)[:4] for one in (layer, keras))
    gamma, beta = (v.numpy() for v in (layer.gamma, layer.beta))
    for n in range(2):
        for g in np.split(np.arange(12), groups):
            part = x[n][..., g]
            normal = (part - part.mean()) / np.sqrt(part.var() + 1e-3)
            np.testing.assert_allclose(y.numpy()[n][..., g], normal * gamma[g] + beta[g], rtol=1e-9)
    for ours, other in zip(tf.nest.flatten(gradients), tf.nest.flatten(expected)):
        np.testing.assert_allclose(ours, other, rtol=1e-7, atol=1e-9)

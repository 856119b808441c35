"""The feature pyramid against a naive one in NumPy, and as a part of a backbone."""

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise

from tfssl.backbones import Norm, build, necks
from tfssl.backbones.norm import BatchNorm, set_statistics
from tfssl.errors import UserError


def test_parameters_and_sizes_of_the_levels_on_a_resnet50():
    """Kernels of 512, 1024 and 2048 to 256 channels, three 3x3 of 256, and another for the coarsest
    level."""
    model = build("resnet50_v1", neck="fpn", neck_tower=4)
    run = tf.function(lambda x: model(x, training=False), autograph=False)
    endpoints = run.get_concrete_function(tf.TensorSpec([2, 224, 224, 3])).structured_outputs
    kernels = sum(int(np.prod(v.shape)) for v in model.fpn.trainable_variables if v.shape.rank == 4)
    assert kernels == 917_504 + 1_769_472 + 589_824
    sides = {name: endpoints[name].shape[1:] for name in ("p3", "p4", "p5", "p6")}
    assert sides == {f"p{i}": (side, side, 256) for i, side in ((3, 28), (4, 14), (5, 7), (6, 4))}
    tower = {f"t{i}": endpoints[f"t{i}"].shape[1:] for i in (3, 4, 5, 6)}
    assert list(tower.values()) == list(sides.values()) and model.levels == tuple(tower)
    assert sum(int(np.prod(v.shape)) for v in model.tower.variables) == 4 * (589_824 + 2 * 256)
    trunk = build("resnet50_v1")
    assert (
        list(endpoints)
        == [*trunk.endpoint_names[:-1], *sides, *tower, "pre_logits"]
        == list(model.endpoint_names)
    )
    assert endpoints["pre_logits"].shape == (2, 2048 + 256) and model.endpoint_kinds["p6"] == "map"
    own = {"neck": "fpn", "neck_width": 256, "neck_tower": 4}
    assert model.config() == {**trunk.config(), **own}
    assert model.twin().config() == model.config()


def conv(x, kernel, stride=1):
    """With zeros around: NxHxWxC -> NxhxwxF, h = ceil(H / stride)."""
    size = len(kernel)
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = (range(0, n, stride) for n in x.shape[1:3])
    patches = [[padded[:, i : i + size, j : j + size] for j in columns] for i in rows]
    return np.moveaxis(
        np.array([[np.tensordot(p, kernel, 3) for p in row] for row in patches]), 2, 0
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet18_v1", "resnet18_v2"])
def test_equals_a_naive_pyramid(float64, name, training):
    """Of maps with odd sides; v2's maps are sums, which a normalization and a ReLU follow first."""
    model = build(name, 1 / 16, "small", neck="fpn", neck_width=6, neck_tower=2, bn_epsilon=0.01)
    images = np.random.default_rng(0).uniform(-1, 1, [2, 18, 11, 3])
    model(images)
    randomise(model)
    values = {v.name.split("/fpn/")[1][:-2]: v.numpy() for v in model.fpn.variables}
    tower = {v.name.split("/tower/")[1][:-2]: v.numpy() for v in model.tower.variables}

    def norm(x, name):
        gamma, beta, mean, var = (
            values[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        if training:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return gamma * (x - mean) / np.sqrt(var + 0.01) + beta

    endpoints = {key: np.asarray(value) for key, value in model(images, training=training).items()}
    sums = []
    for i in reversed(range(3)):
        x = endpoints[f"block{i + 2}"]
        x = np.maximum(norm(x, f"opening_bn{i}"), 0) if name.endswith("v2") else x
        x = norm(conv(x, values[f"lateral{i}/kernel"]), f"lateral_bn{i}")
        if sums:
            x = x + sums[0].repeat(2, 1).repeat(2, 2)[:, : x.shape[1], : x.shape[2]]
        sums.insert(0, x)
    for i, x in enumerate([*sums, None]):
        x = endpoints["p3"] if x is None else x
        level = norm(conv(x, values[f"output{i}/kernel"], 2 if i == 3 else 1), f"output_bn{i}")
        largest = np.abs(level).max()
        np.testing.assert_allclose(
            endpoints[f"p{i + 1}"], level, rtol=0, atol=1e-10 * largest, err_msg=f"p{i + 1}"
        )
        for j in range(2):  # of the tower: two groups of three channels, and the same at all levels
            level = conv(level, tower[f"conv{j}/kernel"])
            groups = level.reshape([2, -1, 2, 3])
            mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
            level = ((groups - mean) / np.sqrt(var + 0.001)).reshape(level.shape)
            level = np.maximum(tower[f"norm{j}/gamma"] * level + tower[f"norm{j}/beta"], 0)
        np.testing.assert_allclose(
            endpoints[f"t{i + 1}"], level, rtol=0, atol=1e-10 * level.max(), err_msg=f"t{i + 1}"
        )


def test_the_trunk_is_itself_and_its_statistics_are_the_necks():
    trunk, model = (
        build("resnet18_v1", 1 / 16, "small"),
        build("resnet18_v1", 1 / 16, "small", neck="fpn", neck_width=4),
    )
    trunk.build((None, 16, 16, 3)), model.build((None, 16, 16, 3))
    assert [v.name for v in model.variables][: len(trunk.variables)] == [
        v.name for v in trunk.variables
    ]
    set_statistics(model, groups=2)
    norms = [layer for layer in model.submodules if isinstance(layer, BatchNorm)]
    assert len(norms) == 20 + 3 + 4 and {layer.groups for layer in norms} == {2}
    assert model.norm_policy == Norm(groups=2) == model.twin().norm_policy


@pytest.mark.parametrize("tower", [0, 1])
def test_what_tasks_read_of_images_and_of_pixels(float64, tower):
    """The vector by NumPy; the sum of the levels, whose sides here halve exactly; and both send
    gradients to all of the neck's last levels."""
    model = build("resnet18_v2", 1 / 16, "small", neck="fpn", neck_width=6, neck_tower=tower)
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, [2, 32, 32, 3]))
    with tf.GradientTape(persistent=True) as tape:
        endpoints = model(images, training=True)
        merged = model.merged(endpoints)
        vector, total = tf.reduce_sum(endpoints["pre_logits"]), tf.reduce_sum(tf.square(merged))
    levels = [np.asarray(endpoints[name]) for name in model.levels]
    pooled = np.mean([np.maximum(level, 0).mean((1, 2)) for level in levels], 0)
    np.testing.assert_allclose(endpoints["pre_logits"][:, -6:], pooled, rtol=1e-12)
    trunk = model.trunk(images, training=True)["pre_logits"]
    np.testing.assert_allclose(endpoints["pre_logits"][:, :-6], trunk, rtol=1e-12)
    enlarged = [x.repeat(2**i, 1).repeat(2**i, 2) for i, x in enumerate(levels)]
    np.testing.assert_allclose(merged, np.sum(enlarged, 0), atol=1e-12)
    neck = [v for v in model.trainable_variables if "/fpn/" in v.name or "/tower/" in v.name]
    for read, variables in ((vector, model.trainable_variables), (total, neck)):
        assert all(gradient is not None for gradient in tape.gradient(read, variables))


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_twice(side):
    x = np.random.default_rng(0).normal(size=[2, (side + 1) // 2, 3, 4])
    found = necks.twice(tf.constant(x), tf.zeros([2, side, 5, 1]))
    np.testing.assert_array_equal(found, x.repeat(2, 1).repeat(2, 2)[:, :side, :5])


def test_what_a_neck_refuses():
    with pytest.raises(UserError, match="neck=pan: choose one of fpn"):
        build("resnet18_v1", neck="pan")
    with pytest.raises(UserError, match="neck_width=0"):
        build("resnet18_v1", neck="fpn", neck_width=0)
    with pytest.raises(UserError, match="neck_tower=-1"):
        build("resnet18_v1", neck="fpn", neck_tower=-1)
    vectors = tf.keras.Sequential([tf.keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(UserError, match="needs maps whose sides halve"):
        build(vectors, neck="fpn").build(tf.TensorShape([None, 16, 16, 3]))
    with pytest.raises(UserError, match="keep says"):
        build("resnet18_v1", 1 / 16, "small", neck="fpn")(
            tf.zeros([1, 16, 16, 3]), keep=tf.zeros([1, 2], tf.int32)
        )

"""ResNets against published sizes, the 2019 study's geometry, and a naive network in NumPy, which
shares no code."""

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise, trainable

from tfssl.backbones import build
from tfssl.backbones.layers import Conv
from tfssl.errors import UserError

MAPS = ("after_root", "block1", "block2", "block3", "block4")
TINY = 1 / 16  # four channels in the root


@pytest.fixture
def policy(request):
    """Keras's dtype policy during the test; float64 is how exactness is tested."""
    tf.keras.mixed_precision.set_global_policy(request.param)
    tf.keras.backend.set_floatx("float64" if request.param == "float64" else "float32")
    yield request.param
    tf.keras.mixed_precision.set_global_policy(None)
    tf.keras.backend.set_floatx("float32")


in_float64 = pytest.mark.parametrize("policy", ["float64"], indirect=True)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


# The study's networks without logits, computed from its code; its k is four times our width.
STUDY = {
    "resnet50_v1": {
        0.25: 1480976,
        0.5: 5892640,
        1: 23508032,
        2: 93907072,
        3: 211197120,
        4: 375378176,
    },
    "resnet50_v2": {
        0.25: 1479056,
        0.5: 5888800,
        1: 23500352,
        2: 93891712,
        3: 211174080,
        4: 375347456,
    },
}


@pytest.mark.parametrize("name,width", [(name, width) for name in STUDY for width in STUDY[name]])
def test_parameters_of_every_width_of_the_study(name, width):
    assert trainable(name, width) == STUDY[name][width]


# torchvision's published counts for v1; the study's own for v2.
PUBLISHED = {
    "resnet18_v1": 11689512,
    "resnet34_v1": 21797672,
    "resnet50_v1": 25557032,
    "resnet101_v1": 44549160,
    "resnet152_v1": 60192808,
    "resnet50_v2": 25549352,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_with_1000_classes(name):
    features = 512 if name.startswith(("resnet18", "resnet34")) else 2048
    assert trainable(name, 1) + 1000 * features + 1000 == PUBLISHED[name]


@pytest.mark.parametrize("width,root", [(0.25, 16), (0.3, 19), (1 / 128, 1), (1.5, 96)])
def test_any_width(width, root):
    endpoints = build("resnet18_v1", width, stem="small")(tf.zeros([1, 8, 8, 3]), False)
    channels = [endpoints[name].shape[-1] for name in (*MAPS, "pre_logits")]
    assert channels == [root, root, 2 * root, 4 * root, 8 * root, 8 * root]


@pytest.mark.parametrize("name", ["resnet18_v1", "resnet50_v2"])
@pytest.mark.parametrize(
    "stem,side,sides",
    [
        ("imagenet", 224, [56, 56, 28, 14, 7]),
        ("imagenet", 64, [16, 16, 8, 4, 2]),
        ("small", 32, [32, 32, 16, 8, 4]),
        ("patch", 64, [32, 32, 16, 8, 8]),
        ("stride16", 224, [56, 56, 28, 14, 14]),
    ],
)
def test_endpoints_have_the_shapes_of_the_study(name, stem, side, sides):
    model = build(name, TINY, stem)
    run = tf.function(lambda x: model(x, False), autograph=False)
    endpoints = run.get_concrete_function(tf.TensorSpec([2, side, side, 3])).structured_outputs
    bottleneck = 4 if "50" in name else 1
    channels = [4, 4 * bottleneck, 8 * bottleneck, 16 * bottleneck, 32 * bottleneck]
    assert list(endpoints) == [*MAPS, "pre_logits"] == list(model.endpoint_names)
    for endpoint, height, depth in zip(MAPS, sides, channels):
        assert endpoints[endpoint].shape == (2, height, height, depth)
    assert endpoints["pre_logits"].shape == (2, 32 * bottleneck)


def floor_formula(n, size, stride):
    """PyTorch's output size of a window with zeros around."""
    return (n + 2 * (size // 2) - size) // stride + 1


@pytest.mark.parametrize("stem", ["imagenet", "small", "patch"])
def test_odd_sizes_known_and_unknown_beforehand(stem):
    model = build("resnet18_v2", TINY, stem)
    run = tf.function(
        lambda x: model(x, False), input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    for height, width in ((33, 97), (50, 31)):
        images = tf.constant(random_images(2, height, width, 3), tf.float32)
        known, unknown = model(images, False), run(images)
        root = {"imagenet": (7, 2), "small": (3, 1), "patch": (7, 1)}[stem]
        sides = [[floor_formula(n, *root) for n in (height, width)]]
        if stem != "small":
            sides[0] = [floor_formula(n, 3, 2) for n in sides[0]]
        for stride in (1, 2, 2, 1 if stem == "patch" else 2):
            sides.append([floor_formula(n, 3, stride) for n in sides[-1]])
        assert [list(known[name].shape[1:3]) for name in MAPS] == sides
        for name in known:
            np.testing.assert_allclose(unknown[name], known[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem,side", [("imagenet", 32), ("small", 8), ("patch", 8)])
def test_smallest_sensible_image(stem, side):
    model = build("resnet18_v1", TINY, stem)
    assert model.min_image_size == side
    assert model(tf.zeros([1, side, side, 3]), False)["block4"].shape[1:3] == (1, 1)
    assert model(tf.zeros([1, side + 1, side + 1, 3]), False)["block4"].shape[1:3] == (2, 2)


# ---- arithmetic: a naive network ----


def window(x, size, stride, dilation=1, same=False, value=0.0):
    """The shifted and strided copies of the padded map that lie under the window's places (i, j).
    `same`: padded as TensorFlow's documentation says of SAME, rather after than before."""
    p = size // 2 * dilation
    height, width = (floor_formula(n, size, stride) for n in x.shape[1:3])
    sides = [(p, p), (p, p)]
    if same:
        height, width = (-(-n // stride) for n in x.shape[1:3])
        totals = [
            max((out - 1) * stride + (size - 1) * dilation + 1 - n, 0)
            for out, n in zip((height, width), x.shape[1:3])
        ]
        sides = [(total // 2, total - total // 2) for total in totals]
    x = np.pad(x, ((0, 0), *sides, (0, 0)), constant_values=value)
    for i in range(size):
        for j in range(size):
            yield i, j, x[:, i * dilation :: stride, j * dilation :: stride][:, :height, :width]


def relu(x):
    return np.maximum(x, 0)


class Naive:
    """The network as its paper draws it, on the variables of one of ours."""

    def __init__(self, model, v2, training, epsilon, same_conv=False, same_pool=False):
        self.same_conv, self.same_pool = same_conv, same_pool
        self.values = {v.name.split("/", 1)[1][:-2]: v.numpy() for v in model.variables}
        self.v2, self.training, self.epsilon = v2, training, epsilon

    def conv(self, x, name, stride, dilation=1):
        kernel = self.values[name + "/kernel"]
        copies = window(x, len(kernel), stride, dilation, self.same_conv)
        return sum(copy @ kernel[i, j] for i, j, copy in copies)

    def norm(self, x, name):
        keys = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (self.values[f"{name}/{key}"] for key in keys)
        if self.training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return gamma * (x - mean) / np.sqrt(variance + self.epsilon) + beta

    def unit(self, x, name, strides, dilations):
        """`strides`, `dilations`: of the unit's convolutions, one after the other."""
        projected = f"{name}/projection/kernel" in self.values
        y, shortcut = x, x
        if self.v2:
            for i, (stride, dilation) in enumerate(zip(strides, dilations), 1):
                y = relu(self.norm(y, f"{name}/bn{i}"))
                if i == 1 and projected:
                    shortcut = self.conv(y, f"{name}/projection", max(strides))
                y = self.conv(y, f"{name}/conv{i}", stride, dilation)
            return shortcut + y
        for i, (stride, dilation) in enumerate(zip(strides, dilations), 1):
            y = self.norm(self.conv(y, f"{name}/conv{i}", stride, dilation), f"{name}/bn{i}")
            y = relu(y) if i < len(strides) else y
        if projected:
            shortcut = self.norm(
                self.conv(x, f"{name}/projection", max(strides)), f"{name}/projection_bn"
            )
        return relu(shortcut + y)

    def run(self, x, units, bottleneck, stem, last_relu, dilated=0):
        """`dilated`: so many last blocks have a dilation where they would have a stride."""
        x = self.conv(x, "root_conv", 2 if stem == "imagenet" else 1)
        x = x if self.v2 else relu(self.norm(x, "root_bn"))
        if stem != "small":
            empty = -np.inf if self.same_pool else 0.0
            copies = window(x, 3, 2, same=self.same_pool, value=empty)
            x = np.max([copy for _, _, copy in copies], axis=0)
        endpoints, dilation = {"after_root": x}, 1
        for block, stride in enumerate((1, 2, 2, 1 if stem == "patch" else 2)):
            before = dilation
            if block >= 4 - dilated:
                stride, dilation = 1, 2 * dilation
            for i in range(units[block]):
                s, d = (stride, before) if i == 0 else (1, dilation)
                strides, dilations = (
                    ((1, s, 1), (1, d, 1)) if bottleneck else ((s, 1), (d, dilation))
                )
                x = self.unit(x, f"block{block + 1}/unit{i}", strides, dilations)
            endpoints[f"block{block + 1}"] = x
        if self.v2:
            x = self.norm(x, "last_bn")
            x = relu(x) if last_relu else x
        endpoints["pre_logits"] = x.mean((1, 2))
        return endpoints


@pytest.mark.parametrize(
    "policy", ["float64", "float32"], indirect=True
)  # float32 has another BN kernel, and oneDNN
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name,units,stem,last_relu",
    [
        ("resnet18_v1", (2, 2, 2, 2), "small", True),
        ("resnet50_v1", (3, 4, 6, 3), "patch", True),
        ("resnet34_v2", (3, 4, 6, 3), "imagenet", True),
        ("resnet50_v2", (3, 4, 6, 3), "imagenet", True),
        ("resnet50_v2", (3, 4, 6, 3), "patch", False),
    ],
)
def test_equals_a_naive_network(policy, name, units, stem, last_relu, training):
    model = build(name, TINY, stem, bn_epsilon=0.01, last_relu=last_relu)
    images = random_images(3, 65 if stem == "imagenet" else 17, 40 if stem == "imagenet" else 22, 3)
    model.build(images.shape)
    randomise(model)
    naive = Naive(
        model, "v2" in name, training, 0.01
    )  # reads the variables before a training call moves the averages
    expected = naive.run(images, units, "50" in name, stem, last_relu)
    endpoints = model(tf.constant(images, policy), training)
    assert list(endpoints) == list(expected)
    for endpoint, value in expected.items():
        assert endpoints[endpoint].dtype == policy
        close = (1e-10 if policy == "float64" else 1e-3) * np.abs(value).max()
        np.testing.assert_allclose(endpoints[endpoint], value, rtol=0, atol=close, err_msg=endpoint)


@in_float64
@pytest.mark.parametrize(
    "name,units,padding",
    [
        ("resnet18_v1", (2, 2, 2, 2), "same"),
        ("resnet50_v1", (3, 4, 6, 3), "simclr"),
        ("resnet50_v2", (3, 4, 6, 3), "same"),
    ],
)
def test_paddings_equal_a_naive_network(policy, name, units, padding):
    """BYOL's network pads as SAME does everywhere; SimCLR's at the max-pool alone."""
    torch, model = build(name, TINY), build(name, TINY, padding=padding)
    images = random_images(2, 64, 41, 3)
    torch.build(images.shape), model.build(images.shape)
    assert [v.name for v in model.variables] == [v.name for v in torch.variables]
    randomise(model)
    naive = Naive(model, "v2" in name, False, 1e-3, padding == "same", same_pool=True)
    expected, found = naive.run(images, units, "50" in name, "imagenet", True), model(images, False)
    torch.set_weights(model.get_weights())
    for endpoint, value in expected.items():
        np.testing.assert_allclose(
            found[endpoint], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=endpoint
        )
        assert np.abs(torch(images, False)[endpoint] - value).max() > 1e-3 * np.abs(value).max()


@pytest.mark.parametrize("channels", [1, 4, 15, 16])
def test_gradient_of_a_strided_kernel_of_one_pixel(channels):
    """By hand. oneDNN's own writes where it must not below 16 channels: repeated, it crashes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal([3, 16, 16, channels]).astype(np.float32)
    by = rng.standard_normal([3, 8, 8, 8]).astype(np.float32)
    conv = Conv(8, 1, 2, "conv")
    conv.build(x.shape)
    expected = np.einsum("nijc,nijd->cd", x[:, ::2, ::2], by)
    for _ in range(200):
        with tf.GradientTape() as tape:
            y = conv(tf.constant(x))
        gradient = tape.gradient(y, conv.kernel, output_gradients=tf.constant(by))
        np.testing.assert_allclose(gradient[0, 0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(y, x[:, ::2, ::2] @ conv.kernel.numpy()[0, 0], atol=1e-4)


@in_float64
@pytest.mark.parametrize(
    "name,units,output_stride,dilated",
    [
        ("resnet18_v1", (2, 2, 2, 2), 8, 2),
        ("resnet50_v2", (3, 4, 6, 3), 16, 1),
        ("resnet50_v1", (3, 4, 6, 3), 8, 2),
    ],
)
def test_dilated_it_equals_a_naive_network_and_the_strided_one_where_that_has_values(
    policy, name, units, output_stride, dilated
):
    """Atrous convolution (Chen et al., arXiv 1606.00915): the same weights, and more locations
    between the old ones."""
    strided, model = build(name, TINY), build(name, TINY, output_stride=output_stride)
    images = random_images(2, 65, 40, 3)
    strided.build(images.shape), model.build(images.shape)
    assert [(v.name, v.shape) for v in model.variables] == [
        (v.name, v.shape) for v in strided.variables
    ]
    assert (model.min_image_size, strided.min_image_size) == (output_stride, 32)
    model.set_weights(randomise(strided).get_weights())
    found, coarse = model(images, False), strided(images, False)
    expected = Naive(model, "v2" in name, False, 1e-3).run(
        images, units, "50" in name, "imagenet", True, dilated
    )
    for i, endpoint in enumerate(MAPS):
        step = 2 ** max(0, i - 4 + dilated)
        for value, other in (
            (found[endpoint], expected[endpoint]),
            (found[endpoint][:, ::step, ::step], coarse[endpoint]),
        ):
            np.testing.assert_allclose(
                value, other, rtol=0, atol=1e-10 * np.abs(other).max(), err_msg=endpoint
            )


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"output_stride": 4}, "output_stride=4: choose 8, 16 or 32"),
        ({"output_stride": 8, "sk_ratio": 0.0625}, "sk_ratio at 0"),
    ],
)
def test_output_strides_that_there_are_not(settings, words):
    with pytest.raises(UserError, match=words):
        build("resnet50_v1", **settings)


@in_float64
def test_moving_averages_keep_the_given_share(policy):
    model = build("resnet18_v1", TINY, "small", bn_momentum=0.75)
    images = random_images(4, 8, 8, 3)
    model(images, False)
    np.testing.assert_array_equal(model.root_norm.moving_mean, np.zeros(4))
    model(images, True)
    root = model.root_conv(images).numpy()
    np.testing.assert_allclose(model.root_norm.moving_mean, 0.25 * root.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(
        model.root_norm.moving_variance, 0.75 + 0.25 * root.var((0, 1, 2), ddof=1), rtol=1e-9
    )


def test_kernels_are_glorot_uniform():
    model = build("resnet50_v1", 0.5)
    model.build((None, None, None, 3))
    kernel = model.block3[0].convs[1].kernel.numpy()  # 3x3, 128 to 128
    limit = np.sqrt(6 / (9 * 128 + 9 * 128))
    assert np.abs(kernel).max() <= limit * (
        1 + 1e-6
    )  # the bound itself, rounded to float32, may be drawn
    assert np.std(kernel) == pytest.approx(limit / np.sqrt(3), rel=0.01)


# ---- the names under which it is stored ----


def test_variable_names_do_not_depend_on_the_caller():
    class Outer(tf.keras.Model):
        def __init__(self):
            super().__init__(name="outer")
            self.backbone = build("resnet18_v2", TINY)

        def call(self, x):
            return self.backbone(x)["pre_logits"]

    alone, outer = build("resnet18_v2", TINY), Outer()
    alone.build((None, None, None, 3))
    tf.function(outer, autograph=False)(tf.zeros([1, 32, 32, 3]))
    names = [v.name for v in alone.variables]
    assert names == [v.name for v in outer.backbone.variables]
    assert len(set(names)) == len(names)
    assert names[0] == "resnet18_v2/root_conv/kernel:0"
    assert "resnet18_v2/block2/unit0/projection/kernel:0" in names
    assert "resnet18_v2/last_bn/moving_variance:0" in names


@pytest.mark.parametrize("name", ["resnet18_v1", "resnet50_v1", "resnet34_v2", "resnet50_v2"])
def test_every_variable_has_a_readable_checkpoint_key_and_no_loss(name, tmp_path):
    model = build(name, 1 / 64)
    model(tf.zeros([1, 32, 32, 3]), True)
    assert model.losses == []
    path = tf.train.Checkpoint(backbone=model).write(str(tmp_path / "checkpoint"))
    keys = [key for key, _ in tf.train.list_variables(path) if key.startswith("backbone/")]
    assert len(keys) == len(model.variables)
    assert "backbone/block2/0/convs/0/kernel/.ATTRIBUTES/VARIABLE_VALUE" in keys


# ---- where it runs ----


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_the_mean_over_the_map_is_float32s(policy):
    """It has none of the low precision's rounding: v1's is block4's mean."""
    endpoints = build("resnet18_v1", TINY, "small")(
        tf.constant(random_images(8, 32, 32, 3), tf.float32), True
    )
    low = getattr(tf, policy[len("mixed_") :])
    assert [endpoints[key].dtype for key in endpoints] == [low] * 5 + [tf.float32]
    mean = endpoints["block4"].numpy().astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(endpoints["pre_logits"], mean, rtol=1e-5, atol=1e-6)


@in_float64
@pytest.mark.parametrize("early", [True, False])
def test_on_replicas_each_sees_its_own_batch(policy, early, replicas):
    """BN normalizes over the replica's rows, and the averages that are read are the replicas'
    mean."""
    strategy = replicas
    halves = np.split(random_images(4, 8, 8, 3), 2)

    @tf.function
    def run(images):
        return strategy.run(features, args=(images,))

    def features(images):
        return model(images, True)["pre_logits"]

    with strategy.scope():
        model = build("resnet18_v1", TINY, "small")
        if early:
            model.build((None, 8, 8, 3))
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )
    results = strategy.experimental_local_results(run(values))

    alone = build("resnet18_v1", TINY, "small")
    alone.build((None, 8, 8, 3))
    assert [v.name for v in model.variables] == [v.name for v in alone.variables]
    for v, mirrored in zip(alone.trainable_variables, model.trainable_variables):
        v.assign(mirrored.numpy())
    for half, result in zip(halves, results):
        np.testing.assert_allclose(result, alone(half, True)["pre_logits"], rtol=0, atol=1e-9)
    roots = [alone.root_conv(half).numpy().mean((0, 1, 2)) for half in halves]
    np.testing.assert_allclose(
        model.root_norm.moving_mean.numpy(), 0.01 * np.mean(roots, axis=0), rtol=1e-6
    )

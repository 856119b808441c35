"""SK-ResNets against published sizes and a naive network in NumPy, which shares no code;
ResNet-200; residuals that begin at 0."""

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise

import tfssl
from tfssl.backbones import build, resnet
from tfssl.backbones.selective_kernel import two_by_two_mean
from tfssl.errors import UserError

TINY = 1 / 16  # four channels in the root
MAPS = ("after_root", "block1", "block2", "block3", "block4")
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


@pytest.fixture
def shallow(monkeypatch):
    """ResNet-50 with few units, each kind of them."""
    units = (2, 1, 1, 1)
    monkeypatch.setitem(resnet.DEPTHS, 50, units)
    return units


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


# ---- published sizes ----


def counted(name, width, **settings):
    """Trainable parameters, and moving statistics, of a network in a graph that never runs: 795
    million take no memory."""
    with tf.Graph().as_default():
        model = build(name, width, **settings)
        model.build((None, None, None, 3))
        groups = model.trainable_variables, model.non_trainable_variables
        return tuple(sum(int(np.prod(v.shape)) for v in group) for group in groups)


def by_arithmetic(depth, width, ratio):
    """The same, layer by layer from the papers: kernels without biases, and four numbers per
    channel of each normalization."""
    kernels = norms = 0

    def conv(size, fan_in, fan_out, norm=True):
        nonlocal kernels, norms
        kernels += size * size * fan_in * fan_out
        norms += fan_out if norm else 0

    root = 64 * width
    if ratio:
        conv(3, 3, root // 2)
        conv(3, root // 2, root // 2)
        conv(3, root // 2, root)
    else:
        conv(7, 3, root)
    fan_in = root
    for i, units in enumerate(BLOCKS[depth]):
        f = root * 2**i
        for unit in range(units):
            conv(1, fan_in, f)
            if ratio:
                squeeze = max(int(f * ratio), 32)
                conv(3, f, 2 * f)
                conv(1, f, squeeze)
                conv(1, squeeze, 2 * f, norm=False)
            else:
                conv(3, f, f)
            conv(1, f, 4 * f)
            if unit == 0:
                conv(1, fan_in, 4 * f)
            fan_in = 4 * f
    return kernels + 2 * norms, 2 * norms


# Millions in Table 1 of arXiv 2006.10029. They are the encoder's alone, without head and logits,
# and count the moving statistics: without them two would be 232 and 353.
PUBLISHED = {
    (50, 1, 0): 24, (50, 1, 0.0625): 35, (50, 2, 0): 94, (50, 2, 0.0625): 140,
    (101, 1, 0): 43, (101, 1, 0.0625): 65, (101, 2, 0): 170, (101, 2, 0.0625): 257,
    (152, 1, 0): 58, (152, 1, 0.0625): 89, (152, 2, 0): 233, (152, 2, 0.0625): 354, (152, 3, 0.0625): 795,
    (50, 4, 0): 375,  # SimCLR v1
}  # fmt: skip


def test_published_parameters():
    for (depth, width, ratio), millions in PUBLISHED.items():
        learned, moving = by_arithmetic(depth, width, ratio)
        found = [round(count / 1e6) for count in (learned, learned + moving)]
        # Table 1's, all of them; SimCLR v1's was counted without.
        assert millions == found[0 if width == 4 else 1], (depth, width, ratio)


@pytest.mark.parametrize(
    "depth,width,ratio",
    [(50, 1, 0), (50, 4, 0), (50, 1, 0.0625), (50, 2, 0.0625), (50, 1, 0.5), (152, 3, 0.0625)],
)
def test_parameters(depth, width, ratio):
    assert counted(f"resnet{depth}_v1", width, sk_ratio=ratio) == by_arithmetic(depth, width, ratio)


@pytest.mark.parametrize("depth", [50, 200])
def test_parameters_of_resnet200(depth):
    """The pre-activated one has a normalization of a unit's inputs where the other has one of its
    outputs, and none of projections."""
    learned, moving = by_arithmetic(depth, 1, 0)
    assert counted(f"resnet{depth}_v1", 1) == (learned, moving)
    units, channels = BLOCKS[depth], [256, 512, 1024, 2048]
    outputs = [*(c for c, n in zip(channels, units) for _ in range(n))]
    inputs = [64, *outputs[:-1]]
    pre_activated = moving + 2 * (sum(inputs) - sum(outputs) - sum(channels) - 64 + 2048)
    assert counted(f"resnet{depth}_v2", 1) == (learned - moving + pre_activated, pre_activated)
    assert depth != 50 or learned - moving + pre_activated == 23500352  # the 2019 study's


# ---- arithmetic: a naive network ----


def relu(x):
    return np.maximum(x, 0)


def conv(x, kernel, stride=1):
    """One output position after the other."""
    size, p = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    height, width = (-(-side // stride) for side in x.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.einsum("nijc,ijcf->nf", patch, kernel)
    return y


def mean_of_four(x, stride):
    """What SimCLR's shortcut averages: at a stride beyond the border there are zeros, at stride 1
    there is nothing."""
    height, width = x.shape[1:3]
    y = np.zeros((len(x), -(-height // stride), -(-width // stride), x.shape[-1]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            window = x[:, i * stride : i * stride + 2, j * stride : j * stride + 2]
            count = window.shape[1] * window.shape[2] if stride == 1 else 4
            y[:, i, j] = window.sum((1, 2)) / count
    return y


class Naive:
    """The network as its papers tell it, on the variables of one of ours."""

    def __init__(self, variables, training, epsilon):
        self.values = {v.name.split("/", 1)[1][:-2]: v.numpy() for v in variables}
        self.training, self.epsilon = training, epsilon

    def conv(self, x, name, stride=1):
        return conv(x, self.values[name + "/kernel"], stride)

    def norm(self, x, name):
        keys = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (self.values[f"{name}/{key}"] for key in keys)
        if self.training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return gamma * (x - mean) / np.sqrt(variance + self.epsilon) + beta

    def select(self, x, name, stride):
        x = relu(self.norm(self.conv(x, f"{name}/conv", stride), f"{name}/bn"))
        first, second = np.split(x, 2, axis=-1)
        summary = (first + second).mean((1, 2), keepdims=True)
        summary = relu(self.norm(self.conv(summary, f"{name}/squeeze"), f"{name}/squeeze_bn"))
        one, two = np.exp(np.split(self.conv(summary, f"{name}/attend"), 2, axis=-1))
        return (one * first + two * second) / (one + two)

    def unit(self, x, name, stride):
        y = relu(self.norm(self.conv(x, f"{name}/conv1"), f"{name}/bn1"))
        y = self.select(y, f"{name}/conv2", stride)
        y = self.norm(self.conv(y, f"{name}/conv3"), f"{name}/bn3")
        if name.endswith("unit0"):
            x = self.norm(
                self.conv(mean_of_four(x, stride), f"{name}/projection"), f"{name}/projection_bn"
            )
        return relu(x + y)

    def run(self, x, units, stem):
        if stem == "small":
            x = self.conv(x, "root_conv")
        else:
            x = relu(
                self.norm(
                    self.conv(x, "deep_root/conv1", 2 if stem == "imagenet" else 1), "deep_root/bn1"
                )
            )
            x = relu(self.norm(self.conv(x, "deep_root/conv2"), "deep_root/bn2"))
            x = self.conv(x, "root_conv")
        x = relu(self.norm(x, "root_bn"))
        if stem != "small":
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            height, width = (-(-side // 2) for side in x.shape[1:3])
            rows = np.max([padded[:, i::2][:, :height] for i in range(3)], axis=0)
            x = np.max([rows[:, :, j::2][:, :, :width] for j in range(3)], axis=0)
        endpoints = {"after_root": x}
        for block, stride in enumerate((1, 2, 2, 1 if stem == "patch" else 2)):
            for i in range(units[block]):
                x = self.unit(x, f"block{block + 1}/unit{i}", stride if i == 0 else 1)
            endpoints[f"block{block + 1}"] = x
        endpoints["pre_logits"] = x.mean((1, 2))
        return endpoints


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "stem,size", [("imagenet", (65, 40)), ("small", (9, 14)), ("patch", (17, 22))]
)
def test_equals_a_naive_network(stem, size, training, shallow, float64):
    model = build("resnet50_v1", TINY, stem, bn_epsilon=0.01, sk_ratio=0.0625)
    images = random_images(3, *size, 3)
    model.build(images.shape)
    randomise(model)
    expected = Naive(model.variables, training, 0.01).run(images, shallow, stem)
    endpoints = model(tf.constant(images), training)
    assert list(endpoints) == list(expected) == list(model.endpoint_names)
    for endpoint, value in expected.items():
        np.testing.assert_allclose(
            endpoints[endpoint], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=endpoint
        )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height,width", [(6, 4), (7, 4), (6, 5), (7, 5), (1, 1)])
def test_mean_of_two_by_two(height, width, stride):
    x = random_images(2, height, width, 3)
    expected = mean_of_four(x, stride)
    np.testing.assert_allclose(
        two_by_two_mean(tf.constant(x), stride), expected, rtol=1e-12, atol=1e-15
    )
    images = tf.TensorSpec([None, None, None, 3], tf.float64)
    unknown = tf.function(lambda x: two_by_two_mean(x, stride), input_signature=[images])
    np.testing.assert_allclose(unknown(tf.constant(x)), expected, rtol=1e-12, atol=1e-15)


# ---- settings ----


@pytest.mark.parametrize(
    "name,settings,words",
    [
        ("resnet18_v1", {"sk_ratio": 0.0625}, ["sk_ratio=0.0625", "resnet50_v1"]),
        ("resnet50_v2", {"sk_ratio": 0.0625}, ["sk_ratio=0.0625", "resnet50_v1"]),
        ("resnet18_v2", {"zero_init_residual": True}, ["resnet18_v2", "resnet18_v1"]),
        ("resnet18_v1", {"zero_init_residual": True, "skip": False}, ["skip=True"]),
        ("resnet50_v1", {"sk_ratio": -1.0}, ["sk_ratio=-1.0", "0.0625"]),
        ("resnet50_v1", {"sk_ratio": float("nan")}, ["sk_ratio=nan"]),
    ],
)
def test_a_setting_that_a_network_has_not_is_refused(name, settings, words):
    with pytest.raises(UserError) as caught:
        build(name, **settings)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name,ratio", [("resnet18_v1", 0.0), ("resnet50_v1", 0.0), ("resnet50_v1", 0.0625)]
)
def test_with_residuals_at_zero_a_unit_is_its_shortcut(name, ratio, shallow):
    """Nothing between the projections then: each block is its first unit's shortcut, through
    ReLU."""
    model = build(name, TINY, "small", sk_ratio=ratio, zero_init_residual=True)
    endpoints = model(tf.constant(random_images(2, 16, 16, 3), tf.float32), True)
    x = endpoints["after_root"]
    for block, stride in zip(MAPS[1:], (1, 2, 2, 2)):
        unit = getattr(model, block)[0]
        if unit.projection:
            pooled = two_by_two_mean(x, stride) if ratio else x
            x = tf.nn.relu(unit.projection_norm(unit.projection(pooled), training=True))
        np.testing.assert_allclose(endpoints[block], x, rtol=1e-5, atol=1e-5)
        x = endpoints[block]
    plain = build(name, TINY, "small", sk_ratio=ratio)
    plain.build((None, 16, 16, 3))
    zeros = [
        sum(bool((v.numpy() == 0).all()) for v in m.variables if "gamma" in v.name)
        for m in (model, plain)
    ]
    units = sum(len(getattr(model, block)) for block in MAPS[1:])
    assert zeros == [units, 0]


# ---- where it runs ----


def loss_and_gradients(model, images):
    with tf.GradientTape() as tape:
        loss = sum(
            tf.reduce_mean(tf.square(endpoint - 1))
            for endpoint in model(images, training=True).values()
        )
    return loss, tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize(
    "jit,remat", [pytest.param(True, False, marks=pytest.mark.slow), (False, True)]
)
def test_xla_and_recomputation_change_nothing(jit, remat, shallow, float64):
    images = tf.constant(random_images(4, 33, 32, 3))
    settings = {"sk_ratio": 0.0625, "bn_momentum": 0.8}
    plain, other = (
        build("resnet50_v1", TINY, **settings),
        build("resnet50_v1", TINY, remat=remat, **settings),
    )
    plain.build(images.shape), other.build(images.shape)
    randomise(plain)
    other.set_weights(plain.get_weights())
    loss, gradients = tf.function(loss_and_gradients)(plain, images)
    other_loss, other_gradients = tf.function(loss_and_gradients, jit_compile=jit)(other, images)
    assert float(other_loss) == pytest.approx(float(loss), rel=1e-9)
    largest = max(np.abs(g).max() for g in gradients)
    for v, value, expected in zip(plain.trainable_variables, other_gradients, gradients):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9 * largest, err_msg=v.name)
    for v, moved in zip(plain.non_trainable_variables, other.non_trainable_variables):
        np.testing.assert_allclose(moved, v, rtol=1e-9, atol=1e-12)


def test_statistics_span_replicas(replicas, shallow, float64):
    """Those of the squeezed maps too, of which an image has one row."""
    halves = np.split(random_images(8, 8, 8, 3), 2)
    with replicas.scope():
        model = build("resnet50_v1", TINY, "small", sk_ratio=0.0625, bn_sync=True)
        model.build((None, 8, 8, 3))
    values = replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )
    run = tf.function(
        lambda x: replicas.run(lambda images: model(images, True)["pre_logits"], args=(x,))
    )
    together = np.concatenate(replicas.experimental_local_results(run(values)))
    alone = build("resnet50_v1", TINY, "small", sk_ratio=0.0625)
    alone.build((None, 8, 8, 3))
    for v, mirrored in zip(alone.trainable_variables, model.trainable_variables):
        v.assign(mirrored.numpy())
    np.testing.assert_allclose(
        together, alone(np.concatenate(halves), True)["pre_logits"], rtol=0, atol=1e-9
    )


def test_published_as_a_module(shallow, tmp_path):
    """Export makes the network again from its configuration, without what only training needs."""
    backbone = build(
        "resnet50_v1",
        TINY,
        "small",
        sk_ratio=0.0625,
        zero_init_residual=True,
        bn_sync=True,
        remat=True,
    )
    model = tfssl.pretext.build("rotation", backbone, image_size=16)
    model.prepare()
    randomise(backbone)
    tfssl.export.save(model, str(tmp_path / "module"))
    images = tf.constant(random_images(2, 16, 16, 3) / 2 + 0.5, tf.float32)
    module = tf.saved_model.load(str(tmp_path / "module"))
    np.testing.assert_allclose(
        module(images), model.encode(images)["pre_logits"], rtol=1e-4, atol=1e-5
    )
    assert set(module.endpoints(images)) == set(backbone.endpoint_names)

"""RevNets against the study's sizes, a naive network in NumPy, and ordinary back-propagation, which
keeps every activation."""

import itertools
import re

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise, trainable

import tfssl
from tfssl import export, pretext
from tfssl.backbones import build, revnet
from tfssl.errors import UserError
from tfssl.runtime import strategy as strategies

MAPS = ("after_root", "block1", "block2", "block3", "block4")
TINY = 1 / 16  # two channels in a stream of the first unit
UNITS = {"revnet18": (2, 2, 2, 2), "revnet34": (3, 4, 6, 3), "revnet50": (3, 4, 6, 3)}


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def randomised(name, *settings, shape=(None, None, None, 3), **more):
    """A built network with a value of its own in every variable."""
    model = build(name, *settings, **more)
    model.build(shape)
    return randomise(model)


def policy_of(name):
    tf.keras.mixed_precision.set_global_policy(name)


@pytest.fixture
def low_precision():
    policy_of("mixed_bfloat16")
    yield
    policy_of(None)


# ---- sizes ----

# The study's networks without logits, computed from its code; its k is four times our width.
STUDY = {0.25: 350112, 0.5: 1368256, 1: 5408640, 2: 21505792, 3: 48291456, 4: 85765632}


@pytest.mark.parametrize("width", STUDY)
def test_parameters_of_every_width_of_the_study(width):
    assert trainable("revnet50", width) == STUDY[width]


def test_parameters_with_logits():
    assert trainable("revnet50", 1) + 1000 * 2048 + 1000 == 7457640
    assert trainable("revnet50", 4) + 4 * 8192 + 4 == 85798404


@pytest.mark.parametrize("name", ["revnet18", "revnet50"])
@pytest.mark.parametrize(
    "stem,side,sides",
    [
        ("imagenet", 224, [56, 56, 28, 14, 7]),
        ("imagenet", 65, [17, 17, 9, 5, 3]),
        ("small", 32, [32, 32, 16, 8, 4]),
        ("patch", 64, [32, 32, 16, 8, 8]),
    ],
)
def test_endpoints_have_the_shapes_of_the_study(name, stem, side, sides):
    model = build(name, TINY, stem)
    run = tf.function(lambda x: model(x, False), autograph=False)
    endpoints = run.get_concrete_function(tf.TensorSpec([2, side, side, 3])).structured_outputs
    first = 16 if "50" in name else 4
    channels = [first, first, 2 * first, 4 * first, 8 * first]
    assert list(endpoints) == [*MAPS, "pre_logits"] == list(model.endpoint_names)
    for endpoint, height, depth in zip(MAPS, sides, channels):
        assert endpoints[endpoint].shape == (2, height, height, depth)
    assert endpoints["pre_logits"].shape == (2, 8 * first)
    assert model.min_image_size == {"imagenet": 32, "small": 8, "patch": 8}[stem]


# ---- arithmetic: a naive network ----


def relu(x):
    return np.maximum(x, 0)


def window(x, size, stride):
    """The shifted and strided copies of the zero-padded map that lie under the window's places (i,
    j)."""
    p = size // 2
    height, width = ((n + 2 * p - size) // stride + 1 for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    for i, j in itertools.product(range(size), repeat=2):
        yield i, j, x[:, i::stride, j::stride][:, :height, :width]


class Naive:
    """The network as the papers draw it, on the variables of one of ours."""

    def __init__(self, model, training):
        self.values = {v.name.split("/", 1)[1][:-2]: v.numpy() for v in model.variables}
        self.epsilon, self.training = model.bn_epsilon, training

    def conv(self, x, name, stride=1):
        kernel = self.values[name + "/kernel"]
        return sum(copy @ kernel[i, j] for i, j, copy in window(x, len(kernel), stride))

    def norm(self, x, name):
        gamma, beta, mean, variance = (
            self.values[f"{name}/{k}"] for k in "gamma beta moving_mean moving_variance".split()
        )
        if self.training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return gamma * (x - mean) / np.sqrt(variance + self.epsilon) + beta

    def pool(self, x):
        """Mean over 2x2 windows; at an odd edge over what is there of them."""
        rows = [x[:, i : i + 2].mean(1) for i in range(0, x.shape[1], 2)]
        x = np.stack(rows, 1)
        return np.stack([x[:, :, j : j + 2].mean(2) for j in range(0, x.shape[2], 2)], 2)

    def run(self, x, units, convs, stem, last_relu):
        x = self.conv(x, "root_conv", 2 if stem == "imagenet" else 1)
        if stem != "small":
            x = np.max([copy for _, _, copy in window(x, 3, 2)], axis=0)
        endpoints = {"after_root": x}
        for i, (count, stride) in enumerate(zip(units, (1, 2, 2, 1 if stem == "patch" else 2))):
            if i:
                x = self.pool(x) if stride == 2 else x
                nothing = np.zeros(x.shape[:3] + (x.shape[3] // 2,))
                x = np.concatenate([nothing, x, nothing], 3)
            for j in range(count):
                x1, x2 = np.split(x, 2, 3)
                y = x2
                for k in range(1, convs + 1):
                    y = self.conv(
                        relu(self.norm(y, f"block{i + 1}/unit{j}/bn{k}")),
                        f"block{i + 1}/unit{j}/conv{k}",
                    )
                x = np.concatenate([x2, x1 + y], 3)
            endpoints[f"block{i + 1}"] = x
        x = self.norm(x, "last_bn")
        endpoints["pre_logits"] = (relu(x) if last_relu else x).mean((1, 2))
        return endpoints


@pytest.mark.parametrize(
    "name,stem,last_relu,training",
    [
        ("revnet18", "small", True, False),
        ("revnet34", "patch", False, True),
        ("revnet50", "imagenet", True, True),
    ],
)
def test_equals_a_naive_network(float64, name, stem, last_relu, training):
    model = randomised(name, TINY, stem, bn_epsilon=0.01, last_relu=last_relu)
    images = random_images(3, 65, 40, 3) if stem == "imagenet" else random_images(3, 17, 22, 3)
    expected = Naive(model, training).run(
        images, UNITS[name], 3 if "50" in name else 2, stem, last_relu
    )
    endpoints = tf.function(model, autograph=False)(images, training=training)
    assert set(endpoints) == set(expected)
    for endpoint, value in expected.items():
        np.testing.assert_allclose(
            endpoints[endpoint], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=endpoint
        )


# ---- gradients: those of ordinary back-propagation ----


@pytest.fixture
def shorter(monkeypatch):
    """Five units for eight: what is traced or computed below is traced often."""
    monkeypatch.setattr(revnet, "UNITS", {18: (1, 2, 1, 1)})


def loss_and_gradients(model, images, training=True, of=None):
    """Of a loss of every endpoint, or of one: the loss, and gradients by the images and all
    trainable variables."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        endpoints = model(images, training=training)
        float_type = endpoints["pre_logits"].dtype
        loss = sum(
            tf.reduce_mean(tf.sin(tf.cast(endpoints[name], float_type) + 1))
            for name in ([of] if of else endpoints)
        )
    return loss, tape.gradient(
        loss, [images, *model.trainable_variables], unconnected_gradients="zero"
    )


def both_ways(monkeypatch, run):
    """What `run()` returns with reversible units, and with those that TensorFlow differentiates by
    itself."""
    with monkeypatch.context() as patch:
        found = run()
        patch.setattr(revnet, "reversible", revnet.forward)
        return found, run()


def assert_close(found, expected, tolerance):
    """The loss, and each gradient relative to its own largest value."""
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    for x, y in zip(found[1], expected[1]):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max() + 1e-300)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_ordinary_back_propagation(float64, shorter, monkeypatch, training):
    """With moving statistics too, as in fine-tuning; of what lies in the middle too; and the
    statistics move once."""
    model, images = (
        randomised("revnet18", TINY, "small", bn_momentum=0.8),
        tf.constant(random_images(3, 16, 16, 3)),
    )
    start = model.get_weights()

    def run():
        model.set_weights(start)
        step = tf.function(lambda x: loss_and_gradients(model, x, training), autograph=False)
        return *step(images), model.get_weights()

    found, expected = both_ways(monkeypatch, run)
    assert_close(found, expected, 1e-9)
    assert np.mean([np.abs(g).max() > 0 for g in expected[1]]) > 0.9
    for mine, other in zip(found[2], expected[2]):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    moved = [
        v.name for v, a, b in zip(model.variables, start, found[2]) if not np.array_equal(a, b)
    ]
    assert moved == ([v.name for v in model.variables if "moving" in v.name] if training else [])


@pytest.mark.parametrize("endpoint", ["after_root", "block1", "block3"])
def test_a_loss_in_the_middle(float64, shorter, monkeypatch, endpoint):
    """Eagerly, where another decorator is at work; what lies behind gets no gradient."""
    model, images = randomised("revnet18", TINY, "small"), tf.constant(random_images(3, 16, 16, 3))
    found, expected = both_ways(monkeypatch, lambda: loss_and_gradients(model, images, of=endpoint))
    assert_close(found, expected, 1e-9)
    reached = {
        v.name.split("/")[1]
        for v, g in zip(model.trainable_variables, found[1][1:])
        if np.abs(g).max() > 0
    }
    assert reached == {"root_conv", *MAPS[1 : MAPS.index(endpoint) + 1]}


def test_gradients_in_float32(monkeypatch):
    """At random weights no ReLU sits at its corner, so a float32 gradient is as close as its
    rounding allows."""
    model, images = (
        randomised("revnet50", TINY, "small"),
        tf.constant(random_images(8, 16, 16, 3), tf.float32),
    )
    step = tf.function(lambda x: loss_and_gradients(model, x), autograph=False)
    plain = tf.function(lambda x: loss_and_gradients(model, x), autograph=False)
    found, expected = both_ways(
        monkeypatch, lambda: (step if revnet.reversible is not revnet.forward else plain)(images)
    )
    for v, x, y in zip(model.trainable_variables, found[1][1:], expected[1][1:]):
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y), v.name


def test_frozen_layers_and_two_passes(float64, shorter, monkeypatch):
    """A part of the network may be untrainable, and a step may run it twice before it goes back."""
    model = randomised("revnet18", TINY, "small", bn_momentum=0.8)
    model.block2[0].trainable = False
    first, second = (tf.constant(random_images(3, 16, 16, 3, seed=seed)) for seed in (0, 1))
    start = model.get_weights()

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = sum(
                tf.reduce_mean(tf.sin(model(x, training=True)["pre_logits"]))
                for x in (first, second)
            )
        return loss, tape.gradient(loss, model.trainable_variables)

    def run():
        model.set_weights(start)
        return *tf.function(step.python_function, autograph=False)(), model.get_weights()

    found, expected = both_ways(monkeypatch, run)
    assert (
        len(found[1]) == 1 + 4 * 2 * 3 + 2
    )  # root; four units of two convolutions, each with gamma and beta; the last gamma and beta
    assert_close(found, expected, 1e-9)
    for mine, other in zip(found[2], expected[2]):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_compiled_by_xla_it_computes_the_same_and_twice(float64, monkeypatch):
    """XLA must not take the second pass for the first: then every activation would be kept after
    all."""
    monkeypatch.setattr(revnet, "UNITS", {18: (1, 3, 1, 1)})
    model, images = randomised("revnet18", TINY, "small"), tf.constant(random_images(3, 8, 8, 3))
    expected = loss_and_gradients(model, images)
    step = tf.function(lambda x: loss_and_gradients(model, x), jit_compile=True, autograph=False)
    assert_close(step(images), expected, 1e-9)
    optimised = step.experimental_get_compiler_ir(images)(stage="optimized_hlo")
    products = len(
        re.findall(
            r"= \S+ (?:convolution|dot)\(|custom_call_target=\"[^\"]*(?:onv|atMul)", optimised
        )
    )
    # 13 convolutions, forward and backward by what they take and by their kernel, and 12 a second
    # time: less the last one of each block's first two units, with which the block's inputs would
    # come back, and nobody needs these.
    assert products == 13 * 3 + 12 - (1 + 2 + 1 + 1)


def test_bfloat16_streams_come_back(low_precision, monkeypatch):
    images = tf.constant(random_images(8, 16, 16, 3), tf.float32)
    model = randomised("revnet50", TINY, "small")
    endpoints = model(images, True)
    assert [endpoints[key].dtype for key in endpoints] == [tf.bfloat16] + [tf.float32] * 5
    assert all(v.dtype == tf.float32 for v in model.variables)

    def run():
        return tf.function(lambda x: loss_and_gradients(model, x), autograph=False)(images)

    found, expected = both_ways(monkeypatch, run)
    policy_of("float32")
    full = build("revnet50", TINY, "small")
    full.build(images.shape)
    full.set_weights(model.get_weights())
    exact = loss_and_gradients(full, images)
    ours, ordinary = (
        np.concatenate([np.ravel(a - b) for a, b in zip(g[1], exact[1])]) for g in (found, expected)
    )
    size = np.linalg.norm(np.concatenate([np.ravel(g) for g in exact[1]]))
    # bfloat16 has errors of its own, which ordinary back-propagation has too; reversing adds little
    # to them.
    assert (
        np.linalg.norm(ours - ordinary) < 0.25 * np.linalg.norm(ordinary)
        and np.linalg.norm(ordinary) < 0.3 * size
    )


# ---- in a training step ----


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def trained(source, strategy=None, steps=2, compiled=None, **settings):
    """Losses, weights and optimizer state (the momentum holds the gradients) after training on
    equal terms."""
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        backbone = build("revnet18", TINY, "small", bn_momentum=0.8, **settings)
        model = pretext.build("rotation", backbone, image_size=16)
        model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), **(compiled or {}))
    batches = strategies.training_data(strategy, model, source, 8, 2, 0, steps)
    loss = model.fit(batches, steps_per_epoch=steps, verbose=0).history["loss"]
    return {
        "loss": np.array(loss),
        **{v.name: v.numpy() for v in [*model.variables, *model.optimizer.variables]},
    }


def assert_same_training(a, b, tolerance, without=()):
    assert len(a) == len(b)
    for (name, x), y in zip(a.items(), b.values()):
        if not any(word in name for word in without):
            np.testing.assert_allclose(
                x, y, rtol=0, atol=tolerance * np.abs(x).max() + 1e-300, err_msg=name
            )


def test_synchronised_replicas_train_like_one(source, replicas, float64, shorter):
    """Replicas meet in the backward pass too, where batch statistics are summed a second time."""
    alone, together = (
        trained(source, strategy, steps=1, bn_sync=True) for strategy in (None, replicas)
    )
    assert_same_training(alone, together, 1e-9)


def test_accumulated_parts_are_groups(source, float64, shorter):
    grouped = trained(source, bn_groups=2)
    assert_same_training(grouped, trained(source, compiled={"accumulate_steps": 2}), 1e-8)


def test_accumulation_compiles_in_float16(source, shorter):
    policy_of("mixed_float16")  # whose loss is scaled besides
    try:
        assert np.isfinite(
            trained(source, steps=1, compiled={"accumulate_steps": 2, "jit_compile": True})["loss"]
        ).all()
    finally:
        policy_of(None)


# ---- after export ----


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A task's model with values of its own in its normalizations, and the folder of its module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revnet, "UNITS", {18: (1, 3, 1, 1)})
        model = pretext.build(
            "rotation", build("revnet18", TINY, "small", bn_momentum=0.8), image_size=16
        )
        model.prepare()
        rng = np.random.default_rng(1)
        for v in model.backbone.variables:
            v.assign(rng.uniform(0.5, 1.5, v.shape) if len(v.shape) == 1 else v)
        return model, export.save(model, tmp_path_factory.mktemp("modules") / "1")


@pytest.mark.parametrize("training", [False, True])
def test_a_module_fine_tunes_as_the_network_does(published, training):
    """Its gradients are saved with it: endpoints, gradients and moving statistics of the loaded
    module are the network's."""
    model, path = published
    module = tf.saved_model.load(path)
    images = tf.constant(random_images(8, 16, 16, 3) / 2 + 0.5, tf.float32)

    def step(encode, variables):
        with tf.GradientTape() as tape:
            endpoints = encode(images, training=training)
            loss = sum(tf.reduce_mean(tf.sin(endpoints[name])) for name in sorted(endpoints))
        return loss, tape.gradient(loss, list(variables))

    expected = step(model.encode, model.backbone.trainable_variables)
    names = [v.name for v in model.backbone.trainable_variables]
    assert [v.name for v in module.trainable_variables] == names
    found = step(module.endpoints, module.trainable_variables)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, x, y in zip(names, found[1], expected[1]):
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y), name
    for mine, other in zip(module.variables, model.backbone.variables):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # tests/export/test_module.py has one of another network
def test_a_module_fine_tunes_in_a_keras_layer(published):
    hub = pytest.importorskip("tensorflow_hub")
    layer = hub.KerasLayer(published[1], trainable=True)
    before = [v.numpy() for v in layer.trainable_variables]
    classifier = tf.keras.Sequential([tf.keras.Input([16, 16, 3]), layer, tf.keras.layers.Dense(2)])
    classifier.compile(
        tf.keras.optimizers.SGD(0.5),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images = random_images(8, 16, 16, 3).astype("float32")
    history = classifier.fit(images, np.arange(8) % 2, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all() and len(before) == 1 + 12 * 3 + 2
    assert all(np.any(v.numpy() != b) for v, b in zip(layer.trainable_variables, before))


# ---- names, and what is refused ----


def test_variables_have_readable_names_and_checkpoint_keys(tmp_path):
    model = build("revnet50", TINY)
    model(tf.zeros([1, 32, 32, 3]))
    names = [v.name for v in model.variables]
    assert len(set(names)) == len(names) and names[0] == "revnet50/root_conv/kernel:0"
    assert (
        "revnet50/block2/unit3/conv3/kernel:0" in names
        and "revnet50/last_bn/moving_variance:0" in names
    )
    path = tf.train.Checkpoint(backbone=model).write(str(tmp_path / "checkpoint"))
    keys = [key for key, _ in tf.train.list_variables(path) if key.startswith("backbone/")]
    assert len(keys) == len(names) and model.losses == []
    assert "backbone/block2/0/convs/0/kernel/.ATTRIBUTES/VARIABLE_VALUE" in keys


def test_settings():
    with pytest.raises(
        UserError,
        match="width_multiplier=0.01 leaves revnet50 too few channels; the smallest is 0.015625",
    ):
        build("revnet50", 0.01)
    model = build("revnet50", 0.25, remat=True, last_relu=False)
    assert "remat" not in model.config() and model.config()["last_relu"] is False

"""VGG with BN against published sizes, a naive network in NumPy, and the ways in which it is
trained and published."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise, trainable

import tfssl
from tfssl import export, pretext
from tfssl.backbones import build
from tfssl.errors import UserError
from tfssl.runtime import strategy as strategies

TINY = 1 / 32  # two channels in the first stage, 128 in the fully connected layers
CONVS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
ENDPOINTS = ["block1", "block2", "block3", "block4", "block5", "fc6", "pre_logits"]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


# ---- sizes ----

# VGG19 of the study, without logits, computed from its code: {k: (for 224 pixels, for 64 pixels)};
# its k is eight times our width.
STUDY = {
    1: (2184184, 709624),
    2: (8729456, 2831216),
    4: (34903264, 11310304),
    8: (139583936, 45212096),
    12: (314042016, 101705376),
    16: (558277504, 180790144),
}


@pytest.mark.parametrize("k", STUDY)
def test_parameters_of_every_width_of_the_study(k):
    assert (trainable("vgg19", k / 8, 224), trainable("vgg19", k / 8, 64)) == STUDY[k]


# torchvision's published counts, which include 1000 logits, and biases of all other layers (with BN
# they do nothing; we have none).
TORCHVISION = {"vgg11": 132868840, "vgg13": 133053736, "vgg16": 138365992, "vgg19": 143678248}


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_of_every_depth(name):
    conv_biases = sum(
        count * channels for count, channels in zip(CONVS[name], (64, 128, 256, 512, 512))
    )
    norms_of_fc = 2 * 2 * 4096  # there its fully connected layers have a bias each, and no BN
    assert (
        trainable(name, 1, 224) - norms_of_fc
        == TORCHVISION[name] - 1000 * 4097 - conv_biases - 2 * 4096
    )


@pytest.mark.parametrize(
    "stem,size,sides,fc6",
    [
        ("imagenet", 224, [224, 112, 56, 28, 14], 7),
        ("patch", 64, [64, 32, 16, 8, 4], 2),
        ("small", 32, [32, 32, 16, 8, 4], 2),
        ("small", 24, [24, 24, 12, 6, 3], 1),
    ],
)
def test_endpoints_have_the_shapes_of_the_study(stem, size, sides, fc6):
    model = build("vgg11", TINY, stem)
    run = tf.function(lambda x: model(x, False), autograph=False)
    endpoints = run.get_concrete_function(tf.TensorSpec([2, size, size, 3])).structured_outputs
    assert list(endpoints) == ENDPOINTS == list(model.endpoint_names)
    for name, side, channels in zip(ENDPOINTS, sides, (2, 4, 8, 16, 16)):
        assert endpoints[name].shape == (2, side, side, channels)
    assert model.fc6.convs[0].kernel.shape == (fc6, fc6, 16, 128)
    assert endpoints["fc6"].shape == (2, 1, 1, 128) and endpoints["pre_logits"].shape == (2, 128)


# ---- arithmetic: a naive network ----


def relu(x):
    return np.maximum(x, 0)


def naive(model, x, training, pooled):
    """The network as its paper draws it; fc6 as what it is, a fully connected layer on the
    flattened map."""
    values = {v.name.split("/", 1)[1][:-2]: v.numpy() for v in model.variables}

    def norm(x, name):
        gamma, beta, mean, variance = (
            values[f"{name}/{key}"] for key in "gamma beta moving_mean moving_variance".split()
        )
        if training:
            mean, variance = x.reshape(-1, x.shape[-1]).mean(0), x.reshape(-1, x.shape[-1]).var(0)
        return gamma * (x - mean) / np.sqrt(variance + model.bn_epsilon) + beta

    endpoints = {}
    for i, count in enumerate(CONVS[model.name]):
        for j in range(1, count + 1):
            kernel = values[f"block{i + 1}/conv{j}/kernel"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            height, width = x.shape[1:3]
            x = sum(
                padded[:, a : a + height, b : b + width] @ kernel[a, b]
                for a in range(3)
                for b in range(3)
            )
            x = relu(norm(x, f"block{i + 1}/bn{j}"))
        endpoints[f"block{i + 1}"] = x
        if i + 1 in pooled:
            n, height, width, channels = x.shape
            x = (
                x[:, : height // 2 * 2, : width // 2 * 2]
                .reshape(n, height // 2, 2, width // 2, 2, channels)
                .max((2, 4))
            )
    for name in ("fc6", "fc7"):
        kernel = values[f"{name}/conv1/kernel"]
        x = relu(norm(x.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[-1]), f"{name}/bn1"))
        endpoints[{"fc6": "fc6", "fc7": "pre_logits"}[name]] = x
    return endpoints


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name,stem,size", [("vgg19", "imagenet", (64, 33)), ("vgg11", "small", (25, 34))]
)
def test_equals_a_naive_network(float64, name, stem, size, training):
    model = build(name, TINY, stem, bn_epsilon=0.01)
    images = random_images(3, *size, 3)
    model.build(images.shape)
    randomise(model)
    expected = naive(model, images, training, (2, 3, 4, 5) if stem == "small" else (1, 2, 3, 4, 5))
    endpoints = tf.function(model, autograph=False)(images, training=training)
    assert set(endpoints) == set(expected)
    for endpoint, value in expected.items():
        found = np.reshape(endpoints[endpoint], value.shape)
        np.testing.assert_allclose(
            found, value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=endpoint
        )


def test_a_larger_image_is_the_mean_over_its_positions(float64):
    model = build("vgg11", TINY, "small")
    model.build((None, 16, 16, 3))  # fc6 sees one place of the map
    randomise(model)
    endpoints = model(random_images(2, 48, 32, 3))
    assert endpoints["fc6"].shape == (2, 3, 2, 128)
    positions = model.fc7(endpoints["fc6"]).numpy()
    np.testing.assert_allclose(endpoints["pre_logits"], positions.mean((1, 2)), rtol=1e-12)


# ---- the size of its images ----


def test_the_size_of_the_first_images_is_the_smallest():
    model = build("vgg11", TINY)
    assert model.min_image_size == 32 and build("vgg11", TINY, "small").min_image_size == 16
    model(tf.zeros([1, 64, 96, 3]))
    assert model.min_image_size == 96
    assert model.fc6.convs[0].kernel.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    "stem,shape,words",
    [
        (
            "imagenet",
            (None, None, None, 3),
            "vgg11 depend on the size of its images: call it first with images of a known",
        ),
        (
            "imagenet",
            (None, 24, 64, 3),
            "vgg11 with the imagenet stem needs images of 32 pixels at least, not 24x64.*small "
            "stem",
        ),
        (
            "small",
            (None, 15, 15, 3),
            "vgg11 with the small stem needs images of 16 pixels at least, not 15x15: take larger "
            "ones$",
        ),
    ],
)
def test_images_that_will_not_do(stem, shape, words):
    with pytest.raises(UserError, match=words):
        build("vgg11", TINY, stem).build(shape)


# ---- in a training step, and after it ----


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def trained(source, strategy=None, steps=1, compiled=None, **settings):
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = pretext.build(
            "rotation", build("vgg11", TINY, "small", bn_momentum=0.8, **settings), image_size=24
        )
        model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9), **(compiled or {}))
    batches = strategies.training_data(strategy, model, source, 8, 2, 0, steps)
    loss = model.fit(batches, steps_per_epoch=steps, verbose=0).history["loss"]
    state = {
        "loss": np.array(loss),
        **{v.name: v.numpy() for v in [*model.variables, *model.optimizer.variables]},
    }
    return model, state


def assert_same(a, b, tolerance):
    assert len(a) == len(b)
    for (name, x), y in zip(a.items(), b.values()):
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * np.abs(x).max() + 1e-300, err_msg=name
        )


@pytest.mark.slow
def test_synchronised_replicas_and_stages_computed_again_train_alike(source, replicas, float64):
    alone = trained(source, bn_sync=True)[1]
    assert_same(alone, trained(source, replicas, bn_sync=True)[1], 1e-9)
    assert_same(alone, trained(source, remat=True)[1], 1e-9)


def test_a_compiled_step_of_24_pixel_images_in_bfloat16(source):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model, state = trained(
            source, compiled={"jit_compile": True, "accumulate_steps": 2}, remat=True
        )
        endpoints = model.encode(tf.zeros([2, 24, 24, 3]))
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    assert np.isfinite(state["loss"]).all() and 0.3 < state["loss"][0] < 5
    assert [endpoints[name].dtype for name in ENDPOINTS] == [tf.bfloat16] * 6 + [tf.float32]
    assert all(v.dtype == tf.float32 for v in model.backbone.variables)


def test_config_builds_it_again_and_a_module_of_it_works(source, tmp_path):
    model = trained(source)[0]
    again = build(**model.backbone.config())
    again.build((None, 24, 24, 3))
    assert [(v.name, v.shape) for v in again.variables] == [
        (v.name, v.shape) for v in model.backbone.variables
    ]

    path = export.save(model, tmp_path / "module")
    facts = json.load(open(os.path.join(path, "assets", "tfssl.json"), encoding="utf-8"))
    assert (
        facts["endpoints"] == ENDPOINTS
        and facts["min_image_size"] == 24
        and facts["features"]["pre_logits"] == 128
    )
    module = tf.saved_model.load(path)
    for size in (24, 64):  # fc6 sees the map of 64 pixels, 4x4, at 16 positions
        images = tf.constant(random_images(3, size, size, 3) / 2 + 0.5, tf.float32)
        expected = model.encode(images)
        for name, value in module.endpoints(images).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(module(images, training=True) ** 2)
    gradients = tape.gradient(loss, list(module.trainable_variables))
    assert len(gradients) == 3 * (8 + 2) and all(np.abs(g).max() > 0 for g in gradients)


def test_names_and_checkpoint_keys(tmp_path):
    model = build("vgg19", TINY)
    model(tf.zeros([1, 32, 32, 3]))
    names = [v.name for v in model.variables]
    assert len(set(names)) == len(names) == 18 * 5 and names[0] == "vgg19/block1/conv1/kernel:0"
    assert {
        "vgg19/block5/bn4/moving_variance:0",
        "vgg19/fc6/conv1/kernel:0",
        "vgg19/fc7/bn1/gamma:0",
    } < set(names)
    path = tf.train.Checkpoint(backbone=model).write(str(tmp_path / "checkpoint"))
    keys = [key for key, _ in tf.train.list_variables(path) if key.startswith("backbone/")]
    assert len(keys) == len(names) and model.losses == []
    assert "backbone/block2/convs/0/kernel/.ATTRIBUTES/VARIABLE_VALUE" in keys

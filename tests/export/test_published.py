"""What is published where it is not the backbone: a teacher, and an encoder of two halves."""

import json

import numpy as np
import pytest
import tensorflow as tf
from published import Halves, Teacher

import tfssl.pretext.task
from tfssl import backbones, export, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.config.configs import TrainConfig
from tfssl.config.generated import as_text
from tfssl.data.ops.draws import Draws
from tfssl.export import untrained
from tfssl.hub import load as modules
from tfssl.training import initial_weights
from tfssl.training.checkpoints import Checkpoints
from tfssl.training.knn_probe import KnnProbe
from tfssl.training.registered import registered

SMALL = {"image_size": 16}
TEACHER = {
    "augmentation": "crop",
    "projection_hidden": 8,
    "projection_size": 4,
    "target_momentum": 0.5,
    "num_classes": 2,
    **SMALL,
}


def build(task, backbone=None, seed=0, **settings):
    tf.keras.utils.set_random_seed(seed)
    layers = [
        tf.keras.layers.Conv2D(6, 3, 2, name="conv"),
        BatchNorm(0.8, name="norm"),
        tf.keras.layers.ReLU(),
    ]
    network = backbone or tf.keras.Sequential(layers, name="own")
    model = pretext.build(task, network, **{**(TEACHER if task is Teacher else SMALL), **settings})
    model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9))
    model.prepare()
    return model


@pytest.fixture(scope="module")
def batches(source):
    """{task: three batches}."""
    return {task: list(build(task).dataset(source, 8, steps=3)) for task in (Teacher, Halves)}


@pytest.fixture(scope="module")
def trained(batches):
    """{task: a model after three steps}."""
    models = {task: build(task) for task in batches}
    for task, model in models.items():
        for batch in batches[task]:
            model.train_step(batch)
    return models


@pytest.fixture(scope="module")
def paths(trained, tmp_path_factory):
    """{task: its module}."""
    folder = tmp_path_factory.mktemp("modules")
    return {task: export.save(model, folder / task.task) for task, model in trained.items()}


def images(n=3, size=16, seed=0):
    return np.random.default_rng(seed).random([n, size, size, 3], np.float32)


def by_numpy(network, x):
    """[N, H, W, C] normalized -> the mean [N, 6] of a convolution (3x3, stride 2, VALID), a
    normalization and a ReLU."""
    conv, norm, _ = network.model.layers
    kernel = conv.kernel.numpy()  # 3x3xCx6
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    windows = np.stack(
        [
            x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
            for i in range(3)
            for j in range(3)
        ],
        3,
    )
    y = (
        windows.reshape(len(x), height, width, -1) @ kernel.reshape(-1, kernel.shape[-1])
        + conv.bias.numpy()
    )
    y = (y - norm.moving_mean.numpy()) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    return np.maximum(y * norm.gamma.numpy() + norm.beta.numpy(), 0).mean((1, 2))


def assert_holds(module, networks):
    """The module's variables are those of the networks, one after the other, and nothing else."""
    variables = [v for network in networks for v in network.variables]
    trainable = [v for network in networks for v in network.trainable_variables]
    for ours, theirs in ((module.variables, variables), (module.trainable_variables, trainable)):
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs):
            np.testing.assert_array_equal(one, other)


def test_a_teacher_is_what_its_module_computes_and_holds(trained, paths):
    model, module = trained[Teacher], tf.saved_model.load(paths[Teacher])
    x = (images() - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(
        module(images()), by_numpy(model.target.twins[0], x), rtol=1e-4, atol=1e-5
    )
    assert (
        np.abs(module(images()) - by_numpy(model.backbone, x)).max() > 1e-3
    )  # the student has gone on
    assert_holds(module, [model.target.twins[0]])


def test_two_halves_are_one_encoder(trained, paths):
    model, module = trained[Halves], tf.saved_model.load(paths[Halves])
    x = 2 * images() - 1
    halves = [by_numpy(model.backbone, x[..., :1]), by_numpy(model.other, x[..., 1:])]
    np.testing.assert_allclose(module(images()), np.concatenate(halves, 1), rtol=1e-4, atol=1e-5)
    assert_holds(module, [model.backbone, model.other])
    assert [v.shape[2] for v in module.variables if v.shape.rank == 4] == [1, 2]  # input channels
    facts = json.load(open(f"{paths[Halves]}/assets/tfssl.json", encoding="utf-8"))
    assert facts["endpoints"] == ["features", "pre_logits"] and facts["features"] == {
        "features": 12,
        "pre_logits": 12,
    }


@pytest.mark.parametrize("task", [Teacher, Halves])
def test_a_module_fine_tunes(task, paths):
    module = modules.load(paths[task])
    before = [v.numpy() for v in module.trainable_variables]
    moving = [v for v in module.variables if "moving" in v.name]
    kept = [v.numpy() for v in moving]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(module.endpoints(images(), training=True)["pre_logits"] ** 2)
    gradients = tape.gradient(loss, list(module.trainable_variables))
    for v, old, gradient in zip(module.trainable_variables, before, gradients):
        assert np.isfinite(gradient).all()
        v.assign_sub(10.0 * gradient)
        assert "bias" in v.name or (v.numpy() != old).any(), (
            v.name
        )  # a bias before a normalization does nothing
    assert all((v.numpy() != old).any() for v, old in zip(moving, kept))


@pytest.mark.parametrize("task", [Teacher, Halves])
def test_a_resumed_run_publishes_the_same(task, batches, trained, tmp_path):
    begun, resumed = build(task), build(task, seed=1)
    for batch in batches[task][:2]:
        begun.train_step(batch)
    Checkpoints(begun, str(tmp_path)).save(2)
    assert Checkpoints(resumed, str(tmp_path)).restore() == 2
    resumed.train_step(batches[task][2])
    assert_holds(
        tf.saved_model.load(export.save(resumed, tmp_path / "module")), trained[task].published
    )


@pytest.mark.parametrize("task", [Teacher, Halves])
def test_the_knn_probe_reads_what_is_published(task, trained, paths, source):
    probe = KnnProbe(trained[task], source, source, images=4)
    pixels = np.uint8(255 * images())
    expected = tf.saved_model.load(paths[task])(pixels / np.float32(255))
    np.testing.assert_allclose(probe._encode(tf.constant(pixels)), expected, rtol=1e-4, atol=1e-5)


def test_the_online_probe_reads_the_teacher(trained, paths, batches):
    model = trained[Teacher]
    batch = model.to_float(batches[Teacher][0])
    batch = model.augment(batch, Draws(batch))
    features = tf.saved_model.load(paths[Teacher])(
        tf.cast(batch["image"][0][:, 0], tf.float32)
    ).numpy()
    expected = features @ model.probe.kernel.numpy() + model.probe.bias.numpy()
    moving = [v.numpy() for v in model.target.backbone.variables if "moving" in v.name]
    np.testing.assert_allclose(model(batch)["probe"][:, 0], expected, rtol=1e-4, atol=1e-5)
    for old, v in zip(moving, [v for v in model.target.backbone.variables if "moving" in v.name]):
        np.testing.assert_array_equal(v, old)


def test_statistics_of_a_teacher_are_computed_anew(batches):
    """They are those of its own convolution of the images: by hand."""
    model = build(Teacher)
    model.target.backbone.model.layers[0].kernel.assign_add(tf.ones([3, 3, 3, 6]))
    export.recalibrate(model, batches[Teacher][:1])
    conv, norm, _ = model.target.backbone.model.layers
    batch = model.to_float(batches[Teacher][0])
    views = model.augment(batch, Draws(batch))["image"][0]
    means = [tf.reduce_mean(conv(model.normalize(views[:, i])), [0, 1, 2]).numpy() for i in (0, 1)]
    np.testing.assert_allclose(
        norm.moving_mean, means[1], rtol=1e-4
    )  # each of a step's passes begins anew at the first


@pytest.mark.parametrize("task", [Teacher, Halves])
def test_a_run_starts_from_a_module(task, trained, paths, capsys):
    """All published networks from what was published; and a teacher's student likewise."""
    model = build(task, seed=3)
    initial_weights.from_module(model, paths[task])
    model.start()
    assert_holds(tf.saved_model.load(paths[task]), model.published)
    if task is Teacher:
        assert_holds(tf.saved_model.load(paths[task]), [model.backbone])
    said = capsys.readouterr().out
    assert (
        "initialised 12 of 12" in said if task is Halves else said.count("initialised 6 of 6") == 2
    )


def vgg():
    return backbones.build("vgg11", 1 / 16, "small")


def test_named_networks_of_lower_precision_are_published_in_float32(tmp_path):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build(Halves, vgg(), image_size=32)
        for v in (v for network in model.published for v in network.variables):
            v.assign_add(tf.random.uniform(v.shape, 0, 0.1))
        module = tf.saved_model.load(export.save(model, tmp_path / "m"))
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    assert_holds(module, model.published)


def test_the_untrained_network_is_that_of_the_setting(tmp_path):
    """By the task's flags, as `tfssl-export --random_init` and an evaluation make it; a teacher
    begins as its student."""
    settings = {**TEACHER, "image_size": 32}
    flags = {
        **settings,
        "publish": "teacher",
        "task": "published:Teacher",
        "backbone": "vgg11",
        "stem": "small",
    }
    texts = {
        name: as_text(value)
        for name, value in {**flags, "width_multiplier": 1 / 16, "seed": 4}.items()
    }
    config = TrainConfig.from_record(
        texts, *registered({"task": "published:Teacher", "backbone": flags["backbone"]})
    )
    untrained.export(config.replace(workdir="w"), str(tmp_path / "m"))
    tf.keras.utils.set_random_seed(4)
    model = pretext.build(Teacher, vgg(), **settings)
    model.prepare()
    assert_holds(tf.saved_model.load(str(tmp_path / "m")), [model.backbone])
    facts = json.loads((tmp_path / "m" / "assets" / "tfssl.json").read_text())
    assert facts["training_flags"][
        "publish"
    ] == "teacher" and "--publish=teacher" in untrained._flags(facts)


def test_several_networks_without_an_encode_are_refused():
    class Forgotten(Halves):
        encode = tfssl.pretext.task.Pretext.encode

    with pytest.raises(
        NotImplementedError, match="Forgotten publishes 2 networks: it has to define encode"
    ):
        build(Forgotten).encode(images())

"""The recipe of fine-tuning vision transformers: rates by depth against MAE's formula, drop path of
a module's network, mixed and smoothed labels, and exactness."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, export, optim, pretext
from tfssl.backbones import vit
from tfssl.backbones.hub import Hub, network_of
from tfssl.classifiers.build import _with_drop_path
from tfssl.classifiers.classifier import Classifier
from tfssl.data.ops.draws import Draws
from tfssl.data.ops.mixing import Mixing
from tfssl.errors import UserError
from tfssl.export.module import save_classifier
from tfssl.hub import load as modules
from tfssl.runtime import strategy as strategies

DEPTH = 2
VIT = {"width_multiplier": 1 / 16, "depth": DEPTH, "patch": 4, "registers": 1}
RECIPE = {
    "mixing": Mixing(0.8, 1.0),
    "label_smoothing": 0.1,
    "randaugment": 2,
    "random_erasing": 0.5,
    "layer_decay": 0.65,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A module of a small ViT that nobody trained."""
    tf.keras.utils.set_random_seed(1)
    backbone = backbones.build("vit_tiny", **VIT)
    model = pretext.build("rotation", backbone, image_size=16)
    return export.save(model, tmp_path_factory.mktemp("modules") / "vit")


def build(encoder, drop_path=0.0, classes=2, **settings):
    module = modules.load(encoder)
    network = network_of(module, drop_path=drop_path) if drop_path else None
    backbone = Hub(module, 16, network=network)
    return Classifier(backbone, classes, image_size=16, resize=18, **settings)


def formula(name, decay=0.65):
    """MAE's: num_layers = blocks + 1; embeddings are layer 0, block i is layer i + 1 (from 0), the
    rest is the last one."""
    layers = DEPTH + 1
    if any(part in name for part in ("patch_embed", "cls", "positions", "registers")):
        layer = 0
    elif "block" in name:
        layer = int(name.split("block")[1].split("/")[0])  # ours count from 1
    else:
        layer = layers
    return decay ** (layers - layer)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_rates_by_depth_are_maes(encoder, drop_path):
    """By what Adam's first step changes: the rate itself, wherever there is a gradient."""
    model = build(encoder, drop_path, layer_decay=0.65)
    model.compile(optim.build("adam", 0.01))
    model.prepare()
    names = [v.name for v in model.backbone.module.trainable_variables]
    assert (
        len(names) == len(model.backbone.learned) and sum("block" in n for n in names) == 12 * DEPTH
    )
    rates = {id(v): g.rate for g in model.groups() for v in g.variables}
    for name, variable in zip(names, model.backbone.learned):
        assert rates[id(variable)] == pytest.approx(formula(name)), name
    assert all(rates[id(v)] == 1 for v in model.head.trainable_variables)
    model.head.kernel.assign(np.random.default_rng(0).normal(size=model.head.kernel.shape))
    before = [v.numpy() for v in model.backbone.learned]
    source = tfssl.open_source("glyphs:48")
    batch = next(iter(model.dataset(source, 8)))
    batch["label"] = batch["label"] % 2
    model.train_step(batch)
    for name, old, variable in zip(names, before, model.backbone.learned):
        moved = np.abs(variable.numpy() - old).max()
        assert moved == pytest.approx(0.01 * formula(name), rel=0.02), name


def test_published_rates():
    """ViT-B with 0.65: 13 layers below the head, as BEiT's and MAE's table has them."""
    table = 0.65 ** np.arange(13, -1, -1)
    names = ["vit_base/cls:0", "vit_base/block1/norm1/gamma:0", "vit_base/block12/mlp/fc2/kernel:0"]
    assert [vit.stage(name) for name in names] == [0, 1, 12]
    assert (
        vit.stage("vit_base/norm/gamma:0") is None and vit.stage("classifier/head/kernel:0") is None
    )
    assert 0.65 ** (13 - vit.stage(names[0])) == pytest.approx(table[0])
    assert 0.65 ** (13 - vit.stage(names[2])) == pytest.approx(table[12])


def test_the_network_of_a_module_is_its_graph(encoder):
    images = tf.constant(np.random.default_rng(0).random([3, 16, 16, 3]), tf.float32)
    module = modules.load(encoder)
    graph, network = Hub(module, 16), Hub(module, 16, network=network_of(module, drop_path=0.5))
    expected, found = graph(images, training=False), network(images, training=False)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
    for lists in ("learned", "others"):
        for mine, theirs in zip(getattr(network, lists), getattr(graph, lists)):
            np.testing.assert_array_equal(mine, theirs)
    assert network.drop_path == 0.5 and graph.drop_path == 0


def test_drop_path_acts_in_training_alone_and_is_not_published(encoder, tmp_path):
    source = tfssl.open_source("glyphs:48")
    models = [build(encoder, rate, source.num_classes) for rate in (0.0, 0.9)]
    losses = []
    for model in models:
        model.compile(optim.build("sgd", 0.0))
        model.prepare()
        kernel = np.random.default_rng(0).normal(size=model.head.kernel.shape)
        model.head.kernel.assign(kernel)
        history = model.fit(model.dataset(source, 16), steps_per_epoch=3, verbose=0).history
        evaluated = model.evaluate(
            model.evaluation_dataset(source, 16), verbose=0, return_dict=True
        )
        losses.append((history["loss"][0], evaluated["loss"]))
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-5)
    assert abs(losses[0][0] - losses[1][0]) > 1e-3
    # A checkpoint of the one is one of the other: the published classifier is the module's graph.
    path = tf.train.Checkpoint(model=models[1]).save(str(tmp_path / "c"))
    plain = build(encoder, classes=source.num_classes)
    plain.prepare()
    tf.train.Checkpoint(model=plain).read(path).assert_existing_objects_matched()
    published = tf.saved_model.load(save_classifier(plain, tmp_path / "m"))
    images = tf.constant(np.random.default_rng(0).random([3, 16, 16, 3]), tf.float32)
    np.testing.assert_allclose(published(images), models[1].classify(images)["logits"], atol=1e-4)


def test_targets_of_a_mixed_batch_by_numpy(encoder):
    """Each label by its share of the pixels, after smoothing; and the accuracy counts the larger."""
    source, n = tfssl.open_source("glyphs:48"), 16
    model = build(encoder, classes=10, mixing=Mixing(0.8, 1.0), label_smoothing=0.2)
    batch = next(iter(model.dataset(source, n)))
    labels = batch["label"].numpy().copy()
    labels[5] = -1
    batch["label"] = tf.constant(labels)
    batch = model.to_float(batch)
    _, own = model.mixing.mix(batch["image"], Draws(batch))
    mixed = model.augment(batch, Draws(batch))
    expected = np.zeros([n, 10])
    for i in range(n):
        for j, share in ((i, float(own[i])), (i ^ 1, 1 - float(own[i]))):
            if labels[j] >= 0:
                expected[i] += share * 0.2 / 10
                expected[i, labels[j]] += share * 0.8
    np.testing.assert_allclose(mixed["targets"], expected, atol=1e-6)
    larger = [labels[i] if own[i] >= 0.5 else labels[i ^ 1] for i in range(n)]
    np.testing.assert_array_equal(mixed["label"], larger)
    logits = np.random.default_rng(0).normal(size=[n, 10]).astype(np.float32)
    loss, measured = model.objective(mixed, tf.constant(logits))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -(expected * log_p).sum(1), rtol=1e-5)
    values, known = measured["accuracy"]
    np.testing.assert_array_equal(known, np.array(larger) >= 0)
    # In validation the loss is that of the one label, unsmoothed.
    plain, _ = model.objective({"label": tf.constant(labels)}, tf.constant(logits))
    np.testing.assert_allclose(plain[0], -log_p[0, labels[0]], rtol=1e-5)
    assert float(plain[5]) == 0


def train(encoder, steps, strategy=None, start=None, **settings):
    source = tfssl.open_source("glyphs:48")
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = build(encoder, 0.3, source.num_classes, **RECIPE, **settings)
        model.compile(optim.build("adamw", 1e-3, weight_decay=0.05))
        model.prepare()
    first = 0
    if start is not None:
        tf.train.Checkpoint(model=model).read(start).assert_existing_objects_matched()
        first = int(model.optimizer.iterations)
    data = strategies.training_data(strategy, model, source, 8, 0, first, steps - first)
    history = model.fit(data, steps_per_epoch=steps - first, verbose=0).history
    return model, history


def values(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def test_replicas_learn_what_one_does(float64, encoder, replicas):
    """All of the recipe at once, in double precision."""
    one, two = (train(encoder, 3, strategy) for strategy in (None, replicas))
    assert one[1]["loss"] == pytest.approx(two[1]["loss"], rel=1e-12)
    for mine, theirs in zip(values(one[0]), values(two[0])):
        np.testing.assert_allclose(theirs, mine, atol=1e-9 * max(1, np.abs(mine).max()))


@pytest.mark.slow  # tests/test_finetune.py has one
def test_a_resumed_run_is_the_uninterrupted_one(encoder, tmp_path):
    whole, _ = train(encoder, 4)
    half, _ = train(encoder, 2)
    path = tf.train.Checkpoint(model=half).write(str(tmp_path / "half"))
    resumed, _ = train(encoder, 4, start=path)
    for mine, theirs in zip(values(whole), values(resumed)):
        np.testing.assert_array_equal(mine, theirs)


def test_examples_are_augmented_in_training_alone(encoder):
    source = tfssl.open_source("glyphs:48")
    plain = build(encoder, classes=10, flip=False)
    strong = build(encoder, classes=10, flip=False, randaugment=2, random_erasing=1.0)
    batches = [next(iter(m.dataset(source, 16)))["image"].numpy() for m in (plain, strong)]
    assert batches[1].dtype == np.uint8
    changed = (batches[0] != batches[1]).any((1, 2, 3))
    assert changed.all()  # a rectangle of noise in each
    evaluated = [
        next(iter(m.evaluation_dataset(source, 16)))["image"].numpy() for m in (plain, strong)
    ]
    np.testing.assert_array_equal(*evaluated)


def test_modules_that_are_no_vision_transformer(encoder, tmp_path):
    backbone = backbones.build("resnet18_v1", 1 / 16)
    path = export.save(pretext.build("rotation", backbone, image_size=32), tmp_path / "m")
    with pytest.raises(
        UserError, match="--drop_path=0.1 is of vision transformers .* a resnet18_v1"
    ):
        _with_drop_path(modules.load(path), 0.1)
    facts = tmp_path / "m" / "assets" / "tfssl.json"
    content = json.loads(facts.read_text())
    content["network"] = {**content["network"], "name": "resnet50_v1"}
    facts.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be built .* more than the module's"):
        network_of(modules.load(path))

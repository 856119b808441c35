"""The classifier on a Hub module: its loss, its rates and its first step against NumPy; modules of
other people."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules
from encoders import save_encoder

import tfssl
from tfssl import optim
from tfssl.backbones.hub import Hub
from tfssl.classifiers.classifier import Classifier
from tfssl.errors import UserError
from tfssl.export.module import save_classifier
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The handle of a module that begins with a batch normalization of the images themselves."""
    return save_encoder(tmp_path_factory.mktemp("modules") / "encoder")


def build(handle, freeze=False, classes=2, **settings):
    module = modules.load(handle)
    backbone = Hub(module, 16, trainable=not freeze)
    return Classifier(
        backbone, classes, backbone.choose(""), **{"image_size": 16, "flip": False, **settings}
    )


def batch_of(rows=8, labels=None, seed=0):
    rng = np.random.default_rng(seed)
    zeros = np.zeros(rows, np.int64)
    return {
        "image": tf.constant(rng.integers(0, 256, [rows, 16, 16, 3]), tf.uint8),
        "label": tf.constant(np.arange(rows) % 2 if labels is None else labels, tf.int64),
        "index": tf.constant(zeros),
        "number": tf.range(rows, dtype=tf.int64),
        "seed": tf.constant(zeros),
        "weight": tf.ones([rows]),
        "replaced": tf.zeros([rows], tf.bool),
    }


def test_a_frozen_encoder_is_not_on_the_gradient_tape(encoder):
    """Its activations are nothing that a backward pass would ask for: the tape sees the linear
    layer alone."""
    model = build(encoder, freeze=True)
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    batch = model.augment(model.to_float(batch_of()), None)
    with tf.GradientTape() as tape:
        logits = model(batch, training=True)
    assert {id(v) for v in tape.watched_variables()} == {
        id(v) for v in model.head.trainable_variables
    }
    np.testing.assert_array_equal(logits, model({"image": batch["image"]}))  # as in evaluation


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def first_step(encoder, optimizer, rows=8, **settings):
    """A step of the linear layer on the frozen encoder: (model, features [N, D], labels one-hot
    [N, C])."""
    model = build(encoder, freeze=True, **settings)
    model.compile(optimizer)
    model.prepare()
    batch = batch_of(rows)
    model.train_step(batch)
    features = (
        modules.load(encoder)
        .endpoints(tf.cast(batch["image"], tf.float32) / 255)["pre_logits"]
        .numpy()
    )
    return model, features, np.eye(2)[batch["label"].numpy()]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "lars", "lars_byol"])
@pytest.mark.parametrize("head_rate", [1.0, 20.0])
def test_the_linear_layers_first_step_by_hand(encoder, name, head_rate):
    """From zero weights all probabilities are 1 / 2; the factor is one on the rate; LARS leaves
    this layer to plain momentum."""
    model, features, labels = first_step(
        encoder, optim.build(name, 0.1, momentum=0.9), head_rate=head_rate
    )
    step = 0.1 * head_rate * (1.9 if name == "nesterov" else 1.0)
    np.testing.assert_allclose(
        model.head.kernel, -step * features.T @ (0.5 - labels) / 8, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        model.head.bias, -step * (0.5 - labels).mean(0), rtol=1e-4, atol=1e-7
    )


def test_adamw_decays_the_linear_layer_and_lamb_leaves_it_to_adam(encoder):
    """LAMB would scale its steps by its weights, which begin at zero."""
    for name, decayed in (("adamw", True), ("lamb", False)):
        model = build(encoder)
        model.compile(optim.build(name, 0.1, weight_decay=0.1))
        model.prepare()
        names = [v.name for v in model.optimizer.kernels()]
        assert (model.head.kernel.name in names) == decayed
        assert "conv/kernel:0" in names and model.head.bias.name not in names


def test_lars_does_not_scale_the_linear_layers_steps_later_either(encoder):
    model = build(encoder)
    model.compile(optim.build("lars", 0.1, momentum=0.0))
    model.prepare()
    start = np.random.default_rng(0).normal(size=model.head.kernel.shape)
    model.head.kernel.assign(start)
    batch = batch_of()
    model.train_step(batch)
    moved = model.head.kernel.numpy() - start
    fresh = build(encoder)
    fresh.compile(tf.keras.optimizers.SGD(0.1))
    fresh.prepare()
    fresh.head.kernel.assign(start)
    fresh.train_step(batch)
    np.testing.assert_allclose(moved, fresh.head.kernel.numpy() - start, rtol=1e-3, atol=1e-6)
    conv = [
        next(v for v in m.backbone.learned if "conv" in v.name and "kernel" in v.name)
        for m in (model, fresh)
    ]
    assert not np.allclose(*conv, rtol=1e-6, atol=0)  # the encoder's kernels are scaled


def test_stages_by_layer_decay(tmp_path):
    """Adam's first step is the rate: of each stage a fourth of that of the next one, and of the
    last a fourth of the linear layer's."""
    module = modules.load(
        tiny_modules.save_ours(tmp_path)
    )  # whose outputs come in another order than that of their depth
    backbone = Hub(module, 16)
    backbone.learned, backbone.others = list(module.variables), []
    assert [[v.shape[-1] for v in stage] for stage in backbone.stages()] == [[8], [16]]
    model = Classifier(
        backbone, 2, "pre_logits", image_size=16, flip=False, layer_decay=0.25, head_rate=2.0
    )
    model.compile(optim.build("adam", 0.01))
    model.prepare()
    model.head.kernel.assign(np.random.default_rng(0).normal(size=model.head.kernel.shape))
    before = [v.numpy() for v in model.trainable_variables]
    model.train_step(batch_of())
    moved = [np.abs(b - v.numpy()).max() for b, v in zip(before, model.trainable_variables)]
    np.testing.assert_allclose(moved, [0.01 / 16, 0.01 / 4, 0.02, 0.02], rtol=0.01)


def test_an_encoder_of_one_stage_has_no_layer_decay(encoder):
    model = build(encoder, layer_decay=0.5)
    model.compile(tf.keras.optimizers.SGD(0.1))
    with pytest.raises(
        UserError, match="--layer_decay: .* does not tell which of its variables are deep"
    ):
        model.prepare()


def test_kernels_have_more_than_one_axis(encoder):
    model = build(encoder, weight_decay=0.5)
    model.prepare()
    assert sorted(len(k.shape) for k in model.kernels()) == [2, 4] and len(model.adapted()) == 1
    decay = 0.5 * 0.5 * sum((k.numpy().astype(float) ** 2).sum() for k in model.kernels())
    model.compile(tf.keras.optimizers.SGD(0.1))
    assert float(model._scaled_decays(1.0)[""]) == pytest.approx(decay, rel=1e-5)


def test_loss_of_teacher_and_labels_together_by_numpy(encoder):
    rng = np.random.default_rng(0)
    logits, taught = rng.normal(size=[2, 8, 3])
    labels = np.array([0, 1, 2, 0, -1, -1, -1, -1])
    t, weight = 2.0, 0.7
    model = build(
        encoder,
        classes=3,
        teacher=lambda x: None,
        temperature=t,
        distill_weight=weight,
        scale_by_t2=True,
    )
    batch = {"label": tf.constant(labels), "taught": tf.constant(taught)}
    loss, measured = model.objective(batch, tf.constant(logits))
    p = softmax(logits)
    cross_entropy = np.where(labels >= 0, -np.log(p[np.arange(8), np.maximum(labels, 0)]), 0)
    distilled = -t * t * (softmax(taught / t) * np.log(softmax(logits / t))).sum(1)
    np.testing.assert_allclose(loss, (1 - weight) * cross_entropy + weight * distilled, rtol=1e-6)
    np.testing.assert_array_equal(measured["agreement"], logits.argmax(1) == taught.argmax(1))
    values, known = measured["accuracy"]
    np.testing.assert_array_equal(known, labels >= 0)
    np.testing.assert_array_equal(values[:4], logits[:4].argmax(1) == labels[:4])


def test_accuracy_is_that_of_the_labelled(encoder):
    """Images without a label count neither as hits nor as misses."""
    model = build(encoder, teacher=lambda x: tf.zeros([x.shape[0], 2]), distill_weight=0.5)
    model.compile(tf.keras.optimizers.SGD(0.0))
    model.prepare()
    model.head.bias.assign([1.0, 0.0])  # always class 0
    model.train_step(batch_of(8, [0, 0, 0, 1, -1, -1, -1, -1]))
    assert float(model.results()["accuracy"]) == pytest.approx(0.75)
    assert float(model.results()["agreement"]) == 1.0
    assert set(model.chance()) == set(model.results())


def test_a_frozen_encoder_stays_as_it_is(encoder):
    model, _, _ = first_step(encoder, tf.keras.optimizers.SGD(1.0))
    for mine, theirs in zip(model.backbone.variables, build(encoder).backbone.variables):
        np.testing.assert_array_equal(*(np.sort(v.numpy().ravel()) for v in (mine, theirs)))
    assert len(model.trainable_variables) == 2


def moving_mean(model):
    return next(v for v in model.backbone.others if "first/moving_mean" in v.name)


def test_batch_statistics_move_on_one_device(encoder):
    """The first normalization sees the images: its moving mean goes a fifth of the way to
    theirs."""
    model = build(encoder)
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    batch = batch_of()
    before = [v.numpy() for v in model.backbone.learned]
    model.head.kernel.assign(tf.ones_like(model.head.kernel) * [[1.0, -1.0]])
    model.train_step(batch)
    expected = 0.2 * batch["image"].numpy().mean((0, 1, 2)) / 255
    np.testing.assert_allclose(moving_mean(model), expected, rtol=1e-5)
    assert all(not np.array_equal(v, b) for v, b in zip(model.backbone.learned, before))


def test_replicas_share_the_batch(encoder, replicas, photos):
    """Gradients are those of the whole batch, where the encoder does not learn; statistics are the
    mean of the replicas' own."""
    from tfssl.runtime import strategy as strategies

    source = tfssl.open_source(f"folder:{photos}")
    images = []
    for batch in build(encoder).dataset(source, 8, steps=2):
        images.append(batch["image"].numpy().mean((0, 1, 2)) / 255)
    heads, means = [], []
    for strategy in (tf.distribute.get_strategy(), replicas):
        for freeze in (True, False):
            with strategy.scope():
                model = build(encoder, freeze=freeze)
                model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9))
                model.prepare()
            data = strategies.training_data(strategy, model, source, 8, 0, 0, 2)
            model.fit(data, steps_per_epoch=2, verbose=0)
            (heads if freeze else means).append(
                (model.head.kernel if freeze else moving_mean(model)).numpy()
            )
    np.testing.assert_allclose(heads[1], heads[0], rtol=1e-4, atol=1e-6)
    expected = 0.8 * 0.2 * images[0] + 0.2 * images[1]
    for found in means:
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_parts_of_a_batch_add_up(encoder, photos):
    source = tfssl.open_source(f"folder:{photos}")
    kernels = []
    for parts in (1, 4):
        model = build(encoder, freeze=True, teacher=lambda x: x[:, 0, 0, :2], distill_weight=0.5)
        model.compile(tf.keras.optimizers.SGD(0.5), accumulate_steps=parts)
        model.fit(model.dataset(source, 8), steps_per_epoch=2, verbose=0)
        kernels.append(model.head.kernel.numpy())
    np.testing.assert_allclose(kernels[1], kernels[0], rtol=1e-4, atol=1e-6)


def test_a_teacher_is_in_no_checkpoint_and_learns_nothing(encoder, tmp_path):
    other = modules.load(encoder)
    before = [v.numpy() for v in other.variables]
    model = build(encoder, teacher=lambda x: other.endpoints(x)["pre_logits"][:, :2])
    alone = build(encoder)
    names = []
    for m in (model, alone):
        m.compile(tf.keras.optimizers.SGD(0.5))
        m.prepare()
        path = tf.train.Checkpoint(model=m).save(str(tmp_path / "c"))
        names.append({name for name, _ in tf.train.list_variables(path)})
    assert names[0] == names[1] and len(model.trainable_variables) == len(alone.trainable_variables)
    model.train_step(batch_of(labels=[-1] * 8))
    for v, b in zip(other.variables, before):
        np.testing.assert_array_equal(v, b)


# Modules of other people.


def keras_module(folder):
    inputs = tf.keras.Input([16, 16, 3])
    x = tf.keras.layers.Conv2D(8, 3, name="conv")(inputs)
    x = tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization(momentum=0.5)(x))
    model = tf.keras.Model(inputs, tf.keras.layers.GlobalAveragePooling2D()(x))
    tf.saved_model.save(model, str(folder))
    return str(folder)


def simclr_module(folder):
    """As SimCLR v2's: a dict of endpoints, and an argument `trainable` that has no default."""
    encoder = tiny_modules.Encoder()

    @tf.function
    def call(images, trainable):
        maps = encoder.maps(images)
        return {
            "final_avg_pool": maps["pre_logits"] + (1.0 if trainable else 0.0),
            "proj_head_input": maps["pre_logits"],
        }

    for trainable in (True, False):
        call.get_concrete_function(tf.TensorSpec([None, None, None, 3], tf.float32), trainable)
    module = tf.train.Checkpoint(encoder=encoder)
    module.__call__ = call
    tf.saved_model.save(module, str(folder), signatures={})
    return str(folder)


def test_a_class_whose_name_has_a_line_break_takes_one_line(encoder, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("tfssl.export.module.write", lambda *given: written.append(given))
    save_classifier(build(encoder), tmp_path / "mine", class_names=["cold", "polar\nbear"])
    assert {"labels.txt": "cold\npolar bear\n"} in written[0]


FOREIGN = {
    "keras": (keras_module, "", True),
    "plain module": (tiny_modules.save_callable, "", False),
    "signature": (tiny_modules.save_signature, "default", False),
    "simclr": (simclr_module, "final_avg_pool", False),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_modules_learn_and_are_published(kind, photos, tmp_path):
    make, endpoint, moves = FOREIGN[kind]
    module = modules.load(make(tmp_path / "theirs"))
    backbone = Hub(module, 16)
    model = Classifier(backbone, 2, backbone.choose(endpoint), image_size=16)
    before = [v.numpy() for v in backbone.variables]
    model.compile(tf.keras.optimizers.SGD(0.3, momentum=0.9))
    source = tfssl.open_source(f"folder:{photos}")
    history = model.fit(model.dataset(source, 16), epochs=3, steps_per_epoch=8, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0], history
    changed = [not np.array_equal(v, b) for v, b in zip(backbone.variables, before)]
    assert len(changed) == (6 if moves else 2) and all(changed)
    x = np.random.default_rng(0).random([3, 16, 16, 3], np.float32)
    published = tf.saved_model.load(
        save_classifier(model, tmp_path / "mine", class_names=["cold", "warm"])
    )
    np.testing.assert_allclose(
        published(x), model.classify(tf.constant(x))["logits"], rtol=1e-4, atol=1e-5
    )
    assert len(published.trainable_variables) == len(backbone.learned) + 2


def test_an_endpoint_has_to_be_named_where_there_are_several(tmp_path, modules_with_maps):
    with pytest.raises(UserError, match="--endpoint=final_avg_pool, proj_head_input"):
        build(simclr_module(tmp_path / "m"))
    backbone = Hub(modules.load(modules_with_maps), 16)
    assert backbone.choose("") == "pre_logits" and backbone.choose("block") == "block"
    with pytest.raises(UserError, match="no endpoint 'blok': --endpoint=stem, block, pre_logits"):
        backbone.choose("blok")
    images = tf.random.stateless_uniform([2, 16, 16, 3], [1, 2])
    endpoints = backbone(images)
    np.testing.assert_allclose(
        backbone.vector(endpoints, "block"), endpoints["pre_logits"], rtol=1e-5
    )  # its mean


@pytest.fixture
def modules_with_maps(tmp_path):
    (tmp_path / "ours").mkdir()
    return tiny_modules.save_ours(tmp_path / "ours")

"""The one training step: its loss against a hand computation, replicas, XLA, precision, bookkeeping; for every task."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext

TASKS = {"rotation": {}, "supervised": {"num_classes": 2}}


@pytest.fixture
def float64():
    tf.keras.mixed_precision.set_global_policy(None)  # a policy that was set would win over floatx
    tf.keras.backend.set_floatx("float64")
    yield
    tf.keras.backend.set_floatx("float32")


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def small_network():
    """Without batch normalisation, whose statistics are a replica's own."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv"),
            tf.keras.layers.GlobalAveragePooling2D(name="pool"),
        ]
    )


def build(task, backbone=None, **settings):
    backbone = backbones.build(backbone or small_network())
    return pretext.build(task, backbone, image_size=16, **TASKS[task], **settings)


def normalised_network():
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, use_bias=False, name="conv1"),
            tf.keras.layers.BatchNormalization(name="norm"),
            tf.keras.layers.ReLU(name="relu"),
            tf.keras.layers.Conv2D(8, 3, name="conv2"),
        ]
    )


def test_every_task_is_tested():
    assert set(TASKS) == set(pretext.NAMES)


@pytest.mark.parametrize("task", TASKS)
def test_two_replicas_train_like_one(task, source, two_replicas, float64):
    """Same flags, same weights to 1e-9 after three steps, on one device and on two that share the batch."""
    trained = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        tf.keras.utils.set_random_seed(1)
        with strategy.scope():
            model = build(task)
            model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9))
        replicas = strategy.num_replicas_in_sync

        def data(context, model=model, replicas=replicas):
            del context
            return model.dataset(source, 8, seed=2, steps=3, rows=(0, 8), chunk=8 // replicas)

        batches = strategy.distribute_datasets_from_function(data) if replicas > 1 else data(None)
        history = model.fit(batches, steps_per_epoch=3, verbose=0).history
        trained.append((history, [v.numpy() for v in model.trainable_variables]))
    (history1, one), (history2, two) = trained
    for name in set(history1) - {"input_seconds"}:
        np.testing.assert_allclose(history1[name], history2[name], rtol=1e-12, err_msg=name)
    for a, b in zip(one, two):  # noqa: B905 (Python 3.9)
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_loss_gradient_and_weight_decay_by_hand(source, float64):
    """One SGD step is w - r (d mean(loss) / dw + wd w for kernels only), with the loss written out in NumPy."""
    model = build("rotation", weight_decay=0.01, color=False, flip=False)
    model.compile(tf.keras.optimizers.SGD(0.5))
    model.prepare()
    batch = next(iter(model.dataset(source, 4, seed=0)))
    before = [v.numpy() for v in model.trainable_variables]
    images = np.stack([np.rot90(x, k) for x in batch["image"].numpy() / 255.0 for k in range(4)]) * 2 - 1
    labels = np.tile(np.arange(4), 4)

    def loss_of(weights):
        for variable, value in zip(model.trainable_variables, weights):  # noqa: B905
            variable.assign(value)
        logits = model.head(model.backbone(images, training=True)["pre_logits"]).numpy()
        shifted = logits - logits.max(1, keepdims=True)
        return -np.mean((shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(16), labels])

    expected = []
    for i, variable in enumerate(model.trainable_variables):
        slope = np.zeros(variable.shape)
        for at in np.ndindex(*variable.shape):
            values = []
            for sign in (1, -1):
                weights = [w.copy() for w in before]
                weights[i][at] += sign * 1e-6
                values.append(loss_of(weights))
            slope[at] = (values[0] - values[1]) / 2e-6
        decay = 0.01 * before[i] if "kernel" in variable.name else 0.0
        expected.append(before[i] - 0.5 * (slope + decay))
    reported = loss_of(before)
    model.train_step(batch)
    for variable, value in zip(model.trainable_variables, expected):  # noqa: B905
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-8, err_msg=variable.name)
    np.testing.assert_allclose(float(model.metrics[0].result()), reported, rtol=1e-9)  # the task's loss alone


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_compiled_step(task, policy, source):
    """One XLA-compiled step of a network with batch normalisation: finite, all weights move, variables stay float32."""
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = build(task, normalised_network())
        model.compile(tf.keras.optimizers.SGD(0.01), jit_compile=True)
        model.prepare()
        before = [v.numpy() for v in model.trainable_variables]
        history = model.fit(model.dataset(source, 4, steps=1), steps_per_epoch=1, verbose=0).history
        assert np.isfinite(history["loss"][0]) and history["loss"][0] > 0
        assert all(v.dtype == tf.float32 for v in model.trainable_variables)
        moved = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before)]  # noqa: B905
        assert all(moved) or policy == "mixed_float16"  # a first float16 step may be skipped by loss scaling
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_xla_equals_plain(source):
    results = []
    for jit in (False, True):
        tf.keras.utils.set_random_seed(0)
        model = build("rotation", color=False)  # XLA draws other random numbers
        model.compile(tf.keras.optimizers.SGD(0.1), jit_compile=jit)
        model.fit(model.dataset(source, 8, steps=2), steps_per_epoch=2, verbose=0)
        results.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*results):  # noqa: B905
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_steps_per_execution_change_nothing(source):
    results = []
    for steps in (1, 4):
        tf.keras.utils.set_random_seed(0)
        model = build("rotation")
        model.compile(tf.keras.optimizers.SGD(0.1), steps_per_execution=steps)
        model.fit(model.dataset(source, 8, steps=6), steps_per_epoch=6, verbose=0)
        results.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*results):  # noqa: B905
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_evaluation_weighs_every_image_once(source):
    """Batches of 7 over 48 images: the blank rows of the last batch change nothing."""
    model = build("supervised")
    model.compile(tf.keras.optimizers.SGD(0.1))
    results = [model.evaluate(model.evaluation_dataset(source, size), verbose=0, return_dict=True) for size in (48, 7)]
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


def test_waiting_for_input_is_measured(source):
    model = build("rotation")
    model.compile(tf.keras.optimizers.SGD(0.1), steps_per_execution=2)

    def slow(x):
        return tf.numpy_function(lambda x: (__import__("time").sleep(0.2), x)[1], [x], x.dtype)

    def delayed(batch):
        return {**batch, "number": tf.ensure_shape(slow(batch["number"]), [8])}

    data = model.dataset(source, 8, steps=6).map(delayed)
    seconds = []
    watch = tf.keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seconds.append(logs["input_seconds"]))
    model.fit(data, steps_per_epoch=6, verbose=0, callbacks=[watch])
    assert len(seconds) == 3 and 0.3 < seconds[-1] < 2.0  # two steps of 0.2 s each, less what the step itself took


def test_nonfinite_steps_are_counted(source):
    model = build("rotation")
    model.compile(tf.keras.optimizers.SGD(1e30), steps_per_execution=1)
    model.fit(model.dataset(source, 8, steps=5), steps_per_epoch=5, verbose=0)
    assert model.counters["nonfinite_steps"] >= 2


def test_kernels_are_those_of_convolutions_and_dense_layers():
    model = build("rotation", backbones.build("resnet18_v2", 0.125, "small"))
    model.prepare()
    names = {v.name.split("/")[-1] for v in model.kernels()}
    assert names == {"kernel:0"}
    # ResNet-18 v2: the root, 8 units of 2 convolutions, 3 projections; and the head.
    assert len(model.kernels()) == 1 + 16 + 3 + 1

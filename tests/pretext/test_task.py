"""The one training step: its loss against a hand computation, statistics on replicas and in parts,
precision, bookkeeping. (What every task is held to: testing/test_tasks.py.)"""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.backbones.norm import BatchNorm, Norm
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.optim.groups import Group, apart
from tfssl.runtime import strategy as strategies

TASKS = {  # the contract of all: testing/test_tasks.py
    "rotation": {},
    "moco": {
        "queue_size": 32,
        "num_classes": 2,
        "split_batch_norm": 1,
        "projection_size": 8,
        "augmentation": "crop",
    },
    "infomin": {
        **{
            "queue_size": 32,
            "num_classes": 2,
            "split_batch_norm": 1,
            "projection_size": 8,
            "augmentation": "crop",
        },
        **{"jigsaw_size": 24, "jigsaw_patch_size": 7, "jigsaw_augmentation": "crop"},
    },
    "simclr": {"num_classes": 2, "projection_size": 8},
    "byol": {"projection_hidden": 12, "projection_size": 8, "augmentation": "crop"},
    "supervised": {"num_classes": 2},
}


def slow(*parameters):
    """What another case shows nearly as well."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


def small_network():
    """Without batch normalization, whose statistics are a replica's own."""
    return tf.keras.Sequential([tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv")])


def build(task, backbone=None, **settings):
    network = backbone or small_network()
    backbone = backbones.build(network)
    if hasattr(network, "norm_policy"):
        backbone.norm_policy = network.norm_policy  # the head's too
    return pretext.build(task.split()[0], backbone, **{"image_size": 16, **TASKS[task], **settings})


def normalized_network():
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, use_bias=False, name="conv1"),
            tf.keras.layers.BatchNormalization(name="norm"),
            tf.keras.layers.ReLU(name="relu"),
            tf.keras.layers.Conv2D(8, 3, name="conv2"),
        ]
    )


def resnet(**training):
    return backbones.build("resnet18_v2", 1 / 16, "small", bn_momentum=0.8, **training)


def network_with(sync=False, groups=1):
    batch_norm = {"sync": sync, "groups": groups}
    network = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, use_bias=False, name="conv1"),
            BatchNorm(0.8, **batch_norm, name="norm1"),
            tf.keras.layers.ReLU(name="relu"),
            tf.keras.layers.Conv2D(8, 3, use_bias=False, name="conv2"),
            BatchNorm(0.8, **batch_norm, name="norm2"),
            tf.keras.layers.ReLU(
                name="relu2"
            ),  # or a head with a normalization of its own would leave norm2 without a gradient
        ]
    )
    network.norm_policy = Norm(sync=sync, groups=groups)
    return network


def trained(task, make_backbone, source, strategy=None, steps=3, batch_size=8, **compiled):
    """History, weights and optimizer state (the first step's momentum is its gradient) after
    training on equal terms."""
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build(task, make_backbone())
        model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), **compiled)
    batches = strategies.training_data(strategy, model, source, batch_size, 2, 0, steps)
    history = model.fit(batches, steps_per_epoch=steps, verbose=0).history
    history.pop("input_seconds")
    state = {v.name: v.numpy() for v in [*model.variables, *model.optimizer.variables]}
    return history, state


def assert_equal(a, b, tolerance):
    """Histories, and every variable relative to its own largest value."""
    (history_a, state_a), (history_b, state_b) = a, b
    assert history_a.keys() == history_b.keys()
    for name in history_a:
        np.testing.assert_allclose(history_a[name], history_b[name], rtol=tolerance, err_msg=name)
    assert len(state_a) == len(state_b)
    for (name, x), y in zip(state_a.items(), state_b.values()):
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance * np.abs(x).max() + 1e-14, err_msg=name
        )


@pytest.mark.once
def test_a_synchronised_resnet_on_replicas(source, replicas, float64):
    alone, together = (
        trained("rotation", lambda: resnet(bn_sync=True), source, s, 1) for s in (None, replicas)
    )
    assert_equal(alone, together, 1e-9)


@pytest.mark.parametrize("task", ["moco", slow("infomin")])
@pytest.mark.once
def test_split_groups_train_like_one(task, source, replicas, float64, monkeypatch):
    """Four groups of the global batch, in whose random order the keys are computed: on one device,
    and on several that share the groups and exchange the keys' images. The colors are drawn on the
    device. Moving statistics move in another order."""
    settings = {
        "split_batch_norm": 4,
        "augmentation": "moco_v2",
        "augment_on": "device",
        "symmetric": True,
    }
    monkeypatch.setitem(TASKS, task, {**TASKS[task], **settings})
    alone, together = (trained(task, network_with, source, s) for s in (None, replicas))
    for result in (alone, together):
        for name in [name for name in result[1] if "moving" in name]:
            del result[1][name]
    assert_equal(alone, together, 1e-9)


@pytest.mark.parametrize("parts", [2, slow(4)])
@pytest.mark.once
def test_parts_move_statistics_as_groups_do(parts, source, float64):
    """The reference is the whole batch, normalized in groups of a part's size; without batch
    normalization, the whole batch as it is."""
    whole = trained("rotation", small_network, source)
    assert_equal(whole, trained("rotation", small_network, source, accumulate_steps=parts), 1e-8)
    grouped = trained("rotation", lambda: network_with(groups=parts), source)
    assert_equal(grouped, trained("rotation", network_with, source, accumulate_steps=parts), 1e-8)
    whole = trained("rotation", network_with, source)  # the groups do make a difference
    assert abs(whole[0]["loss"][0] - grouped[0]["loss"][0]) > 1e-6


@pytest.mark.once
def test_accumulation_on_replicas(source, replicas, float64):
    """Two parts on each of two replicas are four groups on one device; their statistics move in
    another order."""
    count = replicas.num_replicas_in_sync
    together = trained("rotation", network_with, source, replicas, steps=1, accumulate_steps=2)
    alone = trained("rotation", lambda: network_with(groups=2 * count), source, steps=1)
    for result in (together, alone):
        for name in [name for name in result[1] if "moving" in name]:
            del result[1][name]
    assert_equal(alone, together, 1e-9)


def test_accumulation_and_rematerialisation_compile(source):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")  # whose loss is scaled besides
    try:
        history, state = trained(
            "rotation",
            lambda: resnet(remat=True),
            source,
            steps=2,
            accumulate_steps=2,
            jit_compile=True,
        )
        assert np.isfinite(history["loss"][0])
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


@pytest.mark.parametrize("network", [slow("resnet18_v1"), "resnet18_v2"])
def test_rematerialised_training_is_the_same(network, source, float64):
    """Weights, gradients, and the moving statistics, which must not move twice."""
    results = [
        trained("rotation", lambda: backbones.build(network, 1 / 16, "small", remat=remat), source)  # noqa: B023
        for remat in (False, True)
    ]
    assert_equal(*results, 1e-9)


def test_synchronised_parts_are_refused_where_they_cannot_be(replicas):
    with replicas.scope():
        model = build("rotation", resnet(bn_sync=True))
        with pytest.raises(UserError, match="--accumulate_steps=2 and --sync_batch_norm"):
            model.compile(tf.keras.optimizers.SGD(0.1), accumulate_steps=2)


def test_loss_gradient_and_weight_decay_by_hand(source, float64):
    """One SGD step is w - r (d mean(loss) / dw + wd w for kernels only), with the loss written out
    in NumPy."""
    model = build("rotation", weight_decay=0.01, color=False, flip=False)
    model.compile(tf.keras.optimizers.SGD(0.5))
    model.prepare()
    batch = next(iter(model.dataset(source, 4, seed=0)))
    before = [v.numpy() for v in model.trainable_variables]
    images = (
        np.stack([np.rot90(x, k) for x in batch["image"].numpy() / 255.0 for k in range(4)]) * 2 - 1
    )
    labels = np.tile(np.arange(4), 4)

    def loss_of(weights):
        for variable, value in zip(model.trainable_variables, weights):
            variable.assign(value)
        logits = model.head(model.backbone(images, training=True)["pre_logits"]).numpy()
        shifted = logits - logits.max(1, keepdims=True)
        return -np.mean(
            (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(16), labels]
        )

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
    for variable, value in zip(model.trainable_variables, expected):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-8, err_msg=variable.name)
    np.testing.assert_allclose(
        float(model.metrics[0].result()), reported, rtol=1e-9
    )  # the task's loss alone


@pytest.mark.parametrize(
    "task,policy",
    [
        *(("rotation", policy) for policy in ("float32", "mixed_float16")),
        *((task, "mixed_bfloat16") for task in ("simclr", "byol")),
        *(
            slow(task, policy)
            for task in ("moco", "infomin")
            for policy in ("float32", "mixed_bfloat16")
        ),
    ],
)
def test_a_compiled_step(task, policy, source):
    """One XLA-compiled step of a network with batch normalization: finite, all weights move,
    variables stay float32."""
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = build(task, normalized_network())
        model.compile(tf.keras.optimizers.SGD(0.01), jit_compile=True)
        model.prepare()
        before = [v.numpy() for v in model.trainable_variables]
        history = model.fit(model.dataset(source, 4, steps=1), steps_per_epoch=1, verbose=0).history
        assert np.isfinite(history["loss"][0]) and history["loss"][0] != 0
        assert all(v.dtype == tf.float32 for v in model.trainable_variables)
        moved = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before)]
        assert (
            all(moved) or policy == "mixed_float16"
        )  # a first float16 step may be skipped by loss scaling
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_steps_per_execution_change_nothing(source):
    results = []
    for steps in (1, 4):
        tf.keras.utils.set_random_seed(0)
        model = build("rotation")
        model.compile(tf.keras.optimizers.SGD(0.1), steps_per_execution=steps)
        data = model.dataset(source, 8, steps=6)
        graph = model.make_train_function().get_concrete_function(iter(data)).graph
        assert any("While" in op.type for op in graph.get_operations()) == (
            steps > 1
        )  # a single step is no loop
        model.fit(data, steps_per_epoch=6, verbose=0)
        results.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_short_interval_leaves_later_passes_whole(source):
    """Keras lowers steps_per_execution where fewer steps are left, also before anything is traced."""
    model = build("rotation")
    model.compile(tf.keras.optimizers.SGD(0.1), steps_per_execution=4)
    validation = model.evaluation_dataset(source, 6)
    keras = {"validation_data": validation, "validation_steps": 8, "verbose": 0}
    model.fit(model.dataset(source, 8, steps=1), steps_per_epoch=1, **keras)
    assert int(model._test_counter) == 8
    model.evaluate(validation, steps=8, verbose=0)
    assert int(model._test_counter) == 8


def test_layers_that_draw_are_refused_where_parts_are_computed_twice():
    layers = [tf.keras.layers.Conv2D(4, 3, 2), tf.keras.layers.Dropout(0.5, name="drop")]
    for task, said in (("simclr", "drop of the backbone would draw anew"), ("rotation", None)):
        backbone = backbones.build(tf.keras.Sequential(layers))
        model = pretext.build(task, backbone, image_size=16)
        with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            model.compile(tf.keras.optimizers.SGD(0.1), accumulate_steps=2)


def test_evaluation_weighs_every_image_once(source):
    """Batches of 7 over 48 images: the blank rows of the last batch change nothing."""
    model = build("supervised")
    model.compile(tf.keras.optimizers.SGD(0.1))
    results = [
        model.evaluate(model.evaluation_dataset(source, size), verbose=0, return_dict=True)
        for size in (48, 7)
    ]
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
    watch = tf.keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seconds.append(logs["input_seconds"])
    )
    model.fit(data, steps_per_epoch=6, verbose=0, callbacks=[watch])
    assert (
        len(seconds) == 3 and 0.3 < seconds[-1] < 2.0
    )  # two steps of 0.2 s each, less what the step itself took


def test_nonfinite_steps_are_counted(source):
    model = build("rotation")
    model.compile(tf.keras.optimizers.SGD(1e30), steps_per_execution=1)
    model.fit(model.dataset(source, 8, steps=5), steps_per_epoch=5, verbose=0)
    assert model.counters["nonfinite_steps"] >= 2


def test_preparing_traces_the_network_once_and_draws_what_an_eager_call_draws():
    made = []
    for prepare in (True, False):
        tf.keras.utils.set_random_seed(3)
        model = pretext.build(
            "rotation", backbones.build("resnet18_v2", 1 / 16, "small"), image_size=16
        )
        model.compile(optimizer="sgd")
        calls, call = [], model.call
        model.call = lambda batch, training=False: calls.append(batch) or call(batch, training)  # noqa: B023
        if prepare:
            model.prepare()
            assert len(calls) == 1  # tf.function traced twice: again once the variables were there
        else:
            model(model.to_float(model.zero_batch(2)))
        made.append(model.get_weights())
    for ours, eager in zip(*made):
        np.testing.assert_array_equal(ours, eager)


def test_kernels_are_those_of_convolutions_and_dense_layers():
    model = build("rotation", backbones.build("resnet18_v2", 0.125, "small"))
    model.prepare()
    names = {v.name.split("/")[-1] for v in model.kernels()}
    assert names == {"kernel:0"}
    # ResNet-18 v2: the root, 8 units of 2 convolutions, 3 projections; and the head.
    assert len(model.kernels()) == 1 + 16 + 3 + 1


def test_kernels_of_a_mobile_network_are_all_of_its_convolutions():
    """Depthwise kernels too, which Keras calls otherwise; no normalization, not even one over
    several axes, and no slope."""
    network = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2),
            tf.keras.layers.LayerNormalization(axis=[1, 2, 3]),
            tf.keras.layers.DepthwiseConv2D(3),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.PReLU(),
            tf.keras.layers.SeparableConv2D(8, 3),
        ]
    )
    network.build((None, 16, 16, 3))
    model = build("simclr", network)
    model.prepare()
    assert [tuple(v.shape) for v in model.kernels()][:4] == [
        (3, 3, 3, 6),
        (3, 3, 6, 1),
        (3, 3, 6, 1),
        (1, 1, 6, 8),
    ]
    assert len(model.kernels()) == 4 + 2  # and the projection's
    model = build("byol", network, num_classes=2)
    model.prepare()
    adapted = {id(v) for v in model.adapted()} - {id(v) for v in model.kernels()}
    assert adapted == {id(model.probe.kernel)}  # BYOL's code has its probe in LARS


@pytest.mark.once
def test_decay_of_all_parameters_is_pytorchs(float64):
    """SGD in PyTorch: g <- g + w d for every parameter; here on the loss, where the difference to a
    run without decay has to be r w d."""
    models = []
    for settings in (
        {"weight_decay": 0.0},
        {"weight_decay": 0.01, "decay": "all"},
        {"weight_decay": 0.01},
    ):
        tf.keras.utils.set_random_seed(0)
        model = build("simclr", normalized_network(), **settings)
        model.compile(tf.keras.optimizers.SGD(0.5))
        model.prepare()
        start = [
            v.assign(np.random.default_rng(i).normal(size=v.shape)).numpy()
            for i, v in enumerate(model.trainable_variables)
        ]
        model.train_step(model.zero_batch(4))
        models.append([v.numpy() for v in model.trainable_variables])
    names = [v.name for v in model.trainable_variables]
    for name, w, without, everything, kernels in zip(names, start, *models):
        decayed = 0.5 * 0.01 * w if "probe" not in name else 0.0
        np.testing.assert_allclose(without - everything, decayed, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(
            without - kernels, decayed if "kernel" in name else 0.0, atol=1e-12, err_msg=name
        )
    assert {name.split("/")[-1] for name in names} == {"kernel:0", "bias:0", "gamma:0", "beta:0"}


@pytest.mark.parametrize("task", ["rotation", "byol"])
@pytest.mark.once
def test_a_short_runs_statistics_are_those_of_its_images(task, source, float64):
    """Ten steps on one batch at the default momentum 0.99, which alone would leave nine tenths of
    where the statistics began; those of a target network too."""
    network = tf.keras.Sequential([BatchNorm(), tf.keras.layers.Conv2D(6, 3, 2)])
    network.build((None, 16, 16, 3))
    model = build(task, network)
    model.compile(tf.keras.optimizers.SGD(0.0))
    model.prepare()
    batch = next(iter(model.dataset(source, 8, steps=1)))
    for _ in range(10):
        model.train_step(batch)
    augmented = model.augment(model.to_float(batch), Draws(batch))
    seen = (
        [model.preview(augmented)]
        if task == "rotation"
        else [view[:, 0] for view in model.each(augmented)]
    )
    pixels = [model.normalize(images).numpy().reshape(-1, 3) for images in seen]
    mean, variance = np.zeros(3), np.ones(3)
    for t in range(10):
        for x in pixels:
            keep = (1 + t) / (10 + t)
            mean = keep * mean + (1 - keep) * x.mean(0)
            variance = keep * variance + (1 - keep) * x.var(0, ddof=1)
    assert np.all(np.abs(mean - np.concatenate(pixels).mean(0)) < 0.05)
    for norm in [network.layers[0]] + (
        [model.target.twins[0].model.layers[0]] if task == "byol" else []
    ):
        np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-9, err_msg=norm.name)
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-9, err_msg=norm.name)


@pytest.mark.parametrize(
    "old,new", [("normalise", "normalize"), ("views", "preview"), ("adjust", "groups")]
)
def test_a_users_task_with_an_older_hook_is_told_its_name(old, new):
    with pytest.raises(UserError, match=f"Mine: a task's {old}.* is called {new}"):
        type("Mine", (pretext.task_class("rotation"),), {old: lambda self, batch: batch})


def test_weight_decay_by_groups():
    """A group's factor acts on its kernels' decay alone; here the head's."""

    class Halved(pretext.task_class("rotation")):
        def groups(self):
            return apart(super().groups(), Group(self.head.trainable_variables, decay=0.5))

    model = Halved(backbones.build(small_network()), image_size=16, weight_decay=0.1)
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    halves = {v.name: 0.05 * float(tf.reduce_sum(v**2)) for v in model.kernels()}
    expected = sum(half * (0.5 if "head" in name else 1) for name, half in halves.items())
    assert (
        float(model._scaled_decays(1.0)[""]) == pytest.approx(expected, rel=1e-5)
        and len(halves) == 2
    )


def test_weight_decay_leaves_a_revnets_root_alone():
    """As the 2019 study's code does."""
    model = build("rotation", backbones.build("revnet18", 0.125, "small"))
    model.prepare()
    kernels = {id(v) for v in model.kernels()}
    others = [
        v.name for v in model.trainable_variables if "kernel" in v.name and id(v) not in kernels
    ]
    assert others == ["revnet18/root_conv/kernel:0"]

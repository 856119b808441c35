"""LARS against steps computed by hand in NumPy, from the formulas; and where it runs."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, optim, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.errors import UserError
from tfssl.optim import LARS
from tfssl.optim.lars import FORMS
from tfssl.runtime import strategy as strategies
from tfssl.training.checkpoints import Checkpoints

SHAPES = {"kernel": (3, 4), "bias": (4,)}
RATES = (0.0, 0.5, 2.0, 2.0, 0.3)  # of successive steps


class Rates(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.gather(tf.constant(RATES, tf.float64), step)


def values(steps=5, seed=0):
    """Initial weights, and the gradients of each step."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return weights, [
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)
    ]


def by_hand(
    form, weights, gradients, momentum=0.9, decay=0.05, eeta=0.02, nesterov=False, rates=RATES
):
    """The published updates, one variable after the other."""
    result = {}
    for name, w in weights.items():
        w, v = np.array(w), np.zeros_like(w)
        for rate, gradient in zip(rates, gradients):
            g = gradient[name]
            of_w, of_g, trust = np.linalg.norm(w), np.linalg.norm(g), 1.0
            if form == "larc":
                if of_w and of_g:
                    trust = eeta * of_w / (of_g + decay * of_w + 1e-8)
                    g = g + decay * w
            elif name == "kernel":
                g = g + decay * w
                if of_w and np.linalg.norm(g):
                    trust = eeta * of_w / np.linalg.norm(g)
            step = rate * trust * g if form == "simclr" else trust * g
            v = momentum * v + step
            move = momentum * v + step if nesterov else v
            w = w - (move if form == "simclr" else rate * move)
        result[name] = w
    return result


def run(form, weights, gradients, dtype="float64", rate=None, jit=False, **settings):
    variables = {name: tf.Variable(w, dtype=dtype, name=name) for name, w in weights.items()}
    optimizer = LARS(Rates() if rate is None else rate, 0.9, 0.05, 0.02, form, **settings)
    optimizer.kernels = lambda: [variables["kernel"]]
    optimizer.build(list(variables.values()))

    @tf.function(jit_compile=jit)
    def step(gradient):
        optimizer.apply_gradients([(gradient[name], variables[name]) for name in variables])

    for gradient in gradients:
        step({name: tf.constant(g, dtype) for name, g in gradient.items()})
    return {name: v.numpy() for name, v in variables.items()}


def assert_close(found, expected, tolerance):
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("jit", [False, True])
def test_steps_equal_those_by_hand(form, nesterov, jit, float64):
    weights, gradients = values()
    expected = by_hand(form, weights, gradients, nesterov=nesterov)
    assert_close(run(form, weights, gradients, nesterov=nesterov, jit=jit), expected, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_steps_that_keras_compiles_one_by_one(form, float64, monkeypatch):
    """As it does on GPUs, where it compiles each variable's update by itself."""
    build = LARS.build
    monkeypatch.setattr(
        LARS,
        "build",
        lambda self, variables: (setattr(self, "jit_compile", True), build(self, variables)),
    )
    weights, gradients = values()
    assert_close(run(form, weights, gradients), by_hand(form, weights, gradients), 1e-12)


def test_the_orderings_differ_where_the_rate_does():
    """A rate that falls to 0: SimCLR's weights go on by m v, BYOL's stand still."""
    gradient = {"kernel": np.full((3, 4), 0.5), "bias": np.ones(4)}
    weights, _ = values(0)
    moved = {
        form: by_hand(form, weights, [gradient] * 2, rates=(1.0, 0.0))
        for form in ("simclr", "byol")
    }
    once = {form: by_hand(form, weights, [gradient], rates=(1.0,)) for form in ("simclr", "byol")}
    np.testing.assert_allclose(once["simclr"]["kernel"], once["byol"]["kernel"])
    np.testing.assert_array_equal(moved["byol"]["kernel"], once["byol"]["kernel"])
    step = weights["kernel"] - once["simclr"]["kernel"]
    np.testing.assert_allclose(once["simclr"]["kernel"] - moved["simclr"]["kernel"], 0.9 * step)


@pytest.mark.parametrize("form", ["simclr", "byol"])
def test_the_first_step_of_a_kernel_has_the_length_of_its_weights(form):
    """|step| = rate * eeta * |w|, whatever the gradient's length; what is no kernel takes SGD's
    step."""
    weights, (gradient,) = values(1)
    for scale in (1e-8, 1.0, 1e8):
        scaled = {name: g * scale for name, g in gradient.items()}
        found = run(form, weights, [scaled], "float32", rate=0.5)
        length = np.linalg.norm(found["kernel"] - weights["kernel"])
        np.testing.assert_allclose(
            length, 0.5 * 0.02 * np.linalg.norm(weights["kernel"]), rtol=1e-3
        )
        np.testing.assert_allclose(found["bias"], weights["bias"] - 0.5 * scaled["bias"], rtol=1e-5)


def test_larc_takes_every_variable():
    weights, (gradient,) = values(1)
    found = run("larc", weights, [gradient], rate=0.5)
    for name, w in weights.items():
        decayed = gradient[name] + 0.05 * w
        trust = (
            0.02 * np.linalg.norm(w) / (np.linalg.norm(gradient[name]) + 0.05 * np.linalg.norm(w))
        )
        np.testing.assert_allclose(found[name], w - 0.5 * trust * decayed, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_zero_weights_take_the_plain_step(form):
    """Where there is no length to compare with, the trust is 1: a network of zeros can begin."""
    _, (gradient,) = values(1)
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    assert_close(
        run(form, zeros, [gradient], rate=0.5),
        {name: -0.5 * g for name, g in gradient.items()},
        1e-12,
    )


@pytest.mark.parametrize("form", FORMS)
def test_zero_gradients(form):
    """g' = d w then: the kernel shrinks by rate * eeta, and larc's, whose decay waits for a
    gradient, stays."""
    weights, _ = values(0)
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    kept = 1.0 if form == "larc" else 1 - 0.5 * 0.02
    expected = {"kernel": kept * weights["kernel"], "bias": weights["bias"]}
    assert_close(run(form, weights, [zeros], rate=0.5), expected, 1e-12)
    both = run(form, zeros, [zeros] * 2, rate=0.5)
    assert all((value == 0).all() for value in both.values())


def test_norms_are_summed_in_float32_at_least():
    """In float16 the squares of a kernel of 300s would overflow."""
    w = {"kernel": np.full((3, 4), 300.0), "bias": np.zeros(4)}
    g = {"kernel": np.full((3, 4), 300.0), "bias": np.zeros(4)}
    found = run("simclr", w, [g], "float16", rate=1.0)
    np.testing.assert_allclose(found["kernel"], 300 - 0.02 * 300, rtol=1e-3)


def test_kernels_have_to_be_known():
    variable = tf.Variable([1.0])
    for form in ("simclr", "byol"):
        with pytest.raises(UserError, match="optimizer.kernels"):
            LARS(0.1, form=form).build([variable])
    LARS(0.1, form="larc").build([variable])
    with pytest.raises(UserError, match="simclr, byol, larc"):
        LARS(0.1, form="lamb")


def test_by_name_and_from_its_configuration():
    forms = {name: optim.build(name, 0.1, 0.8, 1e-6).form for name in ("lars", "lars_byol", "larc")}
    assert forms == {"lars": "simclr", "lars_byol": "byol", "larc": "larc"}
    assert {name: optim.own_decay(name) for name in forms} == {
        "lars": ("kernels",),
        "lars_byol": ("kernels",),
        "larc": ("all",),
    }
    optimizer = LARS(0.3, 0.8, 1e-6, 0.002, "byol", True, global_clipnorm=2.0)
    config = LARS.from_config(optimizer.get_config()).get_config()
    assert config == optimizer.get_config()
    chosen = {
        "momentum": 0.8,
        "weight_decay": 1e-6,
        "eeta": 0.002,
        "form": "byol",
        "nesterov": True,
    }
    assert {**config, **chosen, "global_clipnorm": 2.0} == config


# ---- in training ----


@pytest.fixture(scope="module")
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def task(optimizer, **compiled):
    network = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, use_bias=False, name="conv1"),
            BatchNorm(0.8, sync=True, name="norm"),
            tf.keras.layers.ReLU(name="relu"),
            tf.keras.layers.DepthwiseConv2D(3, name="depthwise"),
            tf.keras.layers.Conv2D(8, 3, name="conv2"),
        ]
    )
    model = pretext.build(
        "rotation", backbones.build(network), image_size=16, weight_decay=0.0, color=False
    )
    model.compile(optimizer, **compiled)
    return model


def trained(source, name, strategy=None, steps=3, start=0, folder=None, **compiled):
    """Weights and optimizer state by name after training from the start, or from the checkpoint in
    `folder`."""
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = task(optim.build(name, optim.schedule("cosine", 1.0, 10, 2), 0.9, 1e-2), **compiled)
    model.prepare()
    checkpoints = Checkpoints(model, str(folder)) if folder else None
    if checkpoints:
        assert checkpoints.restore() == start
    model.fit(
        strategies.training_data(strategy, model, source, 8, 2, start, steps),
        steps_per_epoch=steps,
        epochs=1,
        verbose=0,
    )
    if checkpoints:
        checkpoints.save(start + steps)
    variables = [*model.variables, *model.optimizer.variables]
    return model, [v.numpy() for v in variables]


def assert_same(found, expected, tolerance):
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max() + 1e-300)


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_replicas_train_like_one(name, source, replicas, float64):
    _, alone = trained(source, name)
    _, together = trained(source, name, replicas)
    assert_same(together, alone, 1e-9)


def test_compiled_by_xla_it_trains_the_same(source, float64):
    _, plain = trained(source, "lars")
    _, compiled = trained(source, "lars", jit_compile=True)
    assert_same(compiled, plain, 1e-9)


def test_a_resumed_run_goes_on_exactly(source, tmp_path):
    _, whole = trained(source, "lars", steps=4)
    trained(source, "lars", steps=2, folder=tmp_path)
    _, resumed = trained(source, "lars", steps=2, start=2, folder=tmp_path)
    for x, y in zip(resumed, whole):
        np.testing.assert_array_equal(x, y)


def test_kernels_are_chosen_by_their_layers(source):
    """Of a whole task: convolutions, the depthwise one too, and the dense layer, and of these the
    kernels alone."""
    model, _ = trained(source, "lars", steps=1)
    optimizer = model.optimizer
    adapted = {
        v.name for v in model.trainable_variables if optimizer._var_key(v) in optimizer._adapted
    }
    assert adapted == {v.name for v in model.trainable_variables if v.shape.rank > 1}
    assert 0 < len(adapted) < len(model.trainable_variables)


@pytest.mark.parametrize("precision,together", [("mixed_bfloat16", False), ("mixed_float16", True)])
def test_reduced_precision(precision, together, source, replicas):
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        model, state = trained(source, "lars", replicas if together else None)
        model.prepare()
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert (optimizer is model.optimizer) == (precision == "mixed_bfloat16")
    assert all(np.isfinite(value).all() for value in state)
    assert all(m.dtype == tf.float32 and np.abs(m.numpy()).max() > 0 for m in optimizer.momentums)

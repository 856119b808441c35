"""`build`: names, settings and what it says about wrong ones; users' own models as backbones."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones
from tfssl.backbones import build
from tfssl.errors import UserError

layers = tf.keras.layers


def random_images(*shape):
    return tf.constant(np.random.default_rng(0).uniform(-1, 1, shape), tf.float32)


def message(*args, **settings):
    with pytest.raises(UserError) as caught:
        build(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- by name ----


def test_names_and_stems():
    depths = (18, 34, 50, 101, 152)
    names = {f"resnet{depth}_v{version}" for depth in (*depths, 200) for version in (1, 2)}
    names |= (
        {f"revnet{depth}" for depth in depths}
        | {f"vgg{depth}" for depth in (11, 13, 16, 19)}
        | {"alexnet", "alexnet_lrn"}
        | {f"vit_{size}" for size in ("tiny", "small", "base", "large")}
    )
    assert set(backbones.NAMES) == names and len(backbones.NAMES) == len(names)
    assert backbones.STEMS == ("imagenet", "small", "patch", "stride16")
    for name in names:
        assert isinstance(build(name), tf.keras.Model)  # its variables come with the first call


@pytest.mark.parametrize("name", ["resnet50", "Resnet50_v2", "resnet_50_v2"])
def test_an_unknown_name_is_told_its_neighbours(name):
    text = message(name)
    assert (
        repr(name) in text
        and "resnet50_v2" in text.split("did you mean")[1]
        and "resnet152_v1" in text
    )


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"stem": "cifar"}, ["stem=cifar", "imagenet, small, patch, stride16"]),
        ({"width_multiplier": 0}, ["width_multiplier=0", "positive"]),
        ({"width_multiplier": -1.0}, ["width_multiplier=-1.0", "positive"]),
        ({"width_multiplier": float("nan")}, ["width_multiplier=nan", "positive"]),
        ({"width_multiplier": 0.001}, ["width_multiplier=0.001", "0.0078125"]),
        ({"bn_momentum": 1.0}, ["bn_momentum=1.0", "below 1"]),
        ({"bn_epsilon": 0.0}, ["bn_epsilon=0.0", "positive"]),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(settings, words):
    text = message("resnet18_v1", **settings)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "name,setting,whose",
    [
        ("vgg16", {"skip": False}, "ResNet"),
        ("vgg16", {"last_relu": False}, "ResNet, RevNet"),
        ("vgg19", {"zero_init_residual": True}, "ResNet"),
        ("alexnet", {"last_relu": False}, "ResNet, RevNet"),
        ("revnet50", {"sk_ratio": 0.0625}, "ResNet"),
        ("revnet50", {"skip": False}, "ResNet"),
        ("resnet50_v1", {"tokens": 3}, None),
    ],
)
def test_a_setting_of_other_families_is_refused_but_at_its_default(name, setting, whose):
    ((argument, value),) = setting.items()
    text = message(name, **setting)
    assert (
        text.startswith(f"{argument}={value} is no setting of backbone {name!r}")
        and "width_multiplier" in text
    )
    assert (f" but of {whose}; its own are" in text) if whose else " but of " not in text
    if whose:
        default = {"skip": True, "last_relu": True, "zero_init_residual": False, "sk_ratio": 0.0}[
            argument
        ]
        assert argument not in build(name, **{argument: default}).config()


def test_the_network_without_last_relu_is_a_v2():
    assert "resnet18_v2" in message("resnet18_v1", last_relu=False)
    assert build("resnet18_v2", last_relu=False).config()["last_relu"] is False


def test_config_has_all_settings():
    settings = {
        "width_multiplier": 0.0625,
        "stem": "patch",
        "padding": "same",
        "bn_momentum": 0.9,
        "bn_epsilon": 1e-5,
        "last_relu": False,
        "skip": False,
        "representation_size": 24,
        "sk_ratio": 0.0,
        "zero_init_residual": False,
        "output_stride": 0,
        "input_channels": 4,
    }
    model = build("resnet34_v2", **settings)
    assert model.config() == {"name": "resnet34_v2", **settings} == build(**model.config()).config()


def test_defaults_are_those_of_the_study():
    expected = {
        "width_multiplier": 1.0,
        "stem": "imagenet",
        "padding": "torch",
        "bn_momentum": 0.99,
        "bn_epsilon": 1e-3,
        "last_relu": True,
    }
    expected |= {
        "skip": True,
        "representation_size": 0,
        "sk_ratio": 0.0,
        "zero_init_residual": False,
        "output_stride": 0,
        "input_channels": 3,
    }
    model = build("resnet50_v2")
    assert model.config() == {"name": "resnet50_v2", **expected}
    assert (model.root_conv.filters, model.last_norm.momentum, model.last_norm.epsilon) == (
        64,
        0.99,
        1e-3,
    )


FAN = {
    "glorot_uniform": (2, 1, 1),
    "he_fan_out": (2, 0, 1),
    "lecun_normal": (1, 1, 0),
    "torch_uniform": (1 / 3, 1, 0),
}


@pytest.mark.parametrize(
    "name,initializer,settings",
    [
        *(("resnet18_v1", initializer, {}) for initializer in FAN),
        ("resnet50_v1", "he_fan_out", {"sk_ratio": 0.0625}),
        *((name, "he_fan_out", {}) for name in ("revnet18", "vgg11", "alexnet")),
    ],
)
def test_kernels_begin_with_the_published_variance(name, initializer, settings):
    """Variance scale / (a fan_in + b fan_out), with fans counted from the kernel's shape, and the
    distribution's form."""
    model = build(name, 0.25, "small", initializer=initializer, **settings)
    model.build((None, 32, 32, 3))
    scale, of_in, of_out = FAN[initializer]
    scaled = []
    for variable in (v for v in model.trainable_variables if v.shape.rank == 4):
        height, width, fan_in, fan_out = variable.shape
        kernel = variable.numpy() * np.sqrt(
            (of_in * fan_in + of_out * fan_out) * height * width / scale
        )
        if kernel.size > 3000:
            assert abs(np.mean(kernel**2) - 1) < 0.15, variable.name
        scaled.append(kernel.ravel())
    scaled = np.concatenate(scaled)
    assert abs(np.mean(scaled**2) - 1) < 0.02 and abs(np.mean(scaled)) < 0.02
    farthest = np.abs(scaled).max()
    if "uniform" in initializer:
        assert 0.99 * np.sqrt(3) < farthest <= np.sqrt(3) * 1.001
    elif (
        initializer == "lecun_normal"
    ):  # cut at two standard deviations of the normal, whose own is 0.88 of that
        assert 2.2 < farthest <= 2 / 0.8796 * 1.001
    else:
        assert farthest > 4
    assert "initializer" not in model.config() and model.twin().initializer == initializer


# ---- a user's own model ----


def vector_model():
    return tf.keras.Sequential(
        [layers.Conv2D(5, 3, 2), layers.BatchNormalization(), layers.GlobalMaxPooling2D()]
    )


def functional(output, shape=(None, None, 3)):
    """A functional model of one convolution; `output` makes what it returns from the map."""
    images = tf.keras.Input(shape)
    return tf.keras.Model(images, output(layers.Conv2D(5, 3, 2)(images)), name="mine")


class Untrained(tf.keras.Model):
    """A model whose call takes no `training`."""

    def __init__(self, output):
        super().__init__(name="mine")
        self.conv, self.output_of = layers.Conv2D(5, 3, 2), output

    def call(self, images):
        return self.output_of(self.conv(images))


def test_features_become_the_pre_logits():
    own = vector_model()
    model = build(own)
    images = random_images(4, 9, 9, 3)
    endpoints = model(images, False)
    np.testing.assert_array_equal(endpoints["pre_logits"], own(images, training=False))
    assert list(endpoints) == ["pre_logits"] == list(model.endpoint_names)
    assert model.name == own.name and model.config() is None
    assert [v is w for v, w in zip(model.trainable_variables, own.trainable_variables)] == [
        True
    ] * 4


class Trained(tf.keras.Model):
    """A model that hands `training` on itself, and has a default of its own for it."""

    def __init__(self):
        super().__init__(name="mine")
        self.norm = layers.BatchNormalization()

    def call(self, images, training=True):
        return tf.reduce_mean(self.norm(images, training=training), [1, 2])


@pytest.mark.parametrize(
    "own,norm", [(vector_model(), lambda own: own.layers[1]), (Trained(), lambda own: own.norm)]
)
def test_training_reaches_the_users_layers(own, norm):
    model = build(own)
    images = random_images(4, 9, 9, 3)
    model(images, False)
    np.testing.assert_array_equal(norm(own).moving_mean, np.zeros(norm(own).gamma.shape))
    model(images, True)
    assert np.abs(norm(own).moving_mean).min() > 0


class Sized(tf.keras.Model):
    """A model whose constructor is its settings."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = layers.Conv2D(channels, 3, 2)

    def call(self, images):
        return {"pre_logits": self.conv(images), "tokens": tf.reshape(images, [-1, 9, 27])}


def test_a_class_of_a_users_own(tmp_path, monkeypatch):
    """By itself or its import path; its configuration is its settings."""
    (tmp_path / "own_nets.py").write_text(
        "from tfssl.backbones import Network\n\n\n"
        "class Flat(Network):\n"
        "    endpoint_names, min_image_size = ('pre_logits',), 1\n\n"
        "    def __init__(self, power=1, **common):\n"
        "        super().__init__(**common)\n"
        "        self.power = power\n\n"
        "    def build_layers(self, shape):\n"
        "        return shape[-1]\n\n"
        "    def endpoints(self, images, training):\n"
        "        return {'pre_logits': images[:, 0, 0] ** self.power}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    images = random_images(2, 9, 9, 3)
    for own, config in (
        ("own_nets:Flat", {"power": 3, "width_multiplier": 0.5}),
        (backbones.BACKBONES.find("own_nets:Flat"), {"power": 3}),
        (Sized, {"channels": 5}),
    ):
        model = build(own, **config)
        assert model.config()["name"] == (
            own if isinstance(own, str) else f"{own.__module__}:{own.__qualname__}"
        )
        assert config.items() <= model.config().items()
        again = [model.twin()] + (
            [build(**model.config())] if own is not Sized else []
        )  # a test's module has no path
        for network in (model, *again):
            endpoints = network(images)
            assert network.config() == model.config() and tuple(endpoints) == network.endpoint_names
    assert (
        build(Sized, channels=5).norm_policy == backbones.Norm()
        and model.endpoint_kinds["tokens"] == "tokens"
    )
    assert "channels" in message(Sized, width=2) and "norm_policy" in message(Sized, bn_sync=True)
    np.testing.assert_allclose(
        build("own_nets:Flat", power=2)(images)["pre_logits"], images[:, 0, 0] ** 2, rtol=1e-6
    )


@pytest.mark.parametrize("name,own", [("resnet18_v1", None), ("own", Untrained(lambda x: x))])
def test_tokens_to_keep_are_refused_where_there_are_none(name, own):
    with pytest.raises(UserError, match="keep says which tokens"):
        build(own or name)(random_images(1, 32, 32, 3), keep=tf.zeros([1, 2], tf.int32))


@pytest.mark.parametrize("make", [functional, Untrained])
def test_a_map_is_averaged(make):
    own = make(lambda x: x)
    model = build(own)
    images = random_images(2, 9, 13, 3)
    endpoints = model(images, True)
    assert list(endpoints) == ["features", "pre_logits"] == list(model.endpoint_names)
    np.testing.assert_array_equal(endpoints["features"], own(images))
    np.testing.assert_allclose(
        endpoints["pre_logits"], own(images).numpy().mean((1, 2)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("make", [functional, Untrained])
def test_of_a_dict_every_entry_is_an_endpoint(make):
    own = make(lambda x: {"pre_logits": x[:, 0, 0], "late": x * 2, "early": x * 3})
    model = build(own)
    images = random_images(2, 9, 9, 3)
    endpoints = model(images, True)
    assert list(endpoints) == ["late", "early", "pre_logits"] == list(model.endpoint_names)
    for name, value in own(images).items():
        np.testing.assert_array_equal(endpoints[name], value)


def test_a_functional_models_endpoints_are_known_at_once_and_a_subclassed_ones_after_its_call():
    assert build(functional(lambda x: x)).endpoint_names == ("features", "pre_logits")
    model = build(Untrained(lambda x: x))
    with pytest.raises(UserError, match="'mine'.*call it"):
        _ = model.endpoint_names
    model(random_images(1, 5, 5, 3))
    assert model.endpoint_names == ("features", "pre_logits")


@pytest.mark.parametrize(
    "output", [lambda x: [x, x], lambda x: {"late": x}, lambda x: tf.reshape(x, [-1])]
)
def test_other_outputs_are_refused(output):
    assert "'mine'" in message(functional(output))
    model = build(Untrained(output))
    with pytest.raises(UserError, match="model 'mine' returns .*; it should return"):
        model(random_images(2, 9, 9, 3))
    with pytest.raises(
        Exception, match="UserError: model 'mine' returns"
    ):  # as AutoGraph reports it
        tf.function(model)(random_images(2, 9, 9, 3))


def test_inputs_that_are_no_images_are_refused():
    vectors = tf.keras.Input([3])
    assert "(None, 3)" in message(tf.keras.Model(vectors, layers.Dense(2)(vectors)))
    images = [tf.keras.Input([8, 8, 3]), tf.keras.Input([8, 8, 3])]
    assert "images" in message(tf.keras.Model(images, layers.Add()(images)))


def test_a_fixed_input_size_is_the_smallest():
    assert build(functional(lambda x: x, (48, 64, 3))).min_image_size == 64
    assert build(functional(lambda x: x)).min_image_size == 1


def test_settings_belong_to_named_backbones():
    own = vector_model()
    build(own, width_multiplier=1.0, stem="imagenet")  # the defaults do no harm
    text = message(own, width_multiplier=2.0, bn_momentum=0.9)
    assert "width_multiplier, bn_momentum" in text and own.name in text


def test_a_backbone_is_left_as_it_is():
    for model in (build("resnet18_v1"), build(vector_model())):
        assert build(model) is model


@pytest.mark.parametrize("what", [None, 50, layers.Dense(3), tf.keras.Model, "tensorflow:zeros"])
def test_anything_else_is_refused(what):
    assert "tf.keras.Model" in message(what)


def test_pre_logits_are_float32_in_reduced_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        for own in (vector_model(), functional(lambda x: x)):
            assert build(own)(random_images(4, 9, 9, 3), True)["pre_logits"].dtype == tf.float32
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_a_network_of_keras_applications_trains():
    own = tf.keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(None, None, 3), alpha=0.35
    )
    model = build(own)
    images = random_images(4, 32, 32, 3)

    @tf.function(autograph=False)  # AutoGraph would take longer over Keras than the step does
    def step():
        with tf.GradientTape() as tape:
            endpoints = model(images, training=True)
            loss = tf.reduce_sum(endpoints["pre_logits"][:, 0])
        return endpoints, tape.gradient(loss, model.trainable_variables)

    endpoints, gradients = step()
    assert endpoints["features"].shape == (4, 1, 1, 1280) and endpoints["pre_logits"].shape == (
        4,
        1280,
    )
    assert len(model.trainable_variables) == len(own.trainable_variables) > 100
    assert all(gradient is not None for gradient in gradients)

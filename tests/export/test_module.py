"""The Hub module: its contract, and fine-tuning through every loader that users have."""

import json
import os
import subprocess
import sys
import tarfile
import textwrap
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, export, pretext
from tfssl.errors import UserError
from tfssl.testing.subject import small_network


@pytest.fixture(scope="module")
def model(photos):
    """A rotation model after a few steps, so that its moving statistics are not the initial
    ones."""
    tf.keras.utils.set_random_seed(0)
    backbone = backbones.build("resnet18_v2", 0.125, "imagenet", bn_momentum=0.8)
    model = pretext.build("rotation", backbone, image_size=64)
    model.compile(tf.keras.optimizers.SGD(0.05))
    model.fit(model.dataset(tfssl.open_source(f"folder:{photos}"), 8), steps_per_epoch=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    where = tmp_path_factory.mktemp("modules") / "photos" / "1"
    return export.save(
        model, where, step=4, class_names=["cold", "warm"], training_flags={"seed": 0}, tarball=True
    )


def images(n=2, size=64, seed=0):
    return np.random.default_rng(seed).random([n, size, size, 3], np.float32)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("size", [96, 224])
def test_any_batch_and_size_gives_the_encoders_values(model, path, n, size):
    module = tf.saved_model.load(path)
    x = images(n, size)
    expected = {k: v.numpy() for k, v in model.encode(tf.constant(x)).items()}
    found = module.endpoints(x)
    assert set(found) == set(expected) and all(v.dtype == tf.float32 for v in found.values())
    for name in expected:
        least = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=least, err_msg=name)
    np.testing.assert_allclose(module(x), expected["pre_logits"], rtol=1e-4, atol=least)
    assert module(x).shape == (n, 64)


def test_the_reusable_interface(model, path):
    module = tf.saved_model.load(path)
    for obj in (module, module.endpoints):
        assert len(obj.variables) == len(model.backbone.variables)
        assert len(obj.trainable_variables) == len(model.backbone.trainable_variables)
        assert len(obj.regularization_losses) == 0
        names = {v.name for v in obj.variables}
        assert {v.name for v in obj.trainable_variables} < names
    assert set(module.signatures) == {"serving_default", "training"}
    x = tf.constant(images())
    np.testing.assert_allclose(
        module.signatures["serving_default"](x)["pre_logits"], module(x), rtol=1e-6
    )


def test_training_mode_uses_and_updates_batch_statistics(path):
    module = tf.saved_model.load(path)
    x = images(4)
    moving = [v for v in module.variables if "moving" in v.name]
    before = [v.numpy() for v in moving]
    inference = module(x).numpy()
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(moving, before))
    training = module(x, training=True).numpy()
    assert not np.allclose(inference, training, atol=1e-3)
    assert all(not np.array_equal(v.numpy(), b) for v, b in zip(moving, before))


def assert_fine_tunes(forward, variables, trainable):
    """One SGD step through `forward`: finite gradients for all, and the first kernel's own value
    changes."""
    first = next(v for v in variables if "root_conv" in v.name and "kernel" in v.name)
    before = first.numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(forward(tf.constant(images(4))) ** 2)
    gradients = tape.gradient(loss, trainable)
    assert len(trainable) > 50 and all(
        g is not None and np.isfinite(g.numpy()).all() for g in gradients
    )
    tf.keras.optimizers.SGD(1.0).apply_gradients(zip(gradients, trainable))
    assert not np.array_equal(first.numpy(), before)


def test_fine_tuning_through_saved_model_load(path):
    module = tf.saved_model.load(path)
    assert_fine_tunes(
        lambda x: module(x, training=True), module.variables, list(module.trainable_variables)
    )


def test_fine_tuning_through_keras_layer(path):
    hub = pytest.importorskip("tensorflow_hub")
    layer = hub.KerasLayer(path, trainable=True)
    classifier = tf.keras.Sequential([tf.keras.Input([64, 64, 3]), layer, tf.keras.layers.Dense(2)])
    loaded = layer.resolved_object
    first = next(v for v in loaded.variables if "root_conv" in v.name)
    before = first.numpy()
    classifier.compile(
        tf.keras.optimizers.SGD(0.5),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = classifier.fit(images(8), np.arange(8) % 2, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all() and not np.array_equal(first.numpy(), before)
    assert len(layer.trainable_variables) == len(loaded.trainable_variables)


def test_keras_layer_of_the_endpoints(path):
    hub = pytest.importorskip("tensorflow_hub")
    layer = hub.KerasLayer(tf.saved_model.load(path).endpoints, trainable=True)
    assert layer(images())["block4"].shape == (2, 2, 2, 64)
    assert_fine_tunes(
        lambda x: layer(x, training=True)["pre_logits"], layer.variables, layer.trainable_variables
    )


def test_keras_layer_from_a_tarball(path, model):
    """A tarball with the module at its root is a handle, as on a hub."""
    hub = pytest.importorskip("tensorflow_hub")
    with tarfile.open(path + ".tar.gz") as tar:
        assert "saved_model.pb" in tar.getnames()
    x = images()
    from tfssl.hub.load import load

    np.testing.assert_allclose(
        load(path + ".tar.gz").endpoints(x)["pre_logits"], hub.load(path)(x), rtol=1e-5
    )


def test_facts(path, model):
    facts = json.load(open(os.path.join(path, "assets", "tfssl.json"), encoding="utf-8"))
    assert facts["endpoints"] == [
        "after_root",
        "block1",
        "block2",
        "block3",
        "block4",
        "pre_logits",
    ]
    assert facts["features"]["pre_logits"] == 64 and facts["features"]["block1"] == 8
    assert (
        facts["task"],
        facts["backbone"],
        facts["stem"],
        facts["image_size"],
        facts["crop"],
    ) == (
        "rotation",
        "resnet18_v2",
        "imagenet",
        64,
        64,
    )
    assert facts["resize"] == 73 and facts["step"] == 4 and facts["class_names"] == ["cold", "warm"]
    assert (
        facts["weight_decay"] == 1e-4
        and facts["training_flags"] == {"seed": 0}
        and facts["versions"]["tfssl"] == tfssl.__version__
    )


def test_published_versions_never_change(path, model):
    with pytest.raises(UserError, match="never change"):
        export.save(model, path)


@pytest.fixture
def own():
    """A model that is exported in a second."""
    network = tf.keras.Sequential([tf.keras.layers.Conv2D(5, 3, name="c")], name="own")
    model = pretext.build("rotation", backbones.build(network), image_size=16)
    model.prepare()
    return model


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


MODULE = [
    "assets/tfssl.json",
    "fingerprint.pb",
    "saved_model.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_nothing_of_a_killed_export_is_published(scheme, own, tmp_path):
    """What it left beside the module, or, where a rename would be a copy, in its place."""
    for leftover in ("m.unfinished", "m.12-0123abcd.unfinished") if not scheme else ("m",):
        for name in ("variables/variables_temp/part-0", "assets/labels.txt"):
            path = tmp_path / leftover / name
            path.parent.mkdir(parents=True)
            path.write_text("of another export")
    (tmp_path / "m.tar.gz.12-0123abcd.tmp").touch()
    export.save(own, f"{scheme}{tmp_path}/m")
    assert names_in(tmp_path) == [f"m/{name}" for name in MODULE]


def test_an_export_that_fails_leaves_nothing_and_can_be_had_again(own, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("tfssl.storage.files.sync", full)
        export.save(own, tmp_path / "m", tarball=True)
    assert not names_in(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(tarfile.TarFile, "close", full)
        export.save(own, tmp_path / "m", tarball=True)
    module = [f"m/{name}" for name in MODULE]
    assert names_in(tmp_path) == module
    published = {name: (tmp_path / name).read_bytes() for name in module}
    export.save(
        own, tmp_path / "m", tarball=True
    )  # the tarball that is missing, of the module that is there
    assert names_in(tmp_path) == ["m.tar.gz", *module]
    assert {name: (tmp_path / name).read_bytes() for name in module} == published
    with tarfile.open(tmp_path / "m.tar.gz") as tar:
        assert sorted(member.name for member in tar if member.isfile()) == MODULE
        assert tar.extractfile("saved_model.pb").read() == published["m/saved_model.pb"]
    with pytest.raises(UserError, match="m.tar.gz exists, and published versions never change"):
        export.save(own, tmp_path / "m", tarball=True)
    (tmp_path / "m.tar.gz").unlink()
    with pytest.raises(UserError, match="is another module"):
        export.save(own, tmp_path / "m", step=9, tarball=True)


def test_a_folder_of_somebody_else_is_not_taken_for_a_leftover(own, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").touch()
    for scheme in ("", "file://"):
        with pytest.raises(UserError, match="exists, and published versions never change"):
            export.save(own, f"{scheme}{tmp_path}/m")
    assert names_in(tmp_path) == ["m/thesis.tex"]


def test_a_model_of_lower_precision_is_published_in_float32(photos, tmp_path):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = pretext.build(
            "rotation", backbones.build("resnet18_v1", 0.125, "small"), image_size=16
        )
        model.prepare()
        path = export.save(model, tmp_path / "m")
    finally:
        tf.keras.mixed_precision.set_global_policy(None)
    module = tf.saved_model.load(path)
    x = images(3, 16)
    copy = pretext.build("rotation", backbones.build("resnet18_v1", 0.125, "small"), image_size=16)
    copy.prepare()
    for mine, theirs in zip(copy.backbone.variables, model.backbone.variables):
        mine.assign(theirs)
    np.testing.assert_allclose(module(x), copy.encode(x)["pre_logits"], rtol=1e-4, atol=1e-6)


def test_a_users_own_model_is_published(tmp_path):
    own = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(5, 3, name="c"), tf.keras.layers.BatchNormalization(name="b")],
        name="own",
    )
    model = pretext.build("rotation", backbones.build(own), image_size=16)
    model.prepare()
    module = tf.saved_model.load(export.save(model, tmp_path / "m"))
    np.testing.assert_allclose(
        module(images(3, 16)), model.encode(images(3, 16))["pre_logits"], rtol=1e-5, atol=1e-6
    )


def test_statistics_of_a_short_run_are_warned_of_and_computed_anew(photos, tmp_path):
    """A user's model with Keras's layer: after three steps at 0.99 the mean is 0.03 of the images';
    recalibrated, it is theirs."""
    own = tf.keras.Sequential([tf.keras.layers.BatchNormalization(), tf.keras.layers.Conv2D(5, 3)])
    model = pretext.build("rotation", backbones.build(own), image_size=16, color=False)
    model.compile(tf.keras.optimizers.SGD(0.01))
    source = tfssl.open_source(f"folder:{photos}")
    model.fit(model.dataset(source, 8), steps_per_epoch=3, verbose=0)
    with pytest.warns(
        UserWarning, match=r"after 3 steps 97 % .* of 1 batch normalizations .*recalibrate"
    ):
        export.save(model, tmp_path / "short")
    batches = list(model.dataset(source, 8, steps=6))
    export.recalibrate(model, batches)
    pixels = (
        model.normalize(tf.concat([batch["image"] for batch in batches], 0) / 255)
        .numpy()
        .reshape(-1, 3)
    )
    norm = model.backbone.model.layers[0]
    np.testing.assert_allclose(norm.moving_mean, pixels.mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        norm.moving_variance, pixels.var(0), rtol=0.1
    )  # the mean of the batches' own
    assert norm.momentum == 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export.save(model, tmp_path / "recalibrated")


HEADS = {  # the projection's layers, and the settings that keep it small
    "simclr": (3, {"projection_layers": 3, "projection_size": 8}),
    "byol": (2, {"projection_hidden": 16, "projection_size": 8, "prediction_hidden": 8}),
    "swav": (2, {"projection_hidden": 16, "projection_size": 8, "prototypes": 8, "small_crops": 0}),
    "simsiam": (2, {"projection_layers": 2, "projection_size": 16, "prediction_size": 8}),
    "moco": (2, {"projection_size": 8, "queue_size": 16}),
    "instance_discrimination": (1, {"projection_size": 8, "num_images": 4, "negatives": 2}),
}


def head_by_numpy(model, x, layers):
    """Outputs of the first layers of a projection: products, normalization by the moving
    statistics, ReLUs between layers."""
    head, found = model.projection, []
    for i, (dense, norm) in enumerate(zip(head.dense, head.norms), 1):
        x = x @ dense.kernel.numpy() + (dense.bias.numpy() if dense.use_bias else 0)
        if norm:
            x = (x - norm.moving_mean.numpy()) / np.sqrt(
                norm.moving_variance.numpy() + norm.epsilon
            )
            x = x * (norm.gamma.numpy() if norm.scale else 1) + (
                norm.beta.numpy() if norm.center else 0
            )
        x = np.maximum(x, 0) if i < len(head.dense) else x
        found.append(x)
    return found[:layers]


@pytest.mark.parametrize(
    "task",
    [
        *("simclr", "swav", "instance_discrimination", "moco"),
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("byol", "simsiam")),  # alike
    ],
)
def test_layers_of_the_head_are_endpoints(task, tmp_path):
    """And the module trains, whatever groups the task normalizes its batches in."""
    layers, settings = HEADS[task]
    model = pretext.build(task, small_network(), image_size=16, **settings)
    model.prepare()
    rng = np.random.default_rng(0)
    for v in model.projection.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if v.shape.rank == 1 else rng.normal(size=v.shape))
    for count in (1, layers) if task == "simclr" else (layers,):
        module = tf.saved_model.load(
            export.save(model, tmp_path / str(count), head_endpoints=count)
        )
        x = images(5, 16)
        endpoints = module.endpoints(x)
        expected = head_by_numpy(model, endpoints["pre_logits"].numpy(), count)
        for i, values in enumerate(expected, 1):
            np.testing.assert_allclose(
                endpoints[f"head{i}"], values, rtol=1e-3, atol=1e-4, err_msg=f"head{i}"
            )
        assert f"head{count + 1}" not in endpoints
        np.testing.assert_array_equal(module(x), endpoints["pre_logits"])
        head = [d for d in model.projection.dense[:count]] + [
            n for n in model.projection.norms[:count] if n
        ]
        assert len(module.variables) == len(model.backbone.variables) + sum(
            len(part.variables) for part in head
        )
        mine = len(model.backbone.trainable_variables) + sum(
            len(part.trainable_variables) for part in head
        )
        assert len(module.trainable_variables) == mine
        facts = json.load(open(tmp_path / str(count) / "assets" / "tfssl.json", encoding="utf-8"))
        assert facts["endpoints"][-count - 1 :] == [
            "pre_logits",
            *(f"head{i + 1}" for i in range(count)),
        ]
        assert facts["features"]["head1"] == expected[0].shape[1]
        assert np.isfinite(module(x, training=True)).all()


def test_heads_that_are_not_there(model, tmp_path):
    small = backbones.build("resnet18_v1", 0.0625, "small")
    for task in (model, pretext.build("pixpro", small, image_size=16)):
        with pytest.raises(
            UserError, match="'(rotation|pixpro)' has no projection of the last vec"
        ):
            export.save(task, tmp_path / "m", head_endpoints=1)
    simclr = pretext.build("simclr", backbones.build("resnet18_v1", 0.0625, "small"), image_size=16)
    with pytest.raises(UserError, match="head_endpoints=3: the projection head of this run has 2"):
        export.save(simclr, tmp_path / "m", head_endpoints=3)
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="Keras 3 comes with the newest TensorFlow only"
)
def test_keras3_tfsm_layer_runs_and_fine_tunes(path):
    """In a process of its own: this one runs Keras 2."""
    program = f"""
        import numpy as np, keras, tensorflow as tf
        assert keras.__version__.startswith("3") and tf.keras.__version__.startswith("3")
        layer = keras.layers.TFSMLayer({path!r}, call_endpoint="serving_default", call_training_endpoint="training")
        x = np.random.default_rng(0).random([4, 64, 64, 3]).astype("float32")
        assert layer(x)["pre_logits"].shape == (4, 64)
        loaded = layer._reloaded_obj
        first = next(v for v in loaded.variables if "root_conv" in v.name)
        before = first.numpy()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(x, training=True)["pre_logits"] ** 2)
        gradients = tape.gradient(loss, list(loaded.trainable_variables))
        assert len(gradients) > 50 and all(np.isfinite(g.numpy()).all() for g in gradients)
        weights = [v.value if hasattr(v, "value") and not callable(v.value) else v for v in layer.trainable_weights]
        assert len(weights) == len(gradients), (len(weights), len(gradients))
        inputs = keras.Input([64, 64, 3])
        model = keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)["pre_logits"]))
        model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(x, np.arange(4) % 2, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        assert not np.array_equal(first.numpy(), before), "the first kernel did not change"
        print("fine")
    """
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-2000:]


OTHER = os.environ.get("TFSSL_OTHER_PYTHON")


@pytest.mark.skipif(
    not OTHER, reason="TFSSL_OTHER_PYTHON names no interpreter with the other TensorFlow stack"
)
def test_the_other_stack_computes_the_same(path, tmp_path):
    x = images(3, 96)
    np.save(tmp_path / "x.npy", x)
    program = (
        "import sys, numpy as np, tfssl, tensorflow as tf; m, x, y = sys.argv[1:]; np.save(y, "
        "tf.saved_model.load(m)(np.load(x)))"
    )
    where = [str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([OTHER, "-c", program, path, *where], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), tf.saved_model.load(path)(x), rtol=1e-5, atol=1e-5
    )

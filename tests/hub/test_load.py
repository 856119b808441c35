import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules

from tfssl.classifiers import predictions as classify
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.hub import value_range


def images(size=16):
    return tf.constant(np.random.default_rng(0).random([3, size, size, 3], np.float32))


def expected(size=16, seed=0):
    return {
        name: value.numpy() for name, value in tiny_modules.Encoder(seed).maps(images(size)).items()
    }


def test_ours(modules_dir):
    module = modules.load(modules_dir / "ours" / "1")
    features = module.endpoints(images())
    assert list(features) == [
        "stem",
        "block",
        "pre_logits",
    ]  # tfssl.json's order, not the alphabet's
    for name, value in expected().items():
        np.testing.assert_allclose(features[name], value, rtol=1e-5, atol=1e-5)
    assert module.shapes(16) == {"stem": (16, 16, 8), "block": (8, 8, 16), "pre_logits": (16,)}
    assert list(module.shapes(16)) == ["stem", "block", "pre_logits"]
    assert module.sizes() == (16, 20)
    assert module.sizes(32) == (32, 40)  # the module's own ratio
    assert module.sizes(32, 32) == (32, 32)


@pytest.mark.parametrize("name", ["callable", "fixed"])
def test_a_function_of_images(modules_dir, name):
    module = modules.load(modules_dir / name)
    features = module.endpoints(images(24))
    assert list(features) == ["output"]
    np.testing.assert_allclose(features["output"], expected(24)["pre_logits"], rtol=1e-5, atol=1e-5)
    assert module.sizes(24) == (24, 27)  # 24 * 256 / 224 = 27.4


def test_fixed_input_size(modules_dir):
    assert modules.load(modules_dir / "fixed").sizes() == (24, 27)
    assert modules.load(modules_dir / "signature").sizes() == (16, 18)
    with pytest.raises(UserError, match="image_size"):
        modules.load(modules_dir / "callable").sizes()
    with pytest.raises(UserError, match="resize=12.*image_size=24"):
        modules.load(modules_dir / "fixed").sizes(resize=12)


@pytest.mark.parametrize("name", ["serving_default", "default", "image_feature_vector", "my_own"])
def test_a_signature(tmp_path, name):
    module = modules.load(tiny_modules.save_signature(tmp_path / "m", name))
    features = module.endpoints(images())
    assert list(features) == ["default", "net/block"]
    np.testing.assert_allclose(features["default"], expected()["pre_logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features["net/block"], expected()["block"], rtol=1e-5, atol=1e-5)


def test_a_module_of_tf1(tmp_path):
    """The old Hub format: graphs told apart by tags, none for inference; `train` would add
    noise."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(tmp_path / "m"))
    for tags in ([], ["train"]):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 8, 8, 3])
            scale = v1.get_variable("scale", initializer=2.0)
            features = scale * tf.reduce_mean(x, [1, 2]) + (100.0 if tags else 0.0)
            signatures = {
                "default": v1.saved_model.predict_signature_def(
                    {"images": x}, {"default": features}
                )
            }
            session.run(v1.global_variables_initializer())
            if tags:
                builder.add_meta_graph(tags, signatures)
            else:
                builder.add_meta_graph_and_variables(session, tags, signatures)
    builder.save()
    (tmp_path / "m" / "tfhub_module.pb").write_bytes(b"\x08\x03")
    module = modules.load(tmp_path / "m")
    np.testing.assert_allclose(
        module.endpoints(images(8))["default"], 2 * np.mean(images(8), (1, 2)), rtol=1e-5
    )
    assert module.sizes()[0] == 8


def test_a_keras_model_with_dropout(tmp_path):
    """Keras saves a call with a `training` argument: it has to be False."""
    model = tf.keras.Sequential(
        [tf.keras.layers.Flatten(input_shape=(8, 8, 3)), tf.keras.layers.Dropout(0.9)]
    )
    model.save(str(tmp_path / "keras"), save_format="tf")
    module = modules.load(tmp_path / "keras")
    np.testing.assert_array_equal(
        module.endpoints(images(8))["output"], np.reshape(images(8), [3, 192])
    )
    assert module.sizes()[0] == 8


def test_outputs_that_are_no_features_are_left_out(tmp_path):
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(
        lambda x: {
            "a": tf.reduce_mean(x, [1, 2]),
            "classes": tf.zeros([tf.shape(x)[0], 1], tf.int64),
            "loss": tf.reduce_mean(x),
            "batch": tf.reduce_mean(x, 0),
        },
        input_signature=[tf.TensorSpec([None, None, None, 3])],
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={})
    assert modules.load(tmp_path / "m").shapes(5) == {"a": (3,)}


@pytest.mark.parametrize("prefix, ending", [(".", ".tar.gz"), ("1", ".tgz"), ("a/b", ".tar.gz")])
def test_tarball(modules_dir, tmp_path, prefix, ending):
    path = tiny_modules.pack(modules_dir / "ours" / "1", tmp_path / f"module{ending}", prefix)
    module = modules.load(path)
    assert module.facts["endpoints"] == tiny_modules.DEPTH
    assert module.identity == modules.load(modules_dir / "ours" / "1").identity
    np.testing.assert_allclose(
        module.endpoints(images())["block"], expected()["block"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["outside", "absolute", "link"])
def test_tarball_that_leads_out(tmp_path, kind):
    member = tarfile.TarInfo(
        {"outside": "../evil", "absolute": str(tmp_path / "evil"), "link": "inside"}[kind]
    )
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
    else:
        member.size = 4
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="is a link or a device|lies outside of it"):
        modules.load(tmp_path / "m.tar.gz")
    assert not (tmp_path / "evil").exists()


def test_identity_is_of_the_content(modules_dir, tmp_path):
    original = modules.load(modules_dir / "ours" / "1").identity
    shutil.copytree(modules_dir / "ours" / "1", tmp_path / "copy")
    assert modules.load(tmp_path / "copy").identity == original
    (tmp_path / "other").mkdir()
    other = tiny_modules.save_ours(tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "copy" / "variables")
    shutil.copytree(
        os.path.join(other, "variables"), tmp_path / "copy" / "variables"
    )  # the same graph, other weights
    assert modules.load(tmp_path / "copy").identity != original


def test_what_cannot_be_opened(modules_dir, tmp_path):
    with pytest.raises(UserError, match="does not exist; give the folder of a SavedModel"):
        modules.load(tmp_path / "absent")
    with pytest.raises(UserError, match="no saved_model.pb, but these folders.*ours/1"):
        modules.load(modules_dir / "ours")
    (tmp_path / "run" / "module").mkdir(parents=True)
    shutil.copytree(modules_dir / "ours" / "1", tmp_path / "run" / "module" / "1000")
    with pytest.raises(UserError, match="run/module/1000"):
        modules.load(tmp_path / "run")  # a workdir of tfssl-train
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "saved_model.pb").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="damaged.*cannot be read"):
        modules.load(tmp_path / "damaged")
    (tmp_path / "damaged.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        modules.load(tmp_path / "damaged.tar.gz")
    shutil.copytree(modules_dir / "ours" / "1", tmp_path / "weightless")
    shutil.rmtree(tmp_path / "weightless" / "variables")
    with pytest.raises(UserError, match="weightless.*cannot be read"):
        modules.load(tmp_path / "weightless")


def test_what_takes_no_such_images(modules_dir):
    with pytest.raises(UserError, match="does not take 16x16 float32 RGB images"):
        modules.load(modules_dir / "text").shapes(16)
    for name in ("fixed", "signature"):
        with pytest.raises(UserError, match="does not take 32x32 float32 RGB images"):
            modules.load(modules_dir / name).shapes(32)


def save_function(path, function, shape, dtype=tf.float32):
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(function, input_signature=[tf.TensorSpec(shape, dtype)])
    tf.saved_model.save(module, str(path), signatures={})
    return modules.load(path)


def mean(x):
    return tf.reduce_mean(x, [1, 2])


@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_that_is_fixed(tmp_path, batch):
    """Images go through B by B: the answers are NumPy's, of as many images as there are, known or
    not while it is traced."""
    module = save_function(
        tmp_path / "m", lambda x: {"vector": mean(x), "map": x[:, ::2]}, [batch, 16, 16, 3]
    )
    assert module.sizes()[0] == 16 and module.shapes(16) == {"map": (8, 16, 3), "vector": (3,)}
    of_any = tf.function(module.endpoints, input_signature=[tf.TensorSpec([None, 16, 16, 3])])
    for run in (module.endpoints, of_any):
        found = run(images())
        np.testing.assert_allclose(found["vector"], np.mean(images(), (1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(found["map"], images()[:, ::2])


def test_a_tuple_of_outputs(tmp_path):
    one = save_function(tmp_path / "one", lambda x: {"a": (mean(x),)}, [None, 16, 16, 3])
    np.testing.assert_allclose(one.endpoints(images())["a"], np.mean(images(), (1, 2)), rtol=1e-5)
    two = save_function(tmp_path / "two", lambda x: (mean(x), x), [None, 16, 16, 3])
    with pytest.raises(
        UserError, match=r"returns 2 tensors without names \(\[2, 3\], \[2, 16, 16, 3\]\).*dict"
    ):
        two.shapes(16)


def test_what_a_module_takes_instead_is_said(tmp_path):
    first = save_function(
        tmp_path / "first", lambda x: tf.reduce_mean(x, [2, 3]), [None, 3, 16, 16]
    )
    with pytest.raises(
        UserError, match=r"takes float32 \[N, 3, 16, 16\].*tf.transpose\(images, \[0, 3, 1, 2\]\)"
    ):
        first.shapes(16)
    with pytest.raises(UserError, match=r"\[N, 3, 16, 16\], channels first"):
        first.sizes()
    numbers = save_function(
        tmp_path / "waves", lambda x: mean(tf.math.real(x)), [None, 16, 16, 3], tf.complex64
    )
    with pytest.raises(
        UserError, match=r"\[N, 16, 16, 3\] in \[0, 1\]: it takes complex64 \[N, 16, 16, 3\]"
    ):
        numbers.shapes(16)


def test_pixels_in_another_range(tmp_path):
    """Bytes where the input's type says so, and else what the handle says; another range is another
    module for caches."""
    images = tf.constant(
        np.random.default_rng(0).integers(0, 256, [2, 16, 16, 3]) / 255, tf.float32
    )
    numbers = save_function(
        tmp_path / "bytes", lambda x: mean(tf.cast(x, tf.float32)), [None, 16, 16, 3], tf.uint8
    )
    assert numbers.shapes(16) and numbers.sizes()[0] == 16
    (found,) = numbers.endpoints(images).values()
    np.testing.assert_allclose(found, 255 * mean(images), rtol=1e-6)
    plain = save_function(tmp_path / "plain", mean, [None, 16, 16, 3])
    signed = modules.load(f"{tmp_path}/plain#-1..1")
    (found,) = signed.endpoints(images).values()
    np.testing.assert_allclose(found, 2 * mean(images) - 1, atol=1e-6)
    assert signed.identity != plain.identity and len(signed.identity) == len(plain.identity)
    assert modules.load(f"{tmp_path}/plain#0..255").identity != signed.identity
    assert value_range.parted("a#b..c") == ("a#b..c", None)
    assert value_range.parted("https://h/m.tar.gz#sha256=ab#0..255") == (
        "https://h/m.tar.gz#sha256=ab",
        (0, 255),
    )


def test_a_complaint_is_whole(tmp_path):
    """What a module says itself comes last in what TensorFlow says, and may be long."""
    why = (
        "this encoder was trained on " + "very " * 60 + "bright images, and has seen none of these"
    )

    def picky(x):
        tf.debugging.assert_greater(tf.reduce_max(x), 2.0, message=why)
        return mean(x)

    with pytest.raises(UserError, match="has seen none of these") as raised:
        save_function(tmp_path / "picky", picky, [None, 16, 16, 3]).shapes(16)
    assert "\n" not in str(raised.value) and "{{" not in str(raised.value)
    model = tf.keras.Sequential(
        [tf.keras.layers.Flatten(input_shape=(16, 16, 1)), tf.keras.layers.Dense(2, name="only")]
    )
    model.save(str(tmp_path / "gray"), save_format="tf")
    with pytest.raises(UserError, match=r"it takes float32 \[N, 16, 16, 1\]"):
        modules.load(tmp_path / "gray").shapes(16)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_the_way_from_a_file_of_keras(tmp_path, ending, monkeypatch):
    """The command that the message names makes a module of the same function."""
    path = tmp_path / f"it's mine.{ending}"
    model = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(2, 3, input_shape=(16, 16, 3)), tf.keras.layers.Flatten()]
    )
    model.save(str(path))
    with pytest.raises(
        UserError, match="is a file, not a SavedModel's folder: python -c"
    ) as raised:
        modules.load(path)
    script = re.search(r'python -c "(.*)" writes', str(raised.value)).group(1)
    exec(
        script.replace("import keras; keras.", "import tensorflow as tf; tf.keras.")
    )  # as the stack of this test has saved it
    found = modules.load(path.with_suffix("")).endpoints(images())
    np.testing.assert_allclose(
        found["output"] if "output" in found else found["output_0"],
        model(images()),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "facts",
    [
        b'{"format": 1}',
        b"[]",
        b"5",
        b"\xff",
        b"[" * 100_000,
        b'{"crop": 0, "resize": 18}',
        b'{"crop": 16, "resize": -1}',
        b'{"crop": Infinity, "resize": 18}',
        b'{"crop": 16, "resize": 18, "endpoints": {"a": 1}}',
        b'{"crop": 16, "resize": 18, "endpoints": [1]}',
        b'{"crop": 16, "resize": 18, "class_names": "ab"}',
        b'{"crop": 16, "resize": 18, "training_flags": ["task"]}',
        b'{"crop": 16, "resize": 18, "min_image_size": "x"}',
    ],
)
def test_damaged_facts(facts, modules_dir, tmp_path):
    shutil.copytree(modules_dir / "ours" / "1", tmp_path / "m")
    (tmp_path / "m" / "assets" / "tfssl.json").write_bytes(facts)
    with pytest.raises(UserError, match="tfssl.json is damaged") as raised:
        modules.load(tmp_path / "m")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_facts_that_are_no_classifier(modules_dir, tmp_path):
    shutil.copytree(modules_dir / "ours" / "1", tmp_path / "m")
    (tmp_path / "m" / "assets" / "tfssl.json").write_text(
        json.dumps({"crop": 16, "resize": 18, "kind": "classifier"})
    )
    with pytest.raises(UserError, match="no classifier of tfssl"):
        classify.num_classes(modules.load(tmp_path / "m"))


def test_a_module_of_somebody_else_is_announced_once_before_it_runs(tmp_path, capfd, monkeypatch):
    """A program that reads one file and writes another: what is said, is said before."""
    written = tmp_path / "written"
    (tmp_path / "secret").write_text("a token")

    def program(x):
        with tf.control_dependencies(
            [tf.io.write_file(str(written), tf.io.read_file(str(tmp_path / "secret")))]
        ):
            return mean(x)

    save_function(tmp_path / "foreign", program, [None, 16, 16, 3])
    capfd.readouterr()
    modules._announced.clear()
    load = tf.saved_model.load
    heard = []
    monkeypatch.setattr(
        tf.saved_model,
        "load",
        lambda *a, **k: heard.append(capfd.readouterr().err) or load(*a, **k),
    )
    modules.load(tmp_path / "foreign").shapes(16)
    assert written.read_text() == "a token"
    modules.load(tmp_path / "foreign")
    assert (
        "is a program, which now runs with your rights" in heard[0]
        and heard[0].count("\n") == 1
        and heard[1] == ""
    )


def test_ours_are_announced_where_they_come_from_elsewhere(modules_dir, capfd):
    modules._announced.clear()
    modules.load(modules_dir / "ours" / "1")
    assert capfd.readouterr().err == ""
    modules.load(f"file://{modules_dir}/ours/1")
    assert "comes from another machine" in capfd.readouterr().err

"""A module in other runtimes gives what it gives in TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from networks import randomise

from tfssl import backbones, export, pretext
from tfssl.errors import UserError
from tfssl.export import converted
from tfssl.export.network import save_network
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    network = backbones.build("resnet18_v1", 1 / 16, "small")
    network.build((None, None, None, 3))
    folder = tmp_path_factory.mktemp("modules") / "1"
    return modules.load(save_network(randomise(network), folder, (0.5,) * 3, (0.25,) * 3, 16))


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    """A module of one channel."""
    backbone = backbones.build("resnet18_v1", 1 / 16, "small", input_channels=1)
    model = pretext.build("rotation", backbone, image_size=16, resize=16)
    model.prepare()
    randomise(model.backbone)
    path = tmp_path_factory.mktemp("modules") / "gray"
    return modules.load(export.save(model, path, value_range="1000,33768"))


def images(count=1, channels=3):
    return np.random.default_rng(0).random([count, 16, 16, channels], np.float32)


def expected(module, x):
    return module.endpoints(tf.constant(x))["pre_logits"].numpy()


def interpreted(path, image):
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == result["dtype"] == np.float32
    interpreter.set_tensor(given["index"], image[None])
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])[0]


def test_tensorflow_lite(module, photos, tmp_path, tfssl_command):
    found = interpreted(converted.save_tflite(module, str(tmp_path / "half")), images()[0])
    answer = expected(module, images())[0]
    np.testing.assert_allclose(found, answer, atol=2e-3 * np.abs(answer).max())
    done = tfssl_command(
        "export", f"--module={module.handle}", "--layout=tflite", f"--export_dir={tmp_path}/int8",
        "--calibration_images=16", f"--dataset=folder:{photos}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pre_logits of 16-pixel images" in done.stdout
    from tfssl import data

    crops = list(converted.crops(data.open_source(f"folder:{photos}", "train"), module, 3))
    assert len(crops) == 3 and crops[0].shape == (16, 16, 3) and 0 < crops[0].max() <= 1
    for image in crops:
        found = interpreted(str(tmp_path / "int8" / "model.tflite"), image)
        answer = expected(module, image[None])[0]
        assert np.corrcoef(found, answer)[0, 1] > 0.99
    with pytest.raises(UserError, match="never changes"):
        converted.save_tflite(module, str(tmp_path / "half"))


def test_tensorflow_lite_of_one_channel(gray, tmp_path):
    image = images(channels=1)
    found = interpreted(converted.save_tflite(gray, str(tmp_path / "half")), image[0])
    answer = expected(gray, image)[0]
    np.testing.assert_allclose(found, answer, atol=2e-3 * np.abs(answer).max())


def test_calibration_by_images_in_full_depth(gray, tmp_path, tfssl_command):
    """int8's ranges are those of the files' values as the module says that they are read."""
    from tfssl import data

    pixels = np.random.default_rng(0).integers(0, 50_000, [8, 16, 16], np.uint16)
    for i, image in enumerate(pixels):
        (tmp_path / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "photos" / f"class{i % 2}" / f"{i}.tif", image)
    dataset = f"folder:{tmp_path}/photos"
    wanted = np.clip((pixels[..., None].astype(np.float64) - 1000) / 32768, 0, 1)
    crops = list(converted.crops(data.open_source(dataset, "train", **gray.pixels), gray, 8))
    assert len(crops) == 8
    for crop in crops:
        assert crop.dtype == np.float32 and np.abs(wanted - crop).max((1, 2, 3)).min() < 1e-6
    done = tfssl_command(
        "export", f"--module={gray.handle}", "--layout=tflite", f"--export_dir={tmp_path}/int8",
        "--calibration_images=8", f"--dataset={dataset}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = interpreted(str(tmp_path / "int8" / "model.tflite"), crops[0])
    answer = expected(gray, crops[0][None])[0]
    assert (
        np.corrcoef(found, answer)[0, 1] > 0.99 and np.abs(found).max() > np.abs(answer).max() / 2
    )


@pytest.mark.parametrize("made,channels", [("module", 3), ("gray", 1)])
def test_onnx(made, channels, request, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = request.getfixturevalue(made)
    session = onnxruntime.InferenceSession(converted.save_onnx(module, str(tmp_path / "onnx")))
    (found,) = session.run(None, {session.get_inputs()[0].name: images(3, channels)})
    answer = expected(module, images(3, channels))
    np.testing.assert_allclose(found, answer, atol=1e-5 * np.abs(answer).max())


def test_onnx_without_its_packages(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"needs tf2onnx.*pip install 'tfssl\[onnx\]'"):
        converted.save_onnx(module, str(tmp_path / "onnx"))


@pytest.mark.parametrize("made,channels", [("module", 3), ("gray", 1)])
def test_keras_3_trains_it_without_tfssl(made, channels, request, tmp_path):
    keras = pytest.importorskip("keras", minversion="3")
    module = request.getfixturevalue(made)
    written = converted.save_keras3(module, str(tmp_path / "k"))
    assert keras and written == str(tmp_path / "k" / "encoder.py")
    np.save(tmp_path / "images.npy", images(4, channels))
    np.save(tmp_path / "expected.npy", expected(module, images(4, channels)))
    program = """
import sys
import numpy as np
import keras
from encoder import encoder
images, expected = np.load("images.npy"), np.load("expected.npy")
frozen, network = encoder(), encoder(trainable=True)
np.testing.assert_allclose(frozen(images), expected, rtol=1e-4)
np.testing.assert_allclose(frozen(images, training=True), expected, rtol=1e-4)
assert not frozen.trainable_variables and len(network.trainable_variables) == 60
model = keras.Sequential([network, keras.layers.Dense(2)])
model.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError())
before = [v.numpy() for v in network.variables]
model.fit(images, np.zeros([4, 2]), epochs=1, verbose=0)
assert all((v.numpy() != b).any() for v, b in zip(network.variables, before))
assert "tfssl" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "k"), "TF_USE_LEGACY_KERAS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]

"""A published detector: TensorFlow alone runs it on an image of any size; its boxes are in pixels of
that image; and it is as good as the protocol has measured."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import rectangles
import runs
import tensorflow as tf
import tiny_detector
import tiny_modules
from PIL import Image

from tfssl import downstream
from tfssl.downstream.metrics.boxes import average_precision
from tfssl.errors import UserError
from tfssl.export import save_detector
from tfssl.hub import load as modules

SETTINGS = {"units": 16, "layers": 1, "neck_width": 16, "size": (24, 32), "epochs": 3}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return rectangles.sources(tmp_path_factory.mktemp("boxes"))


def published(scenes, folder, **settings):
    """(result of the protocol, path of the detector that it published)."""
    module = modules.load(tiny_modules.save_ours(folder))
    path = str(folder / "detector")
    (result,) = downstream.run(
        "fcos",
        *scenes,
        module=module,
        publish=lambda detector: save_detector(detector, path),
        val_fraction=0,
        learning_rate=0.02,
        **SETTINGS,
        **settings,
    )
    return result, path


@pytest.fixture(scope="module")
def frozen(scenes, tmp_path_factory):
    return published(scenes, tmp_path_factory.mktemp("frozen"))


def measured(detector, source):
    """AP of a detector, image by image of its own size: the fields of the protocol's result."""
    truths, predictions = [], []
    for example in source.records().map(source.fetch):
        pixels = tf.io.decode_jpeg(
            example["image"], dct_method="INTEGER_ACCURATE", fancy_upscaling=True
        )
        found = {name: value.numpy()[0] for name, value in detector(pixels[None]).items()}
        n, sides = int(found["count"]), pixels.shape[:2]
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= [*sides, *sides]).all()
        boxes, classes = example["boxes"].numpy() * [*sides, *sides], example["classes"].numpy()
        truths.append((boxes, classes, example["difficult"].numpy()))
        predictions.append((found["boxes"][:n], found["classes"][:n], found["scores"][:n]))
        assert (
            found["names"][:n] == np.array(["bright", "dark"], bytes)[found["classes"][:n]]
        ).all()
        assert set(found["names"][n:]) <= {b""} and not found["scores"][n:].any()
    return average_precision(truths, predictions, ["bright", "dark"])


def test_it_is_as_good_as_the_protocol_says(scenes, frozen):
    result, path = frozen
    values = measured(tf.saved_model.load(path), scenes[1])
    assert values["value"] > 0.2
    for name, value in values.items():
        assert result[name] == pytest.approx(value, abs=1e-3), name


def test_a_fine_tuned_module_is_published_as_it_was_measured(scenes, tmp_path):
    result, path = published(scenes, tmp_path, trunk="fine_tuned")
    values = measured(tf.saved_model.load(path), scenes[1])
    assert values["value"] > 0
    for name, value in values.items():
        assert result[name] == pytest.approx(value, abs=1e-3), name


PROGRAM = """
import json, sys
sys.modules["tfssl"] = None  # an import of it fails
import tensorflow as tf
module = tf.saved_model.load(sys.argv[1])
image = tf.io.decode_image(tf.io.read_file(sys.argv[2]), expand_animations=False)
found = {name: value.numpy() for name, value in module(image[None]).items()}
signed = module.signatures["serving_default"](images=image[None])
floats = module(tf.cast(image, tf.float32)[None] / 255)
for name, value in found.items():
    assert (signed[name].numpy() == value).all() and (floats[name].numpy() == value).all(), name
found["names"] = found["names"].astype(str)
print(json.dumps({name: value.tolist() for name, value in found.items()}))
"""


def test_tensorflow_alone_runs_it_on_a_photograph_of_any_size(frozen, tmp_path):
    """By call and by signature, of bytes and of floats: as this process, which has tfssl, does."""
    path, photo = frozen[1], tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, [211, 97, 3], np.uint8)
    Image.fromarray(pixels).save(photo)
    command = [sys.executable, "-c", PROGRAM, path, str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = tf.saved_model.load(path)(pixels[None])
    assert np.shape(found["boxes"]) == (1, 100, 4) and found["count"] == expected["count"].numpy()
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_its_facts(frozen):
    with open(f"{frozen[1]}/assets/tfssl.json", encoding="utf-8") as f:
        facts = json.load(f)
    assert facts["kind"] == "detector" and facts["class_names"] == ["bright", "dark"]
    assert facts["size"] == [24, 32] and facts["endpoint"] == "stem+block"
    assert facts["head"] == {"layers": 1, "units": 16, "neck_width": 16}
    with open(f"{frozen[1]}/assets/labels.txt", encoding="utf-8") as f:
        assert f.read() == "bright\ndark\n"
    module = tf.saved_model.load(frozen[1])
    # its encoder's two kernels; a lateral and an output for each map, and the level they add
    assert not module.regularization_losses
    count = sum(int(np.prod(v.shape)) for v in module.variables)
    encoder = 27 * 8 + 72 * 16
    neck = (8 + 16) * 16 + 3 * 9 * 16 * 16 + 5 * 32  # and scale and shift of each GroupNorm
    towers = 2 * (9 * 16 * 16 + 32)
    last = 9 * 16 * 7 + 7 + 3  # and a factor for each level
    assert count == encoder + neck + towers + last


def test_a_class_whose_name_has_a_line_break_takes_one_line(tmp_path, monkeypatch):
    assets = {}
    detector = dataclasses.replace(
        tiny_detector.detector(tmp_path), class_names=["all", "polar\nbear"]
    )
    monkeypatch.setattr(
        "tfssl.export.detector.publish",
        lambda path, made, facts, labels, tar: assets.update(labels),
    )
    save_detector(detector, tmp_path / "detector")
    assert assets == {"labels.txt": "all\npolar bear\n"}


def test_boxes_of_odd_sizes_by_hand(tmp_path):
    """37 x 101 pixels fit 48 x 64 by 64/101: 23.4 rows, of which 23 are made, and 64 columns. So a
    row of these is 37/23 rows of the image, and a column 101/64."""
    path = save_detector(tiny_detector.detector(tmp_path), tmp_path / "detector")
    module = tf.saved_model.load(str(path))
    image = np.zeros([37, 101, 3], np.uint8)
    image[8:29, 30:71] = [255, 0, 0]
    found = {name: value.numpy()[0] for name, value in module(image[None]).items()}
    assert found["count"] == 2 and found["names"].tolist() == [b"=red", b"all"]
    # rows 8/37*23 = 4.97 to 29/37*23 = 18.03, columns 30/101*64 = 19.01 to 71/101*64 = 44.99: more
    # than half red from row 5 to 18 and from column 19 to 45
    np.testing.assert_allclose(
        found["boxes"][0], [5 * 37 / 23, 19 * 101 / 64, 18 * 37 / 23, 45 * 101 / 64], rtol=1e-6
    )
    np.testing.assert_allclose(found["boxes"][1], [0, 0, 37, 101], rtol=1e-6)  # not the padding
    several = module(np.stack([image, np.zeros_like(image)]))
    assert several["count"].numpy().tolist() == [2, 1]
    np.testing.assert_array_equal(several["boxes"][0], found["boxes"])
    small = module(np.full([1, 5, 3, 3], 7, np.uint8))  # enlarged, 48 x 29
    np.testing.assert_allclose(small["boxes"][0, 0], [0, 0, 5, 3], rtol=1e-6)
    with pytest.raises(UserError, match="exists, and published versions never change"):
        save_detector(tiny_detector.detector(tmp_path / "other"), path)


def test_tfssl_eval_saves_it_and_tfssl_predict_runs_it(scenes, tmp_path, tfssl_command):
    """Trained on two devices, read by one."""
    encoder = tiny_modules.save_ours(tmp_path)
    flags = [f"--module={encoder}", f"--dataset={scenes[0].spec}", "--protocol=fcos"]
    flags += ["--dense_size=24,32", "--detection_layers=1", "--detection_units=8"]
    flags += ["--fcos_neck_width=8", "--dense_epochs=1", "--val_fraction=0"]
    saved = f"--save_detector={tmp_path / 'detector'}"
    two = {"first": runs.two_devices}
    done = runs.command("evaluate", *flags, "--strategy=mirrored", saved, **two)
    assert done.returncode == 0, done.stderr
    assert f"written: {tmp_path / 'detector'}" in done.stdout
    photo = scenes[1].name(3)
    flags += [f"--images={photo}", f"--module={tmp_path / 'detector'}", "--min_score=0"]
    table = tmp_path / "boxes.csv"
    settings = flags[-3:]
    done = runs.command("predict", *settings, f"--output={table}", "--strategy=mirrored", **two)
    assert done.returncode == 0, done.stderr
    rows = table.read_text(encoding="utf-8").splitlines()[1:]
    found = tf.saved_model.load(str(tmp_path / "detector"))(
        tf.io.decode_jpeg(tf.io.read_file(photo), dct_method="INTEGER_ACCURATE")[None]
    )
    assert len(rows) == max(1, int(found["count"][0])) and all(
        row.startswith(photo) for row in rows
    )
    for flags, expected in (
        (["--protocol=detection", "--save_detector=x"], "fcos alone makes a detector"),
        ([f"--save_detector={tmp_path / 'detector'}"], "exists, and published versions never"),
        ([f"--module={tmp_path / 'detector'}"], "a detector, and no encoder: give the one"),
    ):
        named = [f"--module={encoder}", f"--dataset={scenes[0].spec}", "--protocol=fcos"]
        done = tfssl_command("evaluate", *named, *flags, cwd=tmp_path)
        assert done.returncode == 1 and expected in done.stderr, done.stderr

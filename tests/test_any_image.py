"""Images of 16 bits and one channel from the file to the table of an evaluation: what the network
sees are the file's values."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tifffile

import tfssl
from tfssl import backbones, export, pretext
from tfssl.downstream.features.extract import extract
from tfssl.errors import UserError
from tfssl.hub import load as modules

SIDE, COUNT = 16, 12
# Values of a detector: most lie above 255, and no two neighbors share their upper 8 bits' rest.
IMAGES = np.random.default_rng(0).integers(200, 60_000, [COUNT, SIDE, SIDE, 1], np.uint16)
WANTED = (IMAGES / np.float32(65535)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("detector")
    for i, image in enumerate(IMAGES):
        path = root / f"class{i % 2}" / f"{i:02}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, image[..., 0])
    return root


@pytest.fixture(scope="module")
def source(folder):
    return tfssl.open_source(f"folder:{folder}", channels=1)


def number(source, index):
    """Which of IMAGES stands at an index of the source."""
    return [int(source.name(int(i))[-6:-4]) for i in index]


def build(task, **settings):
    backbone = backbones.build("resnet18_v2", 1 / 64, "small", input_channels=1)
    model = pretext.build(task, backbone, image_size=SIDE, resize=SIDE, **settings)
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    return model


@pytest.fixture(scope="module")
def rotation(source):
    """Of a task that has learned for a step: itself, and its module."""
    model = build("rotation", min_area=1.0, flip=False)
    model.fit(model.dataset(source, COUNT, steps=1), verbose=0)
    return model


@pytest.fixture(scope="module")
def module(rotation, tmp_path_factory):
    return export.save(rotation, str(tmp_path_factory.mktemp("modules") / "1"))


def test_rotation_sees_all_16_bits(source, rotation):
    for data in (
        rotation.dataset(source, COUNT, steps=1),
        rotation.evaluation_dataset(source, COUNT),
    ):
        batch = next(iter(data))
        assert batch["image"].dtype == tf.float32
        np.testing.assert_array_equal(batch["image"], WANTED[number(source, batch["index"])])
    seen = rotation.to_float(batch)["image"]
    np.testing.assert_array_equal(seen, batch["image"])
    turned = rotation.preview({"image": seen})[1]
    np.testing.assert_array_equal(turned, np.rot90(seen[0]))
    assert rotation.backbone.root_conv.kernel.shape[2] == 1


def test_simclr_sees_all_16_bits(source):
    model = build("simclr", augmentation="crop", min_area=0.999)
    batch = next(iter(model.dataset(source, COUNT, steps=1)))
    (views,) = batch["image"]
    wanted = WANTED[number(source, batch["index"])]
    # A crop of the whole image, but where the sampler finds one of 0.999 of it.
    whole = [np.array_equal(view, image) for pair, image in zip(views, wanted) for view in pair]
    assert np.mean(whole) > 0.8 and views.dtype == tf.float32
    assert np.isfinite(model.fit(model.dataset(source, COUNT, steps=1), verbose=0).history["loss"])


def test_its_module_says_what_it_takes_and_evaluation_reads_that(source, rotation, module):
    loaded = modules.load(module)
    assert loaded.pixels == {"channels": 1, "value_range": ""}
    assert loaded.facts["input"] == "float32 in [0, 1], [batch, height, width, 1]"
    found = extract(loaded, source, ["pixels", "pre_logits"], batch_size=5)
    wanted = WANTED[number(source, found.index)]
    np.testing.assert_array_equal(found.endpoints["pixels"], wanted.reshape(COUNT, -1))
    np.testing.assert_allclose(
        found.endpoints["pre_logits"], rotation.encode(wanted)["pre_logits"], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match="takes images of 1 channels.*open it with channels=1"):
        extract(loaded, tfssl.open_source(source.spec))


def test_an_evaluation_beside_the_untrained_network(folder, rotation, tmp_path, tfssl_command):
    """Without flags, of a module that says how its images are read; alignment is of crops of them,
    and the untrained network takes the same images."""
    network = {
        "backbone": "resnet18_v2",
        "width_multiplier": 1 / 64,
        "stem": "small",
        "channels": 1,
    }
    read = {"value_range": "1000,33768", "image_size": SIDE, "resize": SIDE}
    flags = {"task": "rotation", **network, **read}
    module = export.save(rotation, tmp_path / "trained", training_flags=flags)
    done = tfssl_command(
        "evaluate", f"--module={module}", f"--dataset=folder:{folder}", "--random_init",
        "--train_split=train[:50%]", "--test_split=train[50%:]", "--protocol=unsupervised",
        f"--workdir={tmp_path}/eval", "--endpoints=pre_logits",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]
    assert {row["module"] for row in rows} == {"trained", "random"}, rows
    assert all("alignment" in row for row in rows)


def test_another_range_of_values(folder):
    source = tfssl.open_source(f"folder:{folder}", channels=1, value_range="1000,33768")
    (image,) = (source.fetch(r)["image"] for r in source.records().take(1))
    raw = IMAGES[number(source, [0])[0]].astype(np.float64)
    np.testing.assert_allclose(image, np.clip((raw - 1000) / 32768, 0, 1), rtol=1e-6)


@pytest.mark.parametrize("task", ["colorization", "jigsaw"])
def test_tasks_of_color_refuse_them(source, task):
    model = pretext.build(task, backbones.build("resnet18_v2", 1 / 64, input_channels=1))
    with pytest.raises(UserError, match=f"task '{task}' needs color: RGB of 8 bits.*channels=1"):
        model.dataset(source, 4)

"""Attention pictures of reports: the module's own weights, in the right places."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfssl
from tfssl import backbones, export, pretext
from tfssl.downstream import pictures
from tfssl.downstream.features.extract import extract
from tfssl.downstream.report import attention
from tfssl.hub import load as modules

VIT = {"width_multiplier": 1 / 16, "depth": 2, "patch": 4}
BRIGHT, DARK = [253, 231, 37], [68, 1, 84]  # viridis' two ends


@pytest.fixture(scope="module")
def model():
    model = pretext.build("rotation", backbones.build("vit_tiny", **VIT), image_size=16)
    model.prepare()
    for variable in model.backbone.trainable_variables:
        variable.assign(variable + 0.5 * tf.random.stateless_normal(variable.shape, [0, 1]))
    return model


def test_maps_are_drawn_where_the_weights_are():
    images = np.full([1, 8, 12, 3], 77, np.uint8)
    weights = np.zeros([1, 2, 2, 3])
    weights[0, 0, 1, 2], weights[0, 1, 0, 0] = 0.2, 0.01
    (row,), titles = pictures.attention(images, weights, sides=(1, 128))
    assert titles == ["image", "head 1", "head 2"]
    assert [picture.shape for picture in row] == [(8, 12, 3)] * 3
    assert (row[0] == 77).all()
    assert (row[1][4:, 8:] == BRIGHT).all() and (row[1][:4] == DARK).all()
    assert (row[2][:4, :4] == BRIGHT).all() and (row[2][4:] == DARK).all()
    for sides, shape in (((1, 6), (4, 6, 3)), ((64, 128), (43, 64, 3))):
        (row,), _ = pictures.attention(images, weights, sides)
        assert {picture.shape for picture in row} == {shape}


def test_a_module_shows_what_its_network_attends_to(model, tmp_path):
    module = modules.load(export.save(model, tmp_path / "vit"))
    assert attention.has_attention(module)
    source = tfssl.open_source("glyphs:48")
    test = extract(module, source, ["pre_logits"])
    picture = np.asarray(Image.open(io.BytesIO(attention.plot(module, test, 3))))
    rows = [0, 24, 47]
    images = np.stack([one for one in _crops(module, source, rows)])
    expected = model.backbone.attention(model.normalize(images / np.float32(255))).numpy()
    for i in range(3):
        top = 14 + i * 68
        np.testing.assert_array_equal(picture[top : top + 64 : 4, :64:4], images[i])
        for head in range(3):
            left = (head + 1) * 68
            drawn = picture[top : top + 64, left : left + 64][8::16, 8::16]  # one pixel per patch
            brightest = (drawn == BRIGHT).all(-1)
            np.testing.assert_array_equal(
                np.argwhere(brightest)[0],
                np.unravel_index(expected[i, head].argmax(), (4, 4)),
            )


def _crops(module, source, rows):
    from tfssl.data import pipeline
    from tfssl.data.sources.subset import Subset

    batches = pipeline.evaluation_crops(Subset(source, np.array(rows)), *module.sizes(), 3)
    return next(iter(batches))["image"].numpy()


def test_modules_without_it(tmp_path):
    tokens = backbones.build("vit_tiny", **VIT, class_token=False, pool="mean")
    for i, network in enumerate((tokens, backbones.build("resnet18_v1", 1 / 16))):
        task = pretext.build("rotation", network, image_size=16)
        assert not attention.has_attention(modules.load(export.save(task, tmp_path / str(i))))

"""Pictures for TensorBoard: of a task, and of an encoder's attention."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext
from tfssl.training import summaries

VIT = {"width_multiplier": 1 / 16, "depth": 2, "patch": 4}


@pytest.fixture(scope="module")
def source():
    return tfssl.open_source("glyphs:48")


def test_attention_of_the_published_network_beside_its_images(source):
    """DINO's teacher; a row for each image, of the image and three heads."""
    network = backbones.build("vit_tiny", **VIT)
    small = {"small_crops": 0, "prototypes": 6, "projection_hidden": 8, "projection_size": 4}
    model = pretext.build("dino", network, image_size=16, **small)
    model.prepare()
    found = summaries.pictures(model, source, 4)
    assert list(found) == ["attention"]  # DINO has no pictures of its own
    before = found["attention"]()
    assert before.shape == (4 * 66 + 2, 4 * 66 + 2, 3) and before.dtype == np.uint8
    for variable in model.teacher.backbone.trainable_variables:
        variable.assign(variable + 0.3 * tf.random.stateless_normal(variable.shape, [0, 1]))
    after = found["attention"]()
    np.testing.assert_array_equal(after[:, :66], before[:, :66])  # the images
    assert (after[:, 66:] != before[:, 66:]).any()
    # Each head's map has a brightest patch, a quarter of the width: viridis' last color.
    brightest = (after[2:66, 68:132] == [253, 231, 37]).all(-1)
    assert brightest.sum() % 256 == 0 and brightest.sum() >= 256


def test_what_has_none(source):
    plain = pretext.build("rotation", backbones.build("resnet18_v1", 1 / 16), image_size=16)
    tokens = backbones.build("vit_tiny", **VIT, class_token=False, pool="mean")
    for model in (plain, pretext.build("rotation", tokens, image_size=16)):
        model.prepare()
        assert summaries.pictures(model, source, 4) == {}


def test_a_tasks_own_pictures_come_first(source):
    decoder = {"decoder_channels": 8, "decoder_depth": 1, "decoder_heads": 2}
    network = backbones.build("vit_tiny", **VIT)
    model = pretext.build("mae", network, image_size=16, normalization="none", **decoder)
    model.prepare()
    found = summaries.pictures(model, source, 2)
    assert list(found) == ["pictures", "attention"]
    assert found["pictures"]().shape == (2 * 18 + 2, 3 * 18 + 2, 3)

"""MAE: its loss against values computed elsewhere, what the encoder sees, its level."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import normal

from tfssl import backbones, pretext
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError


def mae(size=8, **settings):
    backbone = backbones.build("vit_tiny", 1 / 16, depth=2, patch=4)
    decoder = {"decoder_channels": 8, "decoder_depth": 1, "decoder_heads": 2}
    return pretext.build(
        "mae", backbone, image_size=size, normalization="none", **decoder, **settings
    )


@pytest.mark.parametrize("norm_pix,value", [(True, 2.2997097543), (False, 2.3190479132)])
def test_the_loss_is_that_of_the_published_code(float64, norm_pix, value):
    """Over the hidden patches alone, with pixels less their patch's mean by its unbiased deviation;
    by numpy, from the formula."""
    model = mae(norm_pix=norm_pix)
    images = tf.constant(normal(12, 2, 8, 8, 3))
    expected = [-0.00682678, 1.04614329, 0.74158841, 0.72395653]
    np.testing.assert_allclose(model.patches(images)[0, 0, :4], expected, atol=1e-8)
    batch = {"image": images, "keep": tf.constant([[1], [0]])}
    loss, _ = model.objective(batch, {"prediction": tf.constant(normal(13, 2, 4, 48))})
    assert float(tf.reduce_mean(loss)) == pytest.approx(value, abs=1e-9)
    if norm_pix:
        nothing, _ = model.objective(batch, {"prediction": tf.zeros([2, 4, 48], tf.float64)})
        assert float(tf.reduce_mean(nothing)) == pytest.approx(0.9791656471, abs=1e-9)
        assert model.chance()["loss"] == pytest.approx(47 / 48)


def test_hidden_patches_are_not_seen():
    model = mae(16)
    assert model.kept == 4
    images = np.random.default_rng(0).uniform(size=[1, 16, 16, 3]).astype(np.float32)
    keep = tf.constant([[3, 6, 9, 12]])

    def predicted(images):
        return model({"image": tf.constant(images), "keep": keep})["prediction"].numpy()

    before, hidden, visible = predicted(images), images.copy(), images.copy()
    hidden[:, :4, :4] = 0  # patch 0
    visible[:, :4, 12:] = 0  # patch 3
    np.testing.assert_array_equal(predicted(hidden), before)
    assert np.abs(predicted(visible) - before).max() > 1e-5
    assert np.abs(before[0, 1] - before[0, 2]).max() > 1e-5, (
        "hidden patches are told apart by their positions"
    )


def test_masks_are_drawn_anew_for_each_image():
    model = mae(16)
    batch = {
        "image": tf.zeros([64, 16, 16, 3]),
        "number": tf.range(64, dtype=tf.int64),
        "seed": tf.zeros([64], tf.int64),
    }
    keep = model.augment(batch, Draws(batch))["keep"].numpy()
    assert (
        keep.shape == (64, 4)
        and all(len(set(row)) == 4 for row in keep)
        and len({tuple(row) for row in keep}) > 50
    )
    counts = np.bincount(keep.reshape(-1), minlength=16)
    assert counts.min() > 4 and counts.max() < 32  # 16 expected of each place
    fixed = model.visible({"image": batch["image"]}).numpy()
    assert (fixed == fixed[0]).all() and len(set(fixed[0])) == 4


def test_pictures_show_what_is_predicted():
    model = mae(16)
    images = (255 * np.random.default_rng(0).uniform(size=[2, 16, 16, 3])).astype(np.uint8)
    pictures = model.pictures({"image": tf.constant(images)}).numpy().reshape(2, 3, 16, 16, 3)
    np.testing.assert_allclose(pictures[:, 2], images / 255, atol=1e-6)
    seen = pictures[:, 0] == pictures[:, 2]
    assert seen.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(pictures[:, 1][seen], pictures[:, 2][seen])


@pytest.mark.parametrize(
    "backbone,settings,said",
    [
        ("resnet18_v2", {}, "some patches alone"),
        ("vit_tiny", {"image_size": 20}, "multiple of the patches"),
        ("vit_tiny", {"image_size": 32, "mask_ratio": 1.0}, "mask_ratio"),
        ("vit_tiny", {"image_size": 32, "decoder_channels": 100}, "multiple of decoder_heads=16"),
        ("vit_tiny", {"image_size": 32, "decoder_channels": 90, "decoder_heads": 3}, "and of 4"),
    ],
)
def test_settings_are_checked(backbone, settings, said):
    with pytest.raises(UserError, match=said):
        pretext.build("mae", backbones.build(backbone, 1 / 16), **settings)

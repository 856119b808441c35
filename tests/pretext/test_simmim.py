"""SimMIM: its loss against a value computed elsewhere, what is masked, what the network sees."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import normal

from tfssl import backbones, pretext
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError


def simmim(size=16, mask_unit=4, **settings):
    backbone = backbones.build("vit_tiny", 1 / 16, depth=2, patch=4)
    settings = {"normalization": "none", "mask_unit": mask_unit, **settings}
    return pretext.build("simmim", backbone, image_size=size, **settings)


def test_the_loss_is_l1_of_the_masked_pixels(float64):
    """By numpy, from the formula: patches 0, 2 and 3 of the one image, 1, 2 and 3 of the other."""
    model = simmim(8, mask_ratio=0.6)
    assert model.hidden == 3  # 0.6 of four, rounded up
    batch = {
        "image": tf.constant(normal(12, 2, 8, 8, 3)),
        "masked": tf.constant([[0, 2, 3], [3, 1, 2]]),
    }
    loss, _ = model.objective(batch, {"prediction": tf.constant(normal(13, 2, 4, 48))})
    assert float(tf.reduce_mean(loss)) == pytest.approx(1.2068369880, abs=1e-9)


def test_squares_are_masked_as_a_whole():
    model = simmim(32, mask_unit=8)
    assert (model.units, model.unit, model.hidden) == (4, 2, 10)
    seen = model.seen({"image": tf.zeros([1, 32, 32, 3]), "masked": tf.constant([[*range(10)]])})
    expected = np.ones([8, 8])
    expected[:4] = 0  # two rows of squares of two patches, and two of the third row
    expected[4:6, :4] = 0
    np.testing.assert_array_equal(tf.reshape(seen, [8, 8]), expected)
    batch = {
        "image": tf.zeros([64, 32, 32, 3]),
        "number": tf.range(64, dtype=tf.int64),
        "seed": tf.zeros([64], tf.int64),
    }
    drawn = model.seen(model.augment(batch, Draws(batch))).numpy()
    assert (drawn.sum(1) == 24).all() and len({row.tobytes() for row in drawn}) > 50
    assert abs(drawn.mean(0) - 24 / 64).max() < 5 * np.sqrt(0.375 * 0.625 / 64)
    fixed = model.seen({"image": batch["image"]}).numpy()
    assert (fixed == fixed[0]).all() and fixed[0].sum() == 24


def test_masked_patches_are_not_seen_but_located():
    model = simmim()
    model.prepare()
    images = np.random.default_rng(0).uniform(size=[1, 16, 16, 3]).astype(np.float32)
    masked = tf.constant([[0, 1, 2, 5, 7, 8, 10, 11, 13, 15]])  # of 16 patches

    def predicted(images, token=None):
        if token is not None:
            model.mask_token.assign(token)
        return model({"image": tf.constant(images), "masked": masked})["prediction"].numpy()

    before, hidden, visible = predicted(images), images.copy(), images.copy()
    hidden[:, :4, :4] = 0  # patch 0
    visible[:, :4, 12:] = 0  # patch 3
    np.testing.assert_array_equal(predicted(hidden), before)
    assert np.abs(predicted(visible) - before).max() > 1e-5
    assert np.abs(before[0, 1] - before[0, 2]).max() > 1e-5, "told apart by their positions"
    assert np.abs(predicted(images, 2 * model.mask_token[..., ::-1]) - before).max() > 1e-5


def test_the_mask_token_is_not_published():
    model = simmim()
    model.prepare()
    assert not [v.name for v in model.backbone.variables if "mask" in v.name]
    images = tf.random.stateless_uniform([2, 16, 16, 3], [0, 1])
    nothing = tf.ones([2, 16])
    tokens, _ = model.backbone.tokens(images, nothing, model.mask_token)
    after, cls = model.backbone.transform(tokens)
    expected = model.backbone(images)
    np.testing.assert_allclose(
        model.backbone.pooled(after[-1], cls), expected["pre_logits"], atol=1e-6
    )


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"mask_unit": 6}, "mask_unit=6 has to be a multiple of the patches' 4 pixels"),
        ({"mask_unit": 12}, "image_size=16 one of it"),
        ({"mask_unit": 16}, "of 1 squares of 16 pixels leaves none to see"),
        ({"size": 18}, "image_size=18 has to be a multiple"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(UserError, match=said):
        simmim(**settings)
    with pytest.raises(UserError, match="task 'simmim' needs a backbone"):
        pretext.build("simmim", backbones.build("resnet18_v1", 1 / 16), image_size=16)

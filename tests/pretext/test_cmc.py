"""CMC: its two views and its two banks."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl import backbones, pretext

SMALL = {"image_size": 16, "projection_size": 4, "num_images": 48, "num_classes": 2}


@pytest.fixture(scope="module")
def softmax():
    backbone = backbones.build("resnet18_v1", 1 / 16, stem="small")
    model = pretext.build("cmc", backbone, form="cross_entropy", negatives=0, **SMALL)
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    return model


def test_each_network_sees_its_channels(softmax):
    """By scikit-image's colors, in half the ranges that they have; features stand side by side."""
    images = np.random.default_rng(0).random([3, 16, 16, 3]).astype(np.float32)
    expected = (color.rgb2lab(images) - [50, 6.025, -6.690]) / [50, 92.208, 101.168]
    np.testing.assert_allclose(softmax.normalize(images), expected, atol=1e-4)
    assert (
        abs(softmax.normalize(np.random.default_rng(1).random([64, 64, 3]))).numpy().max() <= 1.01
    )
    kernels = [net.trainable_variables[0].shape[2] for net in softmax.published]
    assert kernels == [1, 2]
    found = softmax.encode(images)
    for name, x in found.items():
        halves = [half[name] for half in softmax.halves(images)]
        np.testing.assert_array_equal(x, np.concatenate(halves, -1))
    gray = np.repeat(images[..., :1], 3, -1)
    light, colors = softmax.halves(gray)
    assert np.ptp(colors["pre_logits"].numpy(), 0).max() < 1e-2 * np.ptp(
        light["pre_logits"].numpy()
    )


def test_each_view_is_found_in_the_other_bank(softmax):
    """By a loop; and the gradient of one direction reaches one network."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    banks = [unit(rng.standard_normal([48, 4])) for _ in range(2)]
    softmax.bank.entries.assign(banks[0])
    softmax.color_bank.entries.assign(banks[1])
    z, colors = unit(rng.standard_normal([5, 4])), unit(rng.standard_normal([5, 4]))
    index = np.array([0, 3, 3, 40, 47])
    loss, _ = softmax.contrast(
        {"index": tf.constant(index)},
        {"z": tf.constant(z[:, None], tf.float32), "color": tf.constant(colors, tf.float32)},
    )
    expected = 0.0
    for v, bank in ((z, banks[1]), (colors, banks[0])):
        logits = v @ bank.T / softmax.temperature
        expected += np.log(np.exp(logits).sum(1)) - logits[np.arange(5), index]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    images = tf.constant(rng.random([2, 1, 16, 16, 3]), tf.float32)
    with tf.GradientTape() as tape:
        outputs = softmax({"image": (images,)}, training=True)
        only = tf.reduce_sum(outputs["z"] ** 3)
    gradients = tape.gradient(only, [net.trainable_variables[0] for net in softmax.published])
    assert np.abs(gradients[0]).max() > 0 and gradients[1] is None
    assert outputs["probe"].shape == (2, 1, 2)
    old = softmax.color_bank.entries.numpy()
    softmax.after_step({"index": tf.constant([4, 5], tf.int64)}, outputs)
    changed = np.any(softmax.color_bank.entries.numpy() != old, 1)
    assert list(np.flatnonzero(changed)) == [4, 5]


def test_chance(softmax):
    chance = softmax.chance()
    assert chance["loss"] == pytest.approx(2 * np.log(48))
    assert chance["color_accuracy"] == chance["accuracy"] == pytest.approx(1 / 48)

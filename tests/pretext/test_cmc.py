"""CMC: its two views and its two banks."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl import backbones, export, open_source, pretext
from tfssl.errors import UserError

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
        {
            "z": tf.constant(z[:, None], tf.float32),
            "color": tf.constant(colors, tf.float32),
            "gray": tf.zeros([5]),
        },
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


def test_gray_images_are_counted_and_data_of_them_alone_refused(softmax, tmp_path):
    """By scikit-image's colors: gray, nearly gray, and a patch of red on gray."""
    images = np.full([4, 16, 16, 3], 0.5, np.float32)
    images[1, ..., 0] += 0.01
    images[2, :4, :4] = 1, 0, 0
    images[3] = np.random.default_rng(0).random([16, 16, 3])
    expected = np.abs(color.rgb2lab(images)[..., 1:]).max((1, 2, 3)) <= 5
    assert list(expected) == [True, True, False, False]
    outputs = softmax({"image": (tf.constant(images[:, None]),)}, training=False)
    np.testing.assert_array_equal(outputs["gray"], expected)
    assert "60% of the images are gray" in softmax.alarm({"gray": 0.6, "spread": 1.0})
    assert softmax.alarm({"gray": 0.4, "spread": 1.0}) is None
    for i in range(3):
        picture = tf.io.encode_png(np.full([16, 16, 3], 40 * i, np.uint8))
        tf.io.write_file(str(tmp_path / "photos" / f"{i}.png"), picture)
    source = open_source(f"folder:{tmp_path / 'photos'}", "train")
    with pytest.raises(UserError, match="are gray: there is no color to learn from"):
        type(softmax).from_data({}, source, str(tmp_path))


def test_published_sizes_and_what_halves_refuse(softmax, tmp_path):
    """Two halves of a ResNet-50 have 12 million parameters and 2048 features (the code's README)."""
    network = backbones.build("resnet50_v1", 0.5)
    halves = [network.twin() for _ in range(2)]
    for channels, half in enumerate(halves, 1):
        half.build((None, None, None, channels))
    count = sum(int(np.prod(v.shape)) for half in halves for v in half.trainable_variables)
    assert round(count / 1e6) == 12
    with pytest.raises(UserError, match="head_endpoints=1: task 'cmc' publishes 2 networks"):
        export.save(softmax, str(tmp_path / "module"), head_endpoints=1)
    images = tf.keras.Input([16, 16, 3])
    pooled = tf.keras.layers.GlobalAveragePooling2D()(images)
    with pytest.raises(UserError, match="takes images of 3 channels; here one copy of it sees one"):
        pretext.build("cmc", backbones.build(tf.keras.Model(images, pooled)), **SMALL)

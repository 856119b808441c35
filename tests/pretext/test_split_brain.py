"""The split-brain autoencoder: what each network sees and predicts."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl import backbones, pretext


@pytest.fixture(scope="module")
def model():
    backbone = backbones.build("resnet18_v2", 1 / 16, stem="small")
    model = pretext.build("split_brain", backbone, image_size=16, resize=16, bins="gamut")
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random([3, 16, 16, 3]).astype(np.float32)


def test_losses_by_hand(model, images):
    """Cross-entropies of the nearest bin of the mean color, and of the mean lightness, 50 of 2
    each; by scikit-image's colors. A black image counts like any."""
    images = images * np.array([0, 1, 1], np.float32)[:, None, None, None]
    rng, lab = np.random.default_rng(1), color.rgb2lab(images)
    points = np.asarray(model.bins.points)
    outputs = {
        "color": rng.standard_normal([3, 2, 2, len(points)]).astype(np.float32),
        "light": rng.standard_normal([3, 2, 2, 50]).astype(np.float32),
    }
    loss, metrics = model.objective(
        {"image": tf.constant(images)}, tf.nest.map_structure(tf.constant, outputs)
    )
    means = lab.reshape(3, 2, 8, 2, 8, 3).mean((2, 4))  # 3x2x2x3
    log_softmax = {k: x - np.log(np.exp(x).sum(-1, keepdims=True)) for k, x in outputs.items()}
    for n in range(3):
        total, right = [], []
        for i, j in np.ndindex(2, 2):
            ab = np.round(means[n, i, j, 1:])
            nearest = np.argmin(((points - ab) ** 2).sum(1))
            light = int(means[n, i, j, 0] / 2)
            total.append(
                -log_softmax["color"][n, i, j, nearest] - log_softmax["light"][n, i, j, light]
            )
            right.append(outputs["light"][n, i, j].argmax() == light)
        np.testing.assert_allclose(loss[n], np.mean(total), rtol=1e-4)
        assert float(metrics["light_accuracy"][n]) == pytest.approx(np.mean(right))


def test_halves_share_nothing(model, images):
    """Colors that change do not move the half that sees lightness; the loss of one half has no
    gradient for the other; both are published."""
    assert [net.trainable_variables[0].shape[2] for net in model.published] == [1, 2]
    light, colors = model.halves(images)
    x = model.normalize(images).numpy()
    np.testing.assert_allclose(x, color.rgb2lab(images) / [50, 110, 110] - [1, 0, 0], atol=1e-4)
    swapped = np.concatenate([x[..., :1], x[::-1, ..., 1:]], -1)
    again = model.backbone(swapped[..., :1], training=False)
    np.testing.assert_array_equal(again["block4"], light["block4"])
    name = list(light)[-2]
    np.testing.assert_array_equal(
        model.encode(images)[name], np.concatenate([light[name], colors[name]], -1)
    )
    with tf.GradientTape() as tape:
        of_color = tf.reduce_sum(model({"image": tf.constant(images)}, training=True)["color"] ** 3)
    first = [net.trainable_variables[0] for net in model.published]
    gradients = tape.gradient(of_color, first)
    assert np.abs(gradients[0]).max() > 0 and gradients[1] is None
    assert model.encode(images)["pre_logits"].shape[1] == 2 * light["pre_logits"].shape[1]


def test_chance_and_pictures(model, images):
    chance = model.chance()
    assert chance["loss"] == pytest.approx(np.log(len(model.bins.points)) + np.log(50), abs=0.05)
    assert chance["light_accuracy"] == 0.02
    pictures = model.pictures({"image": tf.constant(255 * images, tf.uint8)})
    assert pictures.shape == (9, 16, 16, 3)

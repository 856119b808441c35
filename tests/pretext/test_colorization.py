"""Colorization: what the network sees, the loss by the formula, gray images, measured bins,
pictures."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl import backbones, pretext
from tfssl.errors import UserError
from tfssl.pretext.colorization import Colorization
from tfssl.pretext.parts import ab_bins


def build(backbone=None, **settings):
    network = backbone or backbones.build("resnet18_v2", 1 / 16, "small")
    model = pretext.build(
        "colorization", network, **{"image_size": 16, "resize": 18, "bins": "gamut", **settings}
    )
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.prepare()
    return model


def test_the_network_sees_lightness_alone():
    model = build()
    rgb = np.random.default_rng(0).random([2, 16, 16, 3])
    np.testing.assert_allclose(
        model.normalize(tf.constant(rgb))[..., 0], color.rgb2lab(rgb)[..., 0] / 50 - 1, atol=1e-5
    )
    lightness = np.zeros([2, 16, 16, 3])
    lightness[..., 0] = color.rgb2lab(rgb)[..., 0]
    ours, gray = (
        model.encode(tf.constant(x, tf.float32))["pre_logits"]
        for x in (rgb, color.lab2rgb(lightness))
    )
    np.testing.assert_allclose(ours, gray, atol=1e-3)
    assert model.backbone.root_conv.kernel.shape[2] == 1


def naive_loss(model, images, logits, nearest, rebalance):
    """Place by place, from the formulas of Zhang et al."""
    points, prior = model.bins.points, model.bins.prior
    mixed = (1 - rebalance) * prior + rebalance / len(prior)
    weight = 1 / mixed / np.sum(prior / mixed)
    losses = []
    for image, its in zip(color.rgb2lab(images)[..., 1:], logits):
        side, places = len(image) // len(its), []
        for y, x in np.ndindex(its.shape[:2]):
            ab = np.round(image[y * side : (y + 1) * side, x * side : (x + 1) * side].mean((0, 1)))
            squared = ((points - ab) ** 2).sum(1)
            near = np.argsort(squared, kind="stable")[:nearest]
            target = np.exp(-squared[near] / 50) / np.exp(-squared[near] / 50).sum()
            log_p = its[y, x] - np.log(np.exp(its[y, x]).sum())
            places.append(-weight[near[0]] * np.sum(target * log_p[near]))
        losses.append(np.mean(places) if np.abs(image).max() > 5 else 0)
    return np.array(losses)


def test_loss_is_the_formula(tmp_path, float64):
    rng = np.random.default_rng(0)
    prior = rng.random(261)
    ab_bins.Bins(ab_bins.of_gamut().points, prior / prior.sum()).save(str(tmp_path / "bins.npz"))
    model = build(bins=str(tmp_path / "bins.npz"), nearest=5, rebalance=0.3)
    images = rng.integers(0, 256, [3, 16, 16, 3]) / 255
    images[1] = images[1, ..., :1]  # gray
    images[2] = 0.5 * images[2] + 0.5 * images[2].mean((0, 1))
    logits = rng.normal(size=[3, 2, 2, 261])
    loss, metrics = model.objective({"image": tf.constant(images)}, tf.constant(logits))
    expected = naive_loss(model, images, logits, 5, 0.3)
    assert expected[1] == 0 and expected[0] > 1
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert set(metrics) == {"accuracy"} and metrics["accuracy"].shape == (3,)


def test_chance_is_the_loss_of_the_best_constant(tmp_path):
    prior = np.array([0.7, 0.2, 0.1])
    ab_bins.Bins(np.array([[0.0, 0], [50, 0], [0, 50]]), prior).save(str(tmp_path / "bins.npz"))
    model = build(bins=str(tmp_path / "bins.npz"), nearest=1, rebalance=0.5)
    weights = model.bins.weights(0.5)

    def loss(z):
        return -np.sum(prior * weights * np.log(z / z.sum()))

    rng, best = np.random.default_rng(0), prior * weights
    assert model.chance()["loss"] == pytest.approx(loss(best))
    assert all(loss(best * np.exp(rng.normal(0, 0.1, 3))) >= loss(best) for _ in range(20))
    assert model.chance()["accuracy"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "name,stem", [("resnet18_v1", "stride16"), ("revnet18", "small"), ("vgg11", "small")]
)
def test_every_family_has_a_map_to_colour(name, stem, source):
    model = build(backbones.build(name, 1 / 16, stem), image_size=32, resize=36)
    history = model.fit(model.dataset(source, 4, steps=2), steps_per_epoch=2, verbose=0).history
    places = model({"image": tf.zeros([1, 32, 32, 3])}).shape
    assert np.isfinite(history["loss"][0]) and places[1] > 1 and places[-1] == 261
    assert bool(model.head_norm) == (name == "revnet18")


def test_pictures(source):
    model = build()
    batch = next(iter(model.evaluation_dataset(source, 4)))
    shown = model.pictures(batch).numpy().reshape(4, 3, 16, 16, 3)
    np.testing.assert_allclose(shown[:, 0], batch["image"].numpy() / 255, atol=1e-6)
    truth, gray, colored = (color.rgb2lab(shown[:, i]) for i in range(3))
    assert np.abs(gray[..., 1:]).max() < 0.1
    np.testing.assert_allclose(gray[..., 0], truth[..., 0], atol=0.1)
    assert colored[..., 1:].std() > 0


def test_bins_that_nobody_counted_are_told(tmp_path, caplog):
    """Without a prior no color is rare."""
    path = str(tmp_path / "points.npy")
    np.save(path, np.array([[0.0, 0], [50, 50]]))
    for rebalance in (0.5, 1.0):
        caplog.clear()
        settings = {"bins": path, "rebalance": rebalance}
        assert Colorization.from_data(settings, None, None) == {}
        assert ("has no prior" in caplog.text) == (rebalance < 1)


def test_bins_are_measured_once_and_kept(photos, tmp_path, tfssl_command):
    """A run counts its colors, shows pictures, resumes and is exported with the same bins, and
    from another place too."""
    flags = (
        "--task=colorization", f"--dataset=folder:{photos}", "--train_split=train[:80%]", "--val_split=train[80%:]", "--batch_size=8",
        "--backbone=vit_tiny", "--width_multiplier=0.0625", "--depth=1", "--patch=4", "--image_size=16", "--resize=18",
        "--checkpoint_steps=4", "--warmup_epochs=0", "--log_steps=4",
    )  # fmt: skip
    for steps in (4, 8):
        done = tfssl_command("train", *flags, f"--train_steps={steps}", f"--workdir={tmp_path}/run")
        assert done.returncode == 0, done.stderr
        saved = (tmp_path / "run" / "ab_bins.npz").stat().st_mtime_ns
    assert (
        "resuming at step 4 of 8" in done.stdout
        and "--bins=data" in (tmp_path / "run" / "flags.flags").read_text()
    )
    assert (tmp_path / "run" / "ab_bins.npz").stat().st_mtime_ns == saved
    tags = set()
    for path in (tmp_path / "run" / "validation").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert "pictures" in tags
    (tmp_path / "run").rename(tmp_path / "moved")
    done = tfssl_command("export", f"--workdir={tmp_path}/moved")
    assert done.returncode == 0, done.stderr
    module = tf.saved_model.load(str(tmp_path / "moved" / "module" / "8"))
    assert module(tf.zeros([2, 20, 20, 3])).shape[0] == 2


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"resize": 10}, "resize=10 must be at least image_size=16"),
        ({"rebalance": 2.0}, "rebalance=2.0 is a share"),
        ({"nearest": 0}, "nearest=0: there are 261 bins"),
        ({"bins": "/no/bins.npz"}, "no file of colour bins '/no/bins.npz'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)


def test_a_backbone_without_a_map():
    flat = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(4, 3), tf.keras.layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(UserError, match="colorization needs a backbone that gives a map"):
        build(flat)

"""Exemplar-CNN: one patch of an image for ever, the vector of a transformation, classes by
index."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.data.ops import patches
from tfssl.errors import UserError

NO_CHANGE = {
    **{f"max_{name}": 0.0 for name in ("translation", "rotation", "offset", "hue")},
    **{f"max_{name}": 1.0 for name in ("scale", "contrast", "power", "factor")},
}


def build(**settings):
    network = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv"),
            tf.keras.layers.GlobalAveragePooling2D(name="pool"),
        ]
    )
    settings = {"num_images": 48, "image_size": 12, "scaled_size": 24, **settings}
    return pretext.build("exemplar_cnn", backbones.build(network), **settings)


def picture(height=30, width=36):
    return np.random.default_rng(0).integers(0, 256, [height, width, 3], np.uint8)


def seed(number, run=7):
    return tf.constant([run, number], tf.int64)


def test_a_class_is_one_patch_for_ever():
    """Whatever the run, the example, and the file that the pixels come from."""
    model = build(**NO_CHANGE)
    image, other = (
        picture(24, 31),
        picture(24, 31)[:, ::-1],
    )  # of the scaled size: nothing is resized
    patch = model.example({"image": image}, None)["image"]
    places = [
        (y, x)
        for y, x in np.ndindex(13, 20)
        if np.array_equal(image[y : y + 12, x : x + 12], patch)
    ]
    assert len(places) == 1
    for at in (seed(0), seed(5), seed(5, run=8)):
        np.testing.assert_array_equal(model.example({"image": image}, at)["image"], patch)
    np.testing.assert_array_equal(
        model.example({"image": tf.io.encode_png(image)}, seed(3))["image"], patch
    )
    assert np.any(
        model.example({"image": other}, None)["image"][:, ::-1] != patch
    )  # another image has a draw of its own


def test_patches_of_many_images_lie_where_the_gradients_are():
    """Images with noise on the right, none on the left: most patches lie wholly in the noise."""
    found, model = [], build(**NO_CHANGE)
    for i in range(100):
        image = np.full([24, 48, 3], 90, np.uint8)
        image[:, 24:] += np.random.default_rng(i).integers(0, 100, [24, 24, 3]).astype(np.uint8)
        patch = model.example({"image": image}, None)["image"].numpy()
        found.append((patch[:, :] != 90).any((0, 2)).sum())
    found = np.array(found)
    # Of 37 places in x, 13 see all of the noise, 12 a part that falls from 11/12 to 0; the step at
    # its edge weighs little.
    share = 13 / (13 + sum(range(12)) / 12)
    assert abs(np.mean(found == 12) - share) < 3.2 * np.sqrt(share * (1 - share) / 100) and np.all(
        found > 0
    )


def test_the_whole_image():
    image = picture(12, 12)
    model = build(scaled_size=12)
    np.testing.assert_array_equal(model.example({"image": image}, None)["image"], image)
    assert model.evaluation_size == (12, 12)


def test_no_change_is_a_range_too(source):
    model = build(**NO_CHANGE)
    batch = model.to_float(next(iter(model.dataset(source, 4, seed=1))))
    np.testing.assert_allclose(model.augment(batch, None)["image"], batch["image"], atol=1e-5)


def test_ranges_of_the_movement(monkeypatch):
    """Uniform, of the scale in its logarithm, from one end to the other."""
    calls = []

    def watch(image, corner, size, shift, scale, angle):
        calls.append([*shift.numpy(), np.log(scale), angle])
        return tf.zeros([size, size, 3], tf.uint8)

    monkeypatch.setattr(patches, "affine_patch", watch)
    model = build()
    for number in range(300):
        model.example({"image": picture(24, 24)}, seed(number))
    ends = np.array([0.2, 0.2, np.log(1.4), 20])
    shares = np.array(calls) / ends
    assert np.abs(shares).max() <= 1 and np.all(np.abs(shares).max(0) > 0.97)
    np.testing.assert_allclose(shares.mean(0), 0, atol=3.2 / np.sqrt(3 * 300))
    np.testing.assert_allclose(shares.var(0), 1 / 3, atol=0.05)
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 3.5 / np.sqrt(300)


def colours_by_the_paper(image, numbers):
    """`numbers` in [0, 1], of what is multiplied and of powers along the logarithm."""
    contrast, power, factor = (
        end ** (2 * numbers[part] - 1) for end, part in ((2, slice(3)), (4, [3, 4]), (1.4, [5, 6]))
    )
    offset, hue = 0.1 * (2 * numbers[7:9] - 1), 0.1 * (2 * numbers[9] - 1)
    pixels = image.reshape(-1, 3)
    mean = pixels.mean(0)
    axes = np.linalg.svd(pixels - mean, full_matrices=False)[2]
    pixels = mean + sum(
        f * np.outer((pixels - mean) @ axis, axis) for f, axis in zip(contrast[::-1], axes)
    )
    out = []
    for pixel in np.clip(pixels, 0, 1):
        h, *sv = colorsys.rgb_to_hsv(*pixel)
        out.append(
            colorsys.hsv_to_rgb(
                (h + hue) % 1, *np.clip(np.array(sv) ** power * factor + offset, 0, 1)
            )
        )
    return np.reshape(out, image.shape)


def test_colours_are_the_papers(source, float64):
    model = build()
    batch = model.to_float(next(iter(model.dataset(source, 6, seed=1))))
    images, numbers = batch["image"], batch["colors"]
    assert numbers.shape == (6, 10) and len(np.unique(numbers)) > 40
    extremes = np.stack([np.zeros(10), np.ones(10)])
    numbers = tf.concat([extremes, numbers[2:]], 0)
    got = model.augment({**batch, "colors": numbers}, None)
    for image, alpha, new in zip(images.numpy(), numbers.numpy(), model.preview(got).numpy()):
        np.testing.assert_allclose(new, colours_by_the_paper(image, alpha), atol=1e-7)


def test_fixed_samples_of_a_class():
    """With three, forty draws show three transformations, movement and colors together; otherwise
    all differ."""
    image = picture()
    for samples, different in ((3, 3), (0, 40)):
        model = build(samples_per_class=samples)
        drawn = [model.example({"image": image}, seed(n)).values() for n in range(40)]
        assert (
            len({patch.numpy().tobytes() + numbers.numpy().tobytes() for patch, numbers in drawn})
            == different
        )
        assert len({patch.numpy().tobytes() for patch, _ in drawn}) == different
    model = build(samples_per_class=3)
    assert np.any(
        model.example({"image": image}, seed(0, run=8))["image"]
        != model.example({"image": image}, seed(0))["image"]
    )


def test_tf_data_gives_what_the_function_gives(source):
    model = build(samples_per_class=5)
    batch = next(iter(model.dataset(source, 8, seed=3)))
    for row in range(8):
        record = next(iter(source.records(seed=3, start=row)))
        patch, numbers = model.example(source.fetch(record), seed(row, run=3)).values()
        np.testing.assert_array_equal(batch["image"][row], patch)
        np.testing.assert_array_equal(batch["colors"][row], numbers)
    passes = [next(iter(model.evaluation_dataset(source, 48)))["image"] for _ in range(2)]
    np.testing.assert_array_equal(*passes)


def test_the_loss_is_that_of_telling_the_images_apart(source, float64):
    model = build(num_classes=2)
    batch = model.to_float(next(iter(model.dataset(source, 8))))
    outputs = model(batch, training=True)
    loss, metrics = model.objective(batch, outputs)
    images = (batch["image"].numpy() - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    features = model.backbone(images)["pre_logits"].numpy()
    kernel, bias = (v.numpy() for v in model.head.variables)
    assert kernel.shape == (6, 48) and model.head.count_params() == 7 * 48
    logits = features @ kernel + bias
    own = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), batch["index"]]
    np.testing.assert_allclose(metrics["loss"], own, rtol=1e-9)
    probe = features @ model.probe.kernel.numpy() + model.probe.bias.numpy()
    of_probe = np.log(np.exp(probe).sum(1)) - probe[np.arange(8), batch["label"]]
    np.testing.assert_allclose(loss, own + of_probe, rtol=1e-9)
    assert model.chance() == pytest.approx(
        {"loss": np.log(48), "accuracy": 1 / 48, "probe_accuracy": 0.5}
    )


def test_training_on_more_images_than_classes_is_refused_and_validation_is_not(source):
    model = build(num_images=10, num_classes=2)
    model.compile(tf.keras.optimizers.SGD(0.1))
    with pytest.raises(UserError, match="num_images=10 does not hold the 48 images"):
        model.dataset(source, 8)
    measured = model.evaluate(model.evaluation_dataset(source, 16), verbose=0, return_dict=True)
    assert np.isfinite(measured["loss"]) and 0 <= measured["probe_accuracy"] <= 1


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"num_images": 0}, "num_images is missing"),
        ({"scaled_size": 11}, "scaled_size=11 must be at least image_size=12"),
        ({"max_scale": 0.7}, "max_scale=0.7 must be at least 1"),
        ({"max_hue": -0.1}, "max_hue=-0.1 must be at least 0"),
        ({"samples_per_class": -1}, "samples_per_class=-1"),
        ({"normalization": "mean"}, "normalization=mean: choose one of imagenet, none"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)

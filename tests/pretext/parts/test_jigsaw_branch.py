"""The nine patches of a crop in a random order, and their head, in PIRL and InfoMin."""

import math

import numpy as np
import pytest
import tensorflow as tf
from patch_branch import OWN, first_batch, task

from tfssl import pretext
from tfssl.data.ops import image as ops
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError
from tfssl.losses import contrastive

FIRST = {"pirl": 1, "infomin": 2}  # number of the first patch among an image's views


@pytest.mark.parametrize("name", OWN)
def test_patches_are_those_of_one_crop_in_a_random_order(name):
    image = np.random.default_rng(0).integers(0, 256, [50, 44, 3], np.uint8)
    model = task(name, jigsaw_augmentation="crop")
    model.augment_on = "device"  # so that examples are crops and no more
    policy = model.policies()[-1]
    orders = []
    for number in range(60):
        seed = tf.constant([7, number], tf.int64)
        patches = model.example({"image": image}, seed)["image"][-1].numpy()
        where = {
            "area_range": (0.6, 1.0),
            "min_object_covered": policy.crop_covered,
            "method": policy.crop_method,
        }
        crop = ops.random_resized_crop(image, fork(seed, FIRST[name]), 30, **where).numpy()
        order = []
        for patch in patches:
            at = [
                at
                for at in np.ndindex(23, 23)
                if np.array_equal(crop[at[0] : at[0] + 8, at[1] : at[1] + 8], patch)
            ]
            (cell, offset) = np.divmod(at[0], 10)
            assert len(at) == 1 and np.all(offset <= 2)
            order.append(3 * cell[0] + cell[1])
        assert sorted(order) == list(range(9))
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 60
    assert all(
        len(set(place)) == 9 for place in np.transpose(orders)
    )  # anything can stand anywhere


@pytest.mark.parametrize("name", OWN)
def test_examples(name, source):
    """Sizes of the groups; the same seed, the same patches; in tf.data as by itself; evaluation is
    deterministic."""
    model = task(name)
    batch = next(iter(model.dataset(source, 4, seed=3)))
    views, patches = batch["image"]
    assert (
        views.shape == (4, FIRST[name], 16, 16, 3)
        and patches.shape == (4, 9, 8, 8, 3)
        and patches.dtype == tf.uint8
    )
    record = source.fetch(next(iter(source.records(seed=3, start=2))))["image"]
    for got, want in zip(
        model.example({"image": record}, tf.constant([3, 2], tf.int64))["image"], (views, patches)
    ):
        np.testing.assert_array_equal(got, want[2])
    for a, b in zip(
        model.example({"image": record}, None)["image"],
        model.example({"image": record}, None)["image"],
    ):
        np.testing.assert_array_equal(a, b)
    assert np.any(model.example({"image": record}, None)["image"][1] != patches[2])


def test_each_patch_has_colours_of_its_own(source):
    """PIRL's, on the device: of nine equal patches nine different ones."""
    model = task("pirl", jigsaw_augmentation="pirl")
    batch = model.to_float(next(iter(model.dataset(source, 4))))
    batch["image"] = tuple(tf.ones_like(x) * tf.constant([0.3, 0.5, 0.6]) for x in batch["image"])
    views, patches = model.augment(batch, Draws(batch))["image"]
    assert np.ptp(views.numpy(), (0, 1, 2, 3)).max() < 1e-6  # policy crop
    assert all(len({patch.tobytes() for patch in image}) == 9 for image in patches.numpy())


@pytest.mark.parametrize("name", OWN)
def test_the_embedding_of_patches_is_the_naive_one(name, source, float64):
    """Each patch through network and head, the nine side by side in the order in which they come,
    and a linear layer."""
    model = task(name)
    batch = first_batch(model, source)
    mlp = [(d.kernel.numpy(), d.bias.numpy()) for d in model.patch_projection.dense]
    ((kernel, bias),) = [(d.kernel.numpy(), d.bias.numpy()) for d in model.jigsaw_projection.dense]
    assert [k.shape for k, _ in mlp] == {"pirl": [(5, 4)], "infomin": [(5, 5), (5, 4)]}[
        name
    ] and kernel.shape == (
        36,
        4,
    )

    def naive(patches):
        row = []
        for patch in patches:
            x = model.backbone((patch[None] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])[
                "pre_logits"
            ].numpy()[0]
            for i, (k, b) in enumerate(mlp):
                x = (np.maximum(x, 0) if i else x) @ k + b
            row.append(x)
        return np.concatenate(row) @ kernel + bias

    want = [naive(patches) for patches in batch["image"][1].numpy()]
    np.testing.assert_allclose(model(batch, training=True)["jigsaw"], want, rtol=1e-9)
    turned = {**batch, "image": (batch["image"][0], batch["image"][1][:, ::-1])}
    want = [naive(patches[::-1]) for patches in batch["image"][1].numpy()]
    np.testing.assert_allclose(model(turned, training=True)["jigsaw"], want, rtol=1e-9)


@pytest.mark.parametrize(
    "name,expected",
    [
        # Linear: an image's and a patch's 2048 -> 128; two layers: 2048 -> 2048 -> 128; and 9 * 128
        # -> 128.
        ("pirl", 2 * (2048 * 128 + 128) + 1152 * 128 + 128),
        ("infomin", 2 * (2048 * 2048 + 2048 + 2048 * 128 + 128) + 1152 * 128 + 128),
    ],
)
def test_heads_have_the_published_size(name, expected):
    model = task(name, width=2048, projection_size=128)
    network = 27 * 2048 + 2048
    assert sum(math.prod(v.shape) for v in model.trainable_variables) - network == expected


def test_defaults_are_the_published():
    plain = tf.keras.Sequential([tf.keras.layers.GlobalAveragePooling2D()])
    model = pretext.build("pirl", plain, num_images=4)
    assert (model.temperature, model.negatives, model.form, model.bank.momentum) == (
        0.07,
        32000,
        "nce",
        0.5,
    )
    assert (model.jigsaw_size, model.jigsaw_patch_size, model.jigsaw_area, model.jigsaw_weight) == (
        255,
        64,
        0.6,
        0.5,
    )
    assert {policy.hue for policy in model.policies()} == {0.2} and model.policies()[
        0
    ].crop_area == (0.08, 1.0)
    model = pretext.build("infomin", plain)
    assert (model.temperature, model.queue.size, model.key_momentum) == (0.15, 65536, 0.999)
    assert [policy.randaugment for policy in model.policies()] == [2] * 2 + [0] * 9
    assert [policy.jitter for policy in model.policies()] == [0.8] * 2 + [0.0] * 9


def test_chance():
    """The loss at equal scores, of as many entries as there are."""
    zeros = tf.zeros([1, 6])
    at_equal_scores = float(contrastive.nce(zeros[:, 0], zeros, 6 / 48, 48.0).loss[0])
    levels = task("pirl").chance()
    assert levels["loss"] == pytest.approx(at_equal_scores, rel=1e-6)
    assert levels["accuracy"] == levels["jigsaw_accuracy"] == 1 / 7
    assert task("pirl", form="cross_entropy").chance()["loss"] == math.log(7)
    assert (
        task("infomin").chance()["loss"] == math.log(17)
        and task("infomin").chance()["jigsaw_accuracy"] == 1 / 17
    )


def test_validation_on_more_images_than_the_bank_holds(source):
    model = task("pirl", num_images=10, num_classes=2)
    measured = model.evaluate(model.evaluation_dataset(source, 16), verbose=0, return_dict=True)
    assert np.isfinite(measured["loss"]) and 0 <= measured["probe_accuracy"] <= 1
    with pytest.raises(UserError, match="num_images=10 does not hold the 48 images"):
        model.dataset(source, 8)


@pytest.mark.parametrize(
    "settings,message",
    [
        (
            {"jigsaw_patch_size": 11},
            "jigsaw_patch_size=11 does not fit: jigsaw_size=30 in 3 cells a side leaves 10",
        ),
        ({"jigsaw_area": 0.0}, "jigsaw_area=0.0"),
        ({"jigsaw_weight": 1.5}, "jigsaw_weight=1.5"),
        ({"jigsaw_augmentation": "none"}, "no augmentation policy 'none'"),
    ],
)
@pytest.mark.parametrize("name", OWN)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        task(name, **settings)

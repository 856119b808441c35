"""PIRL: its loss by hand with a given bank."""

import numpy as np
import pytest
import tensorflow as tf
from patch_branch import first_batch, log_softmax, task, unit

from tfssl.errors import UserError


@pytest.mark.parametrize("form,negatives", [("nce", 6), ("cross_entropy", 6), ("cross_entropy", 0)])
def test_pirls_loss(form, negatives, source, float64):
    model = task("pirl", form=form, negatives=negatives, jigsaw_weight=0.3, temperature=0.2)
    batch = first_batch(model, source)
    outputs = {name: x.numpy() for name, x in model(batch, training=True).items()}
    bank, index = model.bank.entries.numpy(), batch["index"].numpy()
    loss, metrics = model.contrast(batch, {name: tf.constant(x) for name, x in outputs.items()})

    def by_hand(z, constant=None):
        scores = unit(z) @ bank.T / 0.2  # Nx48
        if not negatives:
            return -log_softmax(scores)[np.arange(6), index], None
        drawn = np.take_along_axis(scores, batch["negatives"].numpy(), 1)
        if form == "cross_entropy":
            return -log_softmax(np.concatenate([scores[np.arange(6), index][:, None], drawn], 1))[
                :, 0
            ], None
        constant = constant or np.exp(drawn).mean() * 48  # of the first branch, kept
        noise = 6 / 48
        of_positive, of_negative = (
            np.exp(s) / constant for s in (scores[np.arange(6), index], drawn)
        )
        found = -np.log(of_positive / (of_positive + noise)) - np.log(
            noise / (of_negative + noise)
        ).sum(1)
        return found, constant

    image, constant = by_hand(outputs["z"][:, 0])
    jigsaw, _ = by_hand(outputs["jigsaw"], constant)
    np.testing.assert_allclose(loss, 0.7 * image + 0.3 * jigsaw, rtol=1e-9)
    assert set(metrics) == {"accuracy", "jigsaw_accuracy"}


def test_pirls_bank_holds_the_images_own_embeddings(source, float64):
    model = task("pirl")
    batch = first_batch(model, source)
    before, outputs = model.bank.entries.numpy(), model(batch, training=True)
    model.after_step(batch, outputs)
    index = batch["index"].numpy()
    want = unit(0.5 * before[index] + 0.5 * unit(outputs["z"][:, 0].numpy()))
    np.testing.assert_allclose(model.bank.entries.numpy()[index], want, rtol=1e-9)
    np.testing.assert_array_equal(
        np.delete(model.bank.entries, index, 0), np.delete(before, index, 0)
    )


def test_pirls_photometric_step():
    """The published code's two thirds of images and patches, each with draws of its own, on the
    host alone."""
    policy = {"augmentation": "pirl_photometric", "jigsaw_augmentation": "pirl_photometric"}
    model = task("pirl", augment_on="host", **policy)
    assert {policy.photometric for policy in model.policies()} == {0.66} and len(
        model.policies()
    ) == 10
    image = np.random.default_rng(0).integers(60, 190, [40, 40, 3], np.uint8)
    image, patches = model.example({"image": tf.constant(image)}, tf.constant([2, 1], tf.int64))[
        "image"
    ]
    ranges = [(x.min(), x.max()) for x in (*image.numpy(), *patches.numpy())]
    assert 2 <= sum(r == (0, 255) for r in ranges) < 10  # stretched by autocontrast
    with pytest.raises(UserError, match="PIRL's photometric step .* augment_on=host"):
        task("pirl", **policy)

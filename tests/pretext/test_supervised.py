"""Supervised classification: top-1 and top-5 against NumPy, and a clear line without labels."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.errors import UserError


def build(**settings):
    return pretext.build(
        "supervised", backbones.build("resnet18_v2", 0.125, "small"), image_size=16, **settings
    )


def test_loss_and_accuracies_by_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=[40, 9]).astype(np.float32), rng.integers(0, 9, 40)
    losses, measured = build(num_classes=9).objective(
        {"label": tf.constant(labels)}, tf.constant(logits)
    )
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(losses, -log_probabilities[np.arange(40), labels], rtol=1e-5)
    rank = (logits > logits[np.arange(40), labels][:, None]).sum(1)
    np.testing.assert_array_equal(measured["accuracy"], rank == 0)
    np.testing.assert_array_equal(measured["top5_accuracy"], rank < 5)


def test_labels_are_required():
    with pytest.raises(UserError, match="needs labels"):
        build()


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="num_clases"):
        build(num_clases=3)
    with pytest.raises(UserError, match="choose one of rotation, .*supervised"):
        pretext.build("rotatoin", None)

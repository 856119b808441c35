"""SimCLR: the published loss, and its memory."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import SMALL, task, tiny, train

from tfssl import pretext
from tfssl.errors import UserError


def test_simclr_with_a_memory(source):
    """Both views of each image enter the queue as the momentum encoder embeds them, and count as
    candidates from the next step on."""
    model = task("simclr", queue_size=32, key_momentum=0.5, projection_size=4)
    model.batch_size = 8
    assert model.chance()["accuracy"] == 1 / (15 + 32)
    start, kernel = model.queue.rows.numpy(), model.keys.twins[1].trainable_variables[0].numpy()
    train(model, source, 1)
    rows, followed = model.queue.rows.numpy(), model.projection.trainable_variables[0].numpy()
    np.testing.assert_array_equal(rows[16:], start[:16])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        model.keys.twins[1].trainable_variables[0], (kernel + followed) / 2, rtol=1e-5, atol=1e-7
    )
    small = pretext.build("simclr", tiny(), queue_size=15, **SMALL)
    small.batch_size = 8
    with pytest.raises(UserError, match="queue_size=15 does not hold the 16 embeddings"):
        small.prepare()


def test_simclrs_loss_as_published_code_has_it():
    """Twice the paper's: the sum of the means of first and second views."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 4))
    z = np.stack([first, second], 1)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    flat = z.transpose(1, 0, 2).reshape(16, 4)
    logits = np.where(np.eye(16, dtype=bool), -np.inf, flat @ flat.T / 0.1)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(16), (np.arange(16) + 8) % 16]
    for factor, want in ((1.0, each.mean()), (2.0, each[:8].mean() + each[8:].mean())):
        model = pretext.build("simclr", tiny(), loss_factor=factor, **SMALL)
        model.batch_size = 8
        loss, _ = model.contrast({"weight": tf.ones([8])}, {"z": tf.constant(z)})
        np.testing.assert_allclose(tf.reduce_mean(loss), want, rtol=1e-9)
        assert model.chance()["loss"] == pytest.approx(factor * np.log(15))

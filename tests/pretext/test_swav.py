"""SwAV: its prototypes, and its head over crops of all sizes."""

import numpy as np
import tensorflow as tf
from joint_embedding import task, train


def test_swavs_prototypes_are_directions_that_wait(source):
    model = task(
        "swav",
        projection_hidden=8,
        projection_size=4,
        prototypes=5,
        small_crops=0,
        freeze_prototypes_steps=2,
    )
    before = model.prototypes.numpy()
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, rtol=1e-6)
    train(model, source, 2)
    np.testing.assert_allclose(model.prototypes, before, atol=1e-6)
    train(model, source, 2)
    assert np.abs(model.prototypes.numpy() - before).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(model.prototypes, axis=1), 1, rtol=1e-6)


def test_swavs_head_normalizes_crops_of_all_sizes_together(source, float64):
    """As the published code's forward_head: scores by hand, with statistics over the joined views
    of both sizes."""
    settings = {"small_crops": 3, "small_size": 8, "freeze_prototypes_steps": 0}
    model = task("swav", projection_hidden=8, projection_size=4, prototypes=5, **settings)
    batch = model.to_float(next(iter(model.dataset(source, 6))))
    scores = model(batch, training=True)["scores"].numpy()  # NxVxK
    features = [
        model.encode(tf.reshape(x, [-1, *x.shape[2:]]))["pre_logits"]
        .numpy()
        .reshape([6, x.shape[1], -1])
        for x in batch["image"]
    ]
    x = np.concatenate(features, 1)  # NxVxD
    assert x.shape[1] == 5
    hidden, last = model.projection.dense
    h = x @ hidden.kernel.numpy() + hidden.bias.numpy()
    h = np.maximum((h - h.mean((0, 1))) / np.sqrt(h.var((0, 1)) + 1e-5), 0)
    z = h @ last.kernel.numpy() + last.bias.numpy()
    want = z / np.linalg.norm(z, axis=-1, keepdims=True) @ model.prototypes.numpy().T
    np.testing.assert_allclose(scores, want, rtol=1e-8, atol=1e-10)

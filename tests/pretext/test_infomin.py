"""InfoMin: its loss by hand with a given queue."""

import numpy as np
import pytest
import tensorflow as tf
from patch_branch import first_batch, log_softmax, task, unit

from tfssl.errors import UserError


@pytest.mark.parametrize("symmetric", [False, True])
def test_infomins_loss(symmetric, source, float64):
    model = task("infomin", jigsaw_weight=0.3, symmetric=symmetric)
    batch = first_batch(model, source)
    outputs = {name: x.numpy() for name, x in model(batch, training=True).items()}
    queue, keys = model.queue.rows.numpy(), unit(outputs["keys"])[batch["place"]]
    losses = {"z": [], "jigsaw": []}
    for name, found in losses.items():
        for p in range(1 + symmetric):
            query = unit(outputs["jigsaw"] if name == "jigsaw" else outputs["z"][:, p])
            own = (query * keys[:, p]).sum(1, keepdims=True)
            found.append(-log_softmax(np.concatenate([own, query @ queue.T], 1) / 0.15)[:, 0])
    loss, metrics = model.contrast(batch, {name: tf.constant(x) for name, x in outputs.items()})
    want = 0.7 * np.mean(losses["z"], 0) + 0.3 * np.mean(losses["jigsaw"], 0)
    np.testing.assert_allclose(loss, want, rtol=1e-9)
    assert set(metrics) == {"accuracy", "jigsaw_accuracy"}


def test_randaugment_is_for_the_host(source):
    model = task("infomin", augmentation="infomin")
    history = model.fit(model.dataset(source, 8, steps=1), steps_per_epoch=1, verbose=0).history
    assert np.isfinite(history["loss"][0])
    with pytest.raises(UserError, match="augment_on=host"):
        task("infomin", augmentation="infomin", augment_on="device")

"""Keras's own networks by name: published parameter counts, the stages' resolutions, refusals."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.errors import UserError


def test_mobilenet_is_keras_s():
    """2,257,984 parameters without the classifier (Keras's table: 2.3 million); its stages halve
    the image; the endpoints of one set of weights are Keras's own output; a copy can be made."""
    network = backbones.build("keras:MobileNetV2")
    images = np.random.default_rng(0).normal(size=[2, 64, 64, 3]).astype(np.float32)
    endpoints = network(images, training=False)
    assert sum(w.size for w in network.get_weights()) == 2_257_984
    sides = {name: value.shape[1] for name, value in endpoints.items() if value.shape.rank == 4}
    assert sides == {"stage1": 32, "stage2": 16, "stage3": 8, "stage4": 4, "stage5": 2}
    assert network.endpoint_names == (*sides, "pre_logits")
    whole = tf.keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg"
    )
    whole.set_weights(network.get_weights())
    np.testing.assert_allclose(endpoints["pre_logits"], whole(images), rtol=1e-4, atol=1e-5)
    assert network.config() == {"name": "keras:MobileNetV2", "application": "MobileNetV2"}
    twin = network.twin()
    twin(images)
    twin.set_weights(network.get_weights())
    np.testing.assert_array_equal(twin(images, training=False)["stage3"], endpoints["stage3"])
    rates = [layer.rate for layer in network.submodules if hasattr(layer, "rate")]
    assert not any(rates)
    task = pretext.build("rotation", network, image_size=32)
    task.prepare()
    assert len(task.trainable_variables) == len(network.trainable_variables) + 2


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("keras:MobileNet9", "tf.keras.applications has MobileNet, MobileNetV2, "),
        ("keras:EfficientNetB0", "scales its input itself"),
    ],
)
def test_what_is_refused(name, complaint):
    with pytest.raises(UserError, match=complaint):
        backbones.build(name)
    with pytest.raises(UserError, match="norm_policy|batch statistics by itself"):
        backbones.build("keras:MobileNetV2", bn_sync=True)
    with pytest.raises(UserError, match="stem"):
        backbones.build("keras:MobileNetV2", stem="small")

"""The encoder in the folder `module` beside this file, as a model of Keras 3.

    from encoder import encoder

    features = encoder(trainable=True)          # images [N, H, W, C] in [0, 1] -> [N, D]
    model = keras.Sequential([features, keras.layers.Dense(10)])

Needs keras 3 and TensorFlow, its backend, alone. `tfssl-export --layout=keras3` has written it.
"""

import json
import os
from typing import Any

import keras

MODULE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "module")


def encoder(trainable: bool = False, output: str = "") -> Any:
    """A `keras.Model` of the module.

    Args:
      trainable: whether `fit` changes it; without, its batch normalizations keep their statistics
        in training too.
      output: one of the signature's outputs; "": its first, pre_logits of an encoder.
    """
    layer = keras.layers.TFSMLayer(
        MODULE,
        call_endpoint="serving_default",
        call_training_endpoint="training" if trainable else None,
        trainable=trainable,
    )
    with open(os.path.join(MODULE, "assets", "tfssl.json"), encoding="utf-8") as file:
        channels = json.load(file).get("channels", 3)
    images = keras.Input([None, None, channels])
    outputs = layer(images)
    return keras.Model(images, outputs[output or next(iter(outputs))], name="encoder")

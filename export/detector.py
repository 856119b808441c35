"""Publishing a detector: image in, boxes out, by TensorFlow alone.

    module = tf.saved_model.load("detectors/cells")
    found = module(images)  # uint8 [N, H, W, 3], or float32 in [0, 1], of any size
    found["boxes"]          # float32 [N, 100, 4], (top, left, bottom, right) in their pixels
    found["scores"], found["classes"], found["names"], found["count"]

The resizing that the network was trained with, normalization, network, decoding and non-maximum
suppression are inside. The signature `serving_default` takes uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfssl.classifiers import detections
from tfssl.data.listing.text import to_lines
from tfssl.downstream.detector import Detector
from tfssl.export.folder import Made, Path, publish
from tfssl.export.module import Outputs, of_encoder, versions


def save_detector(
    detector: Detector,
    path: Path,
    training_flags: Mapping[str, Any] | None = None,
    tarball: bool = False,
) -> str:
    """Publish a detector as a SavedModel with labels.txt, a class a line.

    It also is what `Data.publish` may be: `downstream.run("fcos", ..., publish=lambda detector:
    save_detector(detector, "detectors/cells"))`.

    Args:
      path: the folder to write, which must not exist; published versions never change.
      training_flags: {flag: value}, for the record.
      tarball: also write `path.tar.gz`.

    Returns:
      `path`.

    Raises:
      UserError: `path` exists.
    """
    encoder, side = detector.module, max(detector.size)
    facts = {
        "format": 1,
        "kind": detections.KIND,
        "task": "detection",
        **of_encoder(encoder),
        "endpoint": detector.endpoint,
        "input": "uint8 RGB, or float32 in [0, 1], [batch, height, width, 3], of any size",
        "channels": 3,
        "value_range": "",
        "size": list(detector.size),
        "image_size": side,
        "resize": side,
        "crop": side,
        "num_classes": len(detector.class_names),
        "class_names": list(detector.class_names),
        "head": dict(detector.settings),
        "training_flags": dict(training_flags or {}),
        "versions": versions(),
    }
    labels = {"labels.txt": to_lines(detector.class_names)}
    return publish(path, lambda: _made(detector), facts, labels, tarball)


def _made(detector: Detector) -> Made:
    """See `folder.publish`."""

    @tf.function(autograph=False)
    def detect(images: tf.Tensor) -> Outputs:
        return detector(images)

    for dtype in (tf.float32, tf.uint8):
        images = tf.TensorSpec([None, None, None, 3], dtype, name="images")
        signature = detect.get_concrete_function(images)
    module = tf.train.Checkpoint()  # a plain trackable: its attributes are what the loader sees
    module.__call__ = detect
    module.variables = list(detector.variables)
    module.trainable_variables = list(detector.trainable_variables)
    module.regularization_losses = []
    # Of a module that is not ours nobody knows what else its functions need.
    module.parts = [] if detector.module.facts else [detector.module.model]
    outputs = sorted(signature.structured_outputs)
    return module, {"serving_default": signature}, {"endpoints": outputs, "features": {}}

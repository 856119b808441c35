"""A detector whose answers are known: "red", the box of all red pixels, with score 0.9; and "all",
the box of the fitted image, with 0.3."""

import functools

import tensorflow as tf
import tiny_modules

from tfssl.downstream.detector import Detector
from tfssl.downstream.protocols.detection import fitted
from tfssl.hub import load as modules

SIZE = (48, 64)
NAMES = ["all", "=red"]


def predict(images):
    is_red = (images[..., 0] > 127) & (images[..., 1] < 128)  # Nxhxw
    ends = []
    for axis in (2, 1):
        hit = tf.cast(tf.reduce_any(is_red, axis), tf.int32)
        ends.append((tf.argmax(hit, 1), hit.shape[1] - tf.argmax(hit[:, ::-1], 1)))
    (top, bottom), (left, right) = ends
    red = tf.cast(tf.stack([top, left, bottom, right], 1), tf.float32)
    some = tf.reduce_any(is_red, [1, 2])[:, None]
    whole = tf.broadcast_to(tf.constant([0.0, 0.0, *map(float, SIZE)]), tf.shape(red))
    none = tf.zeros_like(whole)
    first = tf.where(some, red, whole)
    pair = lambda a, b: tf.where(some, [a, b], [b, 0.0])  # noqa: E731
    return {
        "boxes": tf.stack([first, tf.where(some, whole, none)], 1),
        "scores": pair(0.9, 0.3),
        "classes": pair(1.0, 0.0),
        "count": tf.where(some[:, 0], 2, 1),
    }


def detector(folder):
    """The `Detector`; in `folder`, a path, is the module that it says it is made of."""
    folder.mkdir(exist_ok=True)
    module = modules.load(tiny_modules.save_ours(folder))
    fit = functools.partial(fitted, size=SIZE)
    return Detector(fit, predict, SIZE, NAMES, module, "stem+block", [], [])

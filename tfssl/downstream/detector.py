"""A trained detector as one function of images, which `tfssl.export.save_detector` publishes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfssl.hub.load import Module

# uint8 [h, w, 3] of any size -> (uint8 [*size, 3]; the image's sides within it, float32 [2]; pixels
# of the image for each of these, float32 [2])
Fit = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Detector:
    """Images of any size in, boxes in their pixels out.

    Attributes:
      fit: scales an image to fit `size`, and pads it.
      predict: graph function of fitted images, uint8 [N, *size, 3] -> {"boxes": float32 [N, M, 4]
        (top, left, bottom, right), in pixels, "scores": [N, M], descending, "classes": [N, M],
        "count": [N], how many of the M there are}.
      size: (height, width) in pixels.
      class_names: of K classes.
      module: whose maps it reads.
      endpoint: their names, joined by "+".
      variables, trainable_variables: all that it computes with, of the module too.
      settings: {name: value} of the protocol, for the record.
    """

    fit: Fit
    predict: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    size: tuple[int, int]
    class_names: Sequence[str]
    module: Module
    endpoint: str
    variables: Sequence[tf.Variable]
    trainable_variables: Sequence[tf.Variable]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Graph function.

        Args:
          images: RGB, [N, H, W, 3], all of one size, any: uint8; or floats in [0, 1], which are
            rounded to as many levels.

        Returns:
          {"boxes": float32 [N, M, 4], (top, left, bottom, right) in pixels of the images, clipped
          to them; "scores": float32 [N, M], descending; "classes": int32 [N, M]; "names": string
          [N, M], of the classes; "count": int32 [N]}; rows from `count` on are 0 and "".
        """
        if images.dtype.is_floating:
            images = tf.cast(tf.round(255 * tf.clip_by_value(images, 0.0, 1.0)), tf.uint8)
        kinds = (
            tf.TensorSpec([*self.size, 3], tf.uint8),
            tf.TensorSpec([2], tf.float32),
            tf.TensorSpec([2], tf.float32),
        )
        pixels, inner, scale = tf.map_fn(self.fit, images, fn_output_signature=kinds)
        found = self.predict(pixels)
        inner, scale = (tf.tile(x, [1, 2])[:, None] for x in (inner, scale))  # Nx1x4
        classes = tf.cast(found["classes"], tf.int32)
        real = tf.sequence_mask(found["count"], classes.shape[1])
        return {
            "boxes": tf.minimum(found["boxes"], inner) * scale,
            "scores": found["scores"],
            "classes": classes,
            "names": tf.where(real, tf.gather(tf.constant(list(self.class_names)), classes), ""),
            "count": tf.cast(found["count"], tf.int32),
        }

"""The images behind features: what a protocol reads that draws a new crop of each image in every epoch."""

import dataclasses
import functools
import math
from typing import Any

import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.ops import image
from tfssl.data.ops.draws import fork
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import Subset
from tfssl.downstream.features import pooling

PIXELS = "pixels"
CROPS = {  # by name, a new crop uint8 [size, size, 3] of an encoded image: (image, seed, size, resize)
    "random": lambda encoded, seed, size, resize: image.random_crop(image.resize_small(encoded, resize), seed, size),
    "random_flip": lambda encoded, seed, size, resize: image.random_flip(
        CROPS["random"](encoded, seed, size, resize), fork(seed, 0)
    ),
    "resized_flip": lambda encoded, seed, size, resize: image.random_flip(
        image.random_resized_crop(encoded, seed, size, (0.08, 1.0), min_object_covered=0.0), fork(seed, 0)
    ),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images, and how they become features.

    Attributes:
      module: a loaded `modules.Module`.
      source: a `tfssl.data.Source`.
      size, resize: side of the crop, and of the shorter side before it, in pixels.
      pool, target: how, and above which number of values, maps are pooled: see `pooling.pool`.
      dtype: "float32" or "float16", of the features.
      batch_size: images at a time through the module.
    """

    module: Any
    source: Source
    size: int
    resize: int
    pool: str = "max"
    target: int = 9000
    dtype: str = "float32"
    batch_size: int = 64

    def channels(self, endpoint):
        """C of an endpoint's maps, or of its vectors; pooling does not change it."""
        return 3 if endpoint == PIXELS else self.module.shapes(self.size)[endpoint][-1]

    def random_crops(self, index, batch_size, seed, crops="random", start_step=0):
        """Endless batches: each epoch takes the images in another order and a random crop of each.

        Args:
          index: int [n], places of images in the source's split.
          batch_size: images per batch, B.
          seed: of the order and of the crops.
          crops: one of CROPS: "random", a crop of the resized image (Kolesnikov et al. 2019); "random_flip", the same, mirrored
            or not; "resized_flip", a crop of 8 to 100 % of the image's area, resized, mirrored or not (VISSL).
          start_step: the first batch.

        Returns:
          a data set of {"image": uint8 [B, S, S, 3], "index": int64 [B], ...}; see `pipeline.training_batches`.
        """

        def crop(example, seed):
            return {"image": CROPS[crops](example["image"], seed, self.size, self.resize)}

        return pipeline.training_batches(Subset(self.source, index), crop, batch_size, seed, start_step)

    def encoder(self, names, batch_size):
        """The graph function uint8 [B, S, S, 3] -> {endpoint: [B, D]}, in which the module infers."""
        return encoder(self.module, tuple(names), batch_size, self.size, self.pool, self.target, self.dtype)

    def large_batch_encoder(self, names, batch_size):
        """The same for batches that are too large for the device's memory: equal parts go through one after another."""
        parts = -(-batch_size // self.batch_size)
        part = -(-batch_size // parts)
        compute = self.encoder(names, part)
        if parts == 1:
            return compute

        def encode(images):
            images = tf.pad(images, [[0, parts * part - batch_size], [0, 0], [0, 0], [0, 0]])
            images = tf.reshape(images, [parts, part, *images.shape[1:]])
            specs = tf.nest.map_structure(lambda s: tf.TensorSpec(s.shape, s.dtype), compute.structured_outputs)
            features = tf.map_fn(compute, images, fn_output_signature=specs, parallel_iterations=1)
            return {name: tf.reshape(v, [-1, v.shape[-1]])[:batch_size] for name, v in features.items()}  # BxD

        return encode


def pixels_shape(size, target):
    """The endpoint "pixels": the images that the module sees, averaged to floor(sqrt(target / 3)) pixels a side at most."""
    side = min(size, math.isqrt(target // 3))
    return side, side, 3


@functools.lru_cache(maxsize=2)  # the test split follows the training split, with the same module
def encoder(module, names, batch_size, size, pool, target, dtype):
    """The graph function uint8 [B, S, S, 3] -> {name: [B, D]}: the module's inference, pooled; or the pixels."""
    shapes = module.shapes(size)

    def compute(images):
        images = tf.cast(images, tf.float32) / 255.0
        maps = module.endpoints(images) if set(names) - {PIXELS} else {}
        features = {}
        for name in names:
            if name == PIXELS:
                side = pixels_shape(size, target)[0]
                values = images if side == size else tf.image.resize(images, [side, side], "area")
                features[name] = tf.reshape(values, [batch_size, -1])
            else:  # a loaded function does not know the shapes for these images, and pooling needs them
                features[name] = pooling.pool(tf.ensure_shape(maps[name], [batch_size, *shapes[name]]), pool, target)
        return {name: tf.cast(value, dtype) for name, value in features.items()}

    function = tf.function(
        compute, input_signature=[tf.TensorSpec([batch_size, size, size, 3], tf.uint8)], autograph=False
    )
    return function.get_concrete_function()

"""The images behind features: what a protocol reads that draws a new crop of each image in every epoch."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data import image, pipeline
from tfssl.data.source import Source
from tfssl.downstream import pooling

PIXELS = "pixels"


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

    def random_crops(self, index, batch_size, seed):
        """Endless batches: each epoch takes the images in another order and a random crop of each (2019 study: no flip).

        Args:
          index: int [n], places of images in the source's split.
          batch_size: images per batch, B.
          seed: of the order and of the crops.

        Returns:
          a data set of {"image": uint8 [B, S, S, 3], "index": int64 [B], ...}; see `pipeline.training_batches`.
        """

        def crop(encoded, seed):
            return image.random_crop(image.resize_small(encoded, self.resize), seed, self.size)

        return pipeline.training_batches(Subset(self.source, index), crop, batch_size, seed)

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


class _Marked(Source):
    """A source some of whose images, those at the places `index` of its split, are treated differently."""

    def __init__(self, source, index, count):
        super().__init__(source.spec, source.split, count, source.num_classes, source.class_names)
        self._source, self.random_access, self.places = source, source.random_access, source.places
        marked = np.zeros(source.places, bool)
        marked[index] = True
        with tf.device("CPU"):
            self._marked = tf.constant(marked)

    def name_in_graph(self, record):
        return self._source.name_in_graph(record)

    def name(self, index):
        return self._source.name(index)


class LabelledAt(_Marked):
    """A source whose images have no labels but for those at `index`."""

    def __init__(self, source, index):
        super().__init__(source, index, source.num_examples)

    def records(self, seed=None, start=0, rows=None):
        return self._source.records(seed, start, rows)

    def epoch_to_share(self, seed, epoch):
        return self._source.epoch_to_share(seed, epoch)

    def fetch(self, record):
        example = self._source.fetch(record)
        keeps = tf.gather(self._marked, example["index"])
        return {**example, "label": tf.where(keeps, example["label"], tf.constant(-1, tf.int64))}


class Subset(_Marked):
    """Those images of a source whose places in the split are `index`; in split order, or in the order of the source's epochs."""

    def __init__(self, source, index):
        super().__init__(source, index, len(index))

    def _epoch(self, seed, epoch, skip, rows):
        count = self.num_examples
        numbers = tf.data.Dataset.range(epoch * count, (epoch + 1) * count)
        mine = self._source.epoch_to_share(seed, epoch)
        if self.random_access:  # such records are numbers: a thousand at a time are sifted ten times as fast
            mine = mine.batch(1024).map(self._sifted).unbatch()
        else:
            mine = mine.filter(lambda record: tf.gather(self._marked, record["index"]))
        records = tf.data.Dataset.zip((numbers, mine)).skip(skip)
        if rows is not None:
            batch_size, low, high = rows
            records = records.filter(lambda number, _: low <= number % batch_size < high)
        return records.map(lambda number, record: {**record, "number": number})

    def _sifted(self, records):
        mine = tf.gather(self._marked, records["index"])
        return {name: tf.boolean_mask(values, mine) for name, values in records.items()}

    def fetch(self, record):
        return self._source.fetch(record)


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

"""The images behind features, for protocols that draw new crops in every epoch; and the frozen
encoder."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.ops import image
from tfssl.data.ops.draws import fork
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import Subset
from tfssl.downstream.features import forward, pooling
from tfssl.downstream.features.forward import Compute
from tfssl.hub.load import Module

PIXELS = "pixels"


def _random(encoded: tf.Tensor, seed: tf.Tensor, size: int, resize: int) -> tf.Tensor:
    return image.random_crop(image.resize_small(encoded, resize), seed, size)


def _random_flip(encoded: tf.Tensor, seed: tf.Tensor, size: int, resize: int) -> tf.Tensor:
    return image.random_flip(_random(encoded, seed, size, resize), fork(seed, 0))


def _resized_flip(encoded: tf.Tensor, seed: tf.Tensor, size: int, resize: int) -> tf.Tensor:
    crop = image.random_resized_crop(encoded, seed, size, (0.08, 1.0), min_object_covered=0.0)
    return image.random_flip(crop, fork(seed, 0))


# By name, a new crop uint8 [size, size, 3] of an encoded image: (image, seed, size, resize).
CROPS = {"random": _random, "random_flip": _random_flip, "resized_flip": _resized_flip}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Images with the preprocessing and the module that compute their features.

    Attributes:
      module: a loaded `modules.Module`.
      source: a `tfssl.data.Source`.
      size, resize: side of the crop, and of the shorter side before it, in pixels.
      pool, target: pooling of maps with more than `target` values: see `pooling.pool`.
      dtype: "float32" or "float16", of the features.
      batch_size: images per forward pass of the module.
      jit_compile: compile it with XLA.
      strategy: in whose scope the module was loaded, and whose replicas compute.
    """

    module: Module
    source: Source
    size: int
    resize: int
    pool: str = "max"
    target: int = 9000
    dtype: str = "float32"
    batch_size: int = 64
    jit_compile: bool = False
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)

    def channels(self, endpoint: str) -> int:
        """C of an endpoint's maps, or of its vectors; pooling does not change it."""
        if endpoint == PIXELS:
            return self.source.pixels.channels
        return self.module.shapes(self.size)[endpoint][-1]

    def random_crops(
        self,
        index: np.ndarray,
        batch_size: int,
        seed: int,
        crops: str = "random",
        start_step: int = 0,
        **rows: Any,
    ) -> tf.data.Dataset:
        """Endless batches: each epoch has another order, and a random crop of each image.

        Args:
          index: int [n], positions of the images in the source's split.
          batch_size: images per batch, B.
          seed: of the order and of the crops.
          crops: one of CROPS: "random", a crop of the resized image (Kolesnikov et al. 2019);
            "random_flip", the same with a random horizontal flip; "resized_flip", a random resized
            crop of 8 to 100 % of the area and a random flip (VISSL).
          start_step: the first batch.
          **rows: a part of each batch, see `pipeline.training_batches`.

        Returns:
          a data set of {"image": uint8 [B, S, S, 3], "index": int64 [B], ...}; see
          `pipeline.training_batches`.
        """

        def crop(example: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"image": CROPS[crops](example["image"], seed, self.size, self.resize)}

        return pipeline.training_batches(
            Subset(self.source, index), crop, batch_size, seed, start_step, **rows
        )

    def spec(self, batch_size: int) -> tf.TensorSpec:
        """What B images are: see `pipeline.crops_spec`."""
        return pipeline.crops_spec(self.source, batch_size, self.size)

    def step(self, names: Sequence[str], batch_size: int) -> Compute:
        """The `forward.step` images [B, S, S, C] -> {endpoint: [B, D]}, with the module in
        inference mode; B: `batch_size` of each replica."""
        return _step(
            self.strategy,
            self.module,
            tuple(names),
            self.spec(batch_size),
            self.pool,
            self.target,
            self.dtype,
            self.jit_compile,
        )

    def encoder(self, names: Sequence[str], batch_size: int) -> Compute:
        """The same graph function on one device, for B images."""
        spec = self.spec(batch_size)
        compute = encoder(self.module, tuple(names), spec, self.pool, self.target, self.dtype)
        return tf.function(compute, autograph=False).get_concrete_function(spec)

    def large_batch_encoder(self, names: Sequence[str], batch_size: int) -> Compute:
        """The same as a part of a step, for batches that exceed the device's memory, in
        micro-batches of at most `self.batch_size` images."""
        parts = -(-batch_size // self.batch_size)
        part = -(-batch_size // parts)
        compute = encoder(
            self.module, tuple(names), self.spec(part), self.pool, self.target, self.dtype
        )
        if self.jit_compile:
            compute = forward.compiled(compute)
        if parts == 1:
            return compute
        specs = {
            name: tf.TensorSpec([part, self.dims(name)], self.dtype)
            for name in dict.fromkeys(names)
        }

        def encode(images: tf.Tensor) -> dict[str, tf.Tensor]:
            images = tf.pad(images, [[0, parts * part - batch_size], [0, 0], [0, 0], [0, 0]])
            images = tf.reshape(images, [parts, part, *images.shape[1:]])
            features = tf.map_fn(compute, images, fn_output_signature=specs, parallel_iterations=1)
            # BxD
            return {
                name: tf.reshape(v, [-1, v.shape[-1]])[:batch_size] for name, v in features.items()
            }

        return encode

    def dims(self, endpoint: str) -> int:
        """D of an endpoint's features."""
        if endpoint == PIXELS:
            return math.prod(pixels_shape(self.size, self.target, self.source.pixels.channels))
        shape = self.module.shapes(self.size)[endpoint]
        return math.prod(pooling.pooled_shape(shape, self.pool, self.target))


def pixels_shape(size: int, target: int, channels: int = 3) -> tuple[int, int, int]:
    """Shape of the endpoint "pixels": the module's input, averaged to at most floor(sqrt(target /
    channels)) pixels a side."""
    side = max(1, min(size, math.isqrt(target // channels)))
    return side, side, channels


@functools.lru_cache(maxsize=2)  # the test split follows the training split, with the same module
def _step(
    strategy: tf.distribute.Strategy,
    module: Module,
    names: tuple[str, ...],
    spec: tf.TensorSpec,
    pool: str,
    target: int,
    dtype: str,
    jit_compile: bool,
) -> Compute:
    compute = encoder(module, names, spec, pool, target, dtype)
    with strategy.scope():
        return forward.step(compute, spec, jit_compile)


def encoder(
    module: Module,
    names: tuple[str, ...],
    spec: tf.TensorSpec,
    pool: str,
    target: int,
    dtype: str,
) -> Compute:
    """A function of images as `spec` says (`pipeline.crops_spec`) -> {name: [B, D]}, graph code:
    the module's inference, pooled; or the pixels."""
    batch_size, size, _, channels = spec.shape
    shapes = module.shapes(size)

    def compute(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = pipeline.as_floats(images)
        maps = module.endpoints(images) if set(names) - {PIXELS} else {}
        features = {}
        for name in names:
            if name == PIXELS:
                side = pixels_shape(size, target, channels)[0]
                values = images if side == size else _averaged(images, side)
                features[name] = tf.reshape(values, [batch_size, -1])
            else:  # pooling needs static shapes, which a loaded function does not have
                features[name] = pooling.pool(
                    tf.ensure_shape(maps[name], [batch_size, *shapes[name]]), pool, target
                )
        return {name: tf.cast(value, dtype) for name, value in features.items()}

    return compute


def _averaged(images: tf.Tensor, side: int) -> tf.Tensor:
    """Square images brought to a smaller side: each pixel is the mean of the area that it covers.
    Two matrix products, for `tf.image.resize` by area does not compile with XLA."""
    size = images.shape[1]
    edges = np.arange(side + 1) * size / side
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = tf.constant(np.maximum(overlap, 0) * side / size, images.dtype)  # side x size
    return tf.einsum("yh,nhwc,xw->nyxc", weights, images, weights)

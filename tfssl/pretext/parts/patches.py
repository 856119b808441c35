"""Patches of an image, compared in tuples: what jigsaw and relative patch location share.

Kolesnikov, Zhai and Beyer, "Revisiting Self-Supervised Visual Representation Learning", CVPR 2019
(arXiv 1901.09005), section 3.2 and the supplement, section 1. The tasks differ in the table of
tuples alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.backbones.norm import BatchNorm
from tfssl.data.ops import image as ops
from tfssl.data.ops import patches as patch_ops
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError, check_choice
from tfssl.pretext.task import (
    Batch,
    Example,
    Measured,
    Pretext,
    cross_entropy_chance,
    image_major,
    imagenet_normalized,
)

COMBINATIONS = ("avg", "max", "concat")


class Patches(Pretext):
    """One network sees every patch by itself; a head sees the patches of a tuple side by side, and
    tells which row of a table the tuple is.

    Training: the image is resized, turned gray now and then, cropped, and cut into a grid of cells
    with a patch somewhere in each.
    Evaluation: the same in the middle, in color. Every patch is standardized: mean 0, variance 1.

    The head is the main text's: two hidden layers on concatenated pre-logits; what the text leaves
    open is as in the study's code. That code itself has patch_embedding_size=1000 and
    head_layers=1, and a weight decay of 5e-4 in the head, where here all kernels share one.

    Args:
      image_size: side, in pixels, of the crop that is cut into cells.
      scaled_size: side, in pixels, of the square to which an image is resized, whatever its aspect,
        before a crop of `image_size`.
      keep_aspect: scaled_size is the shorter side, and a square of it is cut out (Goyal et al.:
        256) instead of squeezed.
      flip: flip half of the training images left to right (Goyal et al.).
      standardize: bring every patch to mean 0 and variance 1; otherwise take ImageNet's mean and
        deviation (Goyal et al.).
      grid: cells per side that the crop is cut into, with a patch in each.
      patch_size: side of a patch, in pixels. What it is smaller than its cell (image_size // grid)
        is the range of its random place.
      gray: share of the training images that become gray, all patches alike (supplement: 1/3; main
        text and code: 2/3).
      gray_per_patch: whether to be gray is drawn for each patch by itself (the study's main text).
      patch_embedding_size: outputs of a linear layer between a patch's pre-logits and the head; 0
        leaves it out.
      embedding_norm: batch normalization and a ReLU after that layer (Goyal et al.).
      head_layers: hidden layers of the head, each with batch normalization and ReLU; 0: the answer
        is linear in the tuple (Goyal et al.).
      head_units: units of each hidden layer of the head.
      head_dropout: share of the head's hidden units that is dropped in training.
      head_bn_momentum: share of the moving averages that a training step keeps, of the batch
        normalization in the head.
      combine_patches: how the published encoder makes the representation of an image out of those
        of its patches: avg, max or concat.
      evaluation_resize: shorter side, in pixels, to which images are scaled for the published
        encoder, before the central grid * patch_size are cut; 0 means image_size (supplement: 255;
        code: 224).
    """

    needs = ("color",)

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 255,
        scaled_size: int = 292,
        keep_aspect: bool = False,
        flip: bool = False,
        standardize: bool = True,
        grid: int = 3,
        patch_size: int = 64,
        gray: float = 0.3333,
        gray_per_patch: bool = False,
        patch_embedding_size: int = 0,
        embedding_norm: bool = False,
        head_layers: int = 2,
        head_units: int = 4096,
        head_dropout: float = 0.5,
        head_bn_momentum: float = 0.997,
        combine_patches: str = "avg",
        evaluation_resize: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        # images reach `normalize` as they are: half precision has no more than 256 levels
        self._autocast = False
        self.evaluation_resize = evaluation_resize or image_size
        self.scaled_size, self.grid, self.patch_size = scaled_size, grid, patch_size
        self.keep_aspect, self.flip, self.standardize = keep_aspect, flip, standardize
        self.gray, self.gray_per_patch, self.embedding_norm = gray, gray_per_patch, embedding_norm
        self.patch_embedding_size, self.head_layers, self.head_units = (
            patch_embedding_size,
            head_layers,
            head_units,
        )
        self.head_dropout = head_dropout
        self.head_bn_momentum, self.combine_patches = head_bn_momentum, combine_patches
        self._check()

    def _check(self) -> None:
        if self.grid < 2:
            raise UserError(
                f"grid={self.grid}: there is nothing to compare in less than 2 cells a side"
            )
        if not 1 <= self.patch_size <= self.image_size // self.grid:
            raise UserError(
                f"patch_size={self.patch_size} does not fit: image_size={self.image_size} in "
                f"{self.grid} cells a side leaves "
                f"{self.image_size // self.grid} pixels for each; take a smaller patch_size or a "
                "larger image_size"
            )
        if self.scaled_size < self.image_size:
            raise UserError(
                f"scaled_size={self.scaled_size} must be at least image_size={self.image_size}, "
                "which is cut out of it"
            )
        if self.evaluation_resize < self.grid * self.patch_size:
            least = self.grid * self.patch_size
            raise UserError(
                f"evaluation_resize={self.evaluation_resize} must be at least grid * patch_size = "
                f"{least}"
            )
        if self.head_layers < 0 or self.head_units < 1:
            raise UserError(
                f"head_layers={self.head_layers} must be at least 0, and "
                f"head_units={self.head_units} at least 1"
            )
        if self.embedding_norm and not self.patch_embedding_size:
            raise UserError(
                "embedding_norm needs a layer to follow: set patch_embedding_size (Goyal et al.: "
                "1000)"
            )
        if not (0 <= self.gray <= 1 and 0 <= self.head_dropout < 1):
            raise UserError(
                f"gray={self.gray} and head_dropout={self.head_dropout} are shares: 0 to 1, the "
                "latter below 1"
            )
        check_choice("combine_patches", self.combine_patches, COMBINATIONS)

    def build_head(self, table: np.ndarray) -> None:
        """The head for int [T, k]: tuples of k patches, each a number in raster order."""
        self.table = table

        def small() -> tf.keras.initializers.Initializer:
            return tf.keras.initializers.TruncatedNormal(stddev=0.005)

        # The study's code gives all layers a bias: before batch normalization it does nothing.
        size, places, floatx = self.patch_embedding_size, table.shape[1], tf.keras.backend.floatx()
        self.embedding = (
            tf.keras.layers.Dense(size, use_bias=False, name="embedding") if size else None
        )
        self.embedding_bn = self._head_norm("embedding_bn") if self.embedding_norm else None
        self.hidden = [
            TupleDense(
                self.head_units,
                1 if i > 1 else places,
                kernel_initializer=small(),
                name=f"hidden{i}",
            )
            for i in range(1, self.head_layers + 1)
        ]
        self.norms = [self._head_norm(f"{layer.name}_bn") for layer in self.hidden]
        last = {"kernel_initializer": small(), "name": "head", "dtype": floatx}
        self.head = TupleDense(len(table), 1 if self.hidden else places, use_bias=True, **last)

    def _head_norm(self, name: str) -> BatchNorm:
        return self.norm(name, momentum=self.head_bn_momentum, epsilon=1e-5)

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        image = self._scaled(example["image"], seed)
        offsets = patch_ops.grid_offsets(
            seed, self.scaled_size, self.image_size, self.grid, self.patch_size
        )
        patches = patch_ops.cut(image, offsets, self.patch_size)  # 9xSxSx3
        if seed is None:
            return {"image": patches}
        if self.gray_per_patch:
            coins = tf.random.stateless_uniform([self.grid**2, 1, 1, 1], fork(seed, 0))
            return {"image": tf.where(coins < self.gray, patch_ops.gray(patches), patches)}
        coin = tf.random.stateless_uniform([], fork(seed, 0))
        return {
            "image": tf.cond(coin < self.gray, lambda: patch_ops.gray(patches), lambda: patches)
        }

    def _scaled(self, image: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        """The square [scaled_size, scaled_size, 3] that crops are taken from."""
        if not self.keep_aspect:
            image = ops.resize(ops.shrink(image, self.scaled_size), self.scaled_size)
        elif seed is None:
            image = ops.resize_central_crop(image, self.scaled_size, self.scaled_size)
        else:
            image = ops.random_crop(
                ops.resize_small(image, self.scaled_size), fork(seed, 1), self.scaled_size
            )
        return ops.random_flip(image, fork(seed, 2)) if self.flip and seed is not None else image

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        if not (self.head_dropout and self.hidden):
            return batch
        kept = draws.keep(
            1 - self.head_dropout,
            [self.head_layers, self.questions(batch).shape[1], self.head_units],
            view=1,
        )
        return {**batch, "kept": kept}

    def questions(self, batch: Batch) -> tf.Tensor:
        """Which rows of the table are asked of each image: int32 [N, t]. All, unless a task
        chooses."""
        return tf.tile(tf.range(len(self.table))[None], [batch["image"].shape[0], 1])

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        patches = image_major(batch["image"])  # 9NxSxSx3, image-major
        x = self.endpoints(patches, training)["pre_logits"]  # 9NxD
        x = self.embedding(x) if self.embedding else x
        x = tf.nn.relu(self.embedding_bn(x, training=training)) if self.embedding_bn else x
        x = tf.reshape(x, [batch["image"].shape[0], self.grid**2, -1])  # Nx9xD
        tuples = tf.gather(self.table, self.questions(batch))  # Nxtxk
        for i, (layer, norm) in enumerate(zip(self.hidden, self.norms)):
            x = tf.nn.relu(norm(layer(x, tuples), training=training))  # NxtxU
            if training and self.head_dropout:
                x = tf.where(batch["kept"][:, i], x / (1 - self.head_dropout), tf.zeros_like(x))
        return tf.reshape(self.head(x, tuples), [-1, len(self.table)])  # NtxT

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        labels = tf.reshape(self.questions(batch), [-1])  # Nt
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return loss, {"accuracy": tf.keras.metrics.sparse_categorical_accuracy(labels, logits)}

    def chance(self) -> dict[str, float]:
        return cross_entropy_chance(len(self.table))

    def preview(self, batch: dict) -> tf.Tensor:
        return image_major(batch["image"])

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        return patch_ops.standardize(images) if self.standardize else imagenet_normalized(images)

    def encode(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Images [N, H, W, 3] in [0, 1] -> dict of endpoints: those of the grid's cells,
        combined."""
        endpoints = super().encode(patch_ops.grid_cells(images, self.grid), training)
        return {name: self._combined(x) for name, x in endpoints.items()}

    def _combined(self, x: tf.Tensor) -> tf.Tensor:
        """9NxC or 9NxhxwxC -> NxC or NxhxwxC, and 9C channels for concat (those of one channel side
        by side, as in the study's code)."""
        shape, channels = tf.unstack(tf.shape(x))[1:-1], x.shape[-1]
        x = tf.reshape(x, [-1, self.grid**2, *shape, channels])
        if self.combine_patches == "concat":
            x = tf.stack(tf.unstack(x, axis=1), axis=-1)
            return tf.reshape(x, [-1, *shape, channels * self.grid**2])
        return tf.reduce_mean(x, 1) if self.combine_patches == "avg" else tf.reduce_max(x, 1)

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.grid * self.patch_size, self.evaluation_resize

    @property
    def min_image_size(self) -> int:
        return self.grid * self.backbone.min_image_size


class TupleDense(tf.keras.layers.Dense):
    """A layer on the concatenated features of each tuple, without concatenating: [n, P, D] and int
    [n, t, k] -> [n, t, units].

    It is linear, so each patch meets the kernel of each of the k places once, and a tuple is a sum
    of k such products: P * k products of D x units for an image instead of t * k. The sums are a
    product with a matrix of zeros and ones, which every accelerator is fast at. The kernel is
    [D, k * units]. With one place it is an ordinary layer on [n, t, D], whatever the tuples are.
    """

    def __init__(self, units: int, places: int, use_bias: bool = False, **dense: Any) -> None:
        super().__init__(places * units, use_bias=False, **dense)
        self.places, self.biased = places, use_bias

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.biased:
            self.bias = self.add_weight("bias", [self.units // self.places], initializer="zeros")

    def call(self, x: tf.Tensor, tuples: tf.Tensor) -> tf.Tensor:
        products = super().call(x)
        if self.places > 1:
            n, patches, _ = x.shape
            products = tf.reshape(products, [n, patches * self.places, -1])  # nxPkxU
            chosen = tf.one_hot(tuples, patches, axis=2, dtype=products.dtype)  # nxtxPxk
            products = tf.matmul(
                tf.reshape(chosen, [n, -1, patches * self.places]), products
            )  # nxtxU
        return products + tf.cast(self.bias, products.dtype) if self.biased else products

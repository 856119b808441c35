"""Colorization: Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016 (arXiv
1603.08511), as Goyal et al. scale it (arXiv 1905.01235)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.ops import image as ops
from tfssl.data.ops import lab
from tfssl.data.ops.draws import fork
from tfssl.errors import UserError
from tfssl.pretext.parts import ab_bins
from tfssl.pretext.parts.maps import mean_pool, pixel_map
from tfssl.pretext.task import Batch, Example, Measured, Pretext

ANNEAL = 0.38  # temperature of the distribution whose mean is shown as a color (Zhang et al.)


class Colorization(Pretext):
    """The network sees the lightness of an image, and each place of its last map tells the color
    there: one of Q bins of the ab plane.

    Neither paper's code trains it in this form, so what the papers leave open is a choice of ours:
    the color of a place is the mean ab of its pixels, and lightness comes to the network as L / 50
    - 1. Images without color count for nothing in the loss.

    The published encoder takes RGB images like every other, and keeps their lightness only.

    Args:
      image_size: side, in pixels, of the crops that the network sees.
      resize: shorter side, in pixels, to which an image is scaled before the crop (Goyal et al.:
        256).
      flip: flip half of the training images left to right.
      bins: "data": those of the training images, counted when a run begins; "gamut": all 261 that
        sRGB reaches, without a prior and so without rebalancing; or a file (see
        tfssl/pretext/parts/ab_bins.py). Outside a run "data" is "gamut".
      nearest: K, bins that share in the target of a color (Goyal et al.: 10, and 2 to 313); 1 is
        hard labels.
      sigma: deviation of the Gaussian that weighs them, in units of ab (5).
      rebalance: share of the uniform distribution in what rare colors are weighed by (0.5); 1 is
        no rebalancing.
      gray: images in which neither a nor b goes beyond this count as gray, and are left out of the
        loss (5).
    """

    needs = ("color",)
    task = "colorization"

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        resize: int = 256,
        flip: bool = True,
        bins: str = "data",
        nearest: int = 10,
        sigma: float = 5.0,
        rebalance: float = 0.5,
        gray: float = 5.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        self._autocast = False  # half precision has too few levels for colors
        if resize < image_size:
            raise UserError(
                f"resize={resize} must be at least image_size={image_size}, which is cut out of it"
            )
        if not 0 <= rebalance <= 1:
            raise UserError(f"rebalance={rebalance} is a share: 0 to 1")
        self.resize, self.flip, self.rebalance, self.gray = resize, flip, rebalance, gray
        self.bins = ab_bins.of_gamut() if bins in ("data", "gamut") else ab_bins.read(bins)
        self.targets, self.shares = self.bins.table(nearest, sigma)
        self.head_norm = self.norm("head_bn") if getattr(backbone, "raw_maps", False) else None
        self.head = tf.keras.layers.Conv2D(
            len(self.bins.points), 1, name="head", dtype=tf.keras.backend.floatx()
        )

    @staticmethod
    def from_data(settings: Mapping[str, Any], source: Any, workdir: str | None) -> dict[str, Any]:
        """{"bins": file} where the settings ask for those of the data: measured once, and kept in
        the workdir. Of a file whose bins nobody counted, a line says what that costs."""
        if settings["bins"] not in ("data", "gamut") and settings["rebalance"] < 1:
            if ab_bins.read(settings["bins"]).prior is None:
                logging.warning(
                    "bins=%s has no prior, so that rare colors count as much as others, whatever "
                    "rebalance: python -m tfssl.ab_bins makes a file that has one",
                    settings["bins"],
                )
        if settings["bins"] != "data" or not workdir:
            return {}
        path, begun = (os.path.join(workdir, name) for name in ("ab_bins.npz", "checkpoints"))
        # Before there is a checkpoint nothing stands on them, and they may be of a start with other
        # data, which came to nothing.
        known = tf.io.gfile.exists(path) and tf.io.gfile.exists(begun)
        if source is not None and not known:
            tf.io.gfile.makedirs(workdir)
            ab_bins.of_images(source).save(path)
        return {"bins": path} if tf.io.gfile.exists(path) else {}

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        if seed is None:
            return {
                "image": ops.resize_central_crop(example["image"], self.image_size, self.resize)
            }
        image = ops.random_crop(
            ops.resize_small(example["image"], self.resize), seed, self.image_size
        )
        return {"image": ops.random_flip(image, fork(seed, 0)) if self.flip else image}

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """RGB in [0, 1] [N, H, W, 3] -> lightness in [-1, 1] [N, H, W, 1]."""
        return lab.from_rgb(images)[..., :1] / 50 - 1

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        endpoints = self.endpoints(batch["image"], training)
        x = pixel_map(self.backbone, endpoints, "colorization")  # NxhxwxD
        if self.head_norm:
            x = tf.nn.relu(self.head_norm(x, training=training))
        return self.head(x)  # NxhxwxQ

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        ab = lab.from_rgb(batch["image"])[..., 1:]  # NxHxWx2
        colored = tf.reduce_max(tf.abs(ab), [1, 2, 3]) > self.gray  # N
        a, b = tf.unstack(
            tf.cast(tf.round(mean_pool(ab, logits.shape[1:3])), tf.int32) - ab_bins.LOW, axis=-1
        )
        row = a * (ab_bins.HIGH - ab_bins.LOW) + b  # Nxhxw
        bins, shares = (
            tf.gather(self.targets, row),
            tf.cast(tf.gather(self.shares, row), logits.dtype),
        )  # NxhxwxK
        guesses = tf.gather(tf.nn.log_softmax(logits), bins, batch_dims=3)  # NxhxwxK
        weights = tf.cast(
            tf.gather(self.bins.weights(self.rebalance), bins[..., 0]), logits.dtype
        )  # Nxhxw
        loss = -tf.reduce_mean(weights * tf.reduce_sum(shares * guesses, -1), [1, 2])
        right = tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), bins[..., 0]), logits.dtype)
        return tf.where(colored, loss, tf.zeros_like(loss)), {
            "accuracy": tf.reduce_mean(right, [1, 2])
        }

    def chance(self) -> dict[str, float]:
        """The best guess that knows only how often colors occur, of hard labels."""
        count = len(self.bins.points)
        prior = np.full(count, 1 / count) if self.bins.prior is None else self.bins.prior
        weighted = prior * self.bins.weights(self.rebalance)
        weighted = weighted[weighted > 0]
        return {"loss": float(-np.sum(weighted * np.log(weighted))), "accuracy": float(prior.max())}

    def pictures(self, batch: Batch) -> tf.Tensor | None:
        """[3 n, H, W, 3] in [0, 1]: for each image itself, its lightness, and its lightness with
        the colors that the network gives it."""
        images = self.to_float(batch)["image"]
        chances = tf.nn.softmax(self.of_color(self({**batch, "image": images})) / ANNEAL)
        ab = tf.tensordot(chances, tf.cast(self.bins.points, chances.dtype), 1)
        ab = tf.image.resize(ab, images.shape[1:3])
        lightness = lab.from_rgb(images)[..., :1]
        rows = [images] + [
            lab.to_rgb(tf.concat([lightness, x], -1)) for x in (tf.zeros_like(ab), ab)
        ]
        return tf.reshape(tf.stack(rows, 1), [-1, *images.shape[1:]])

    def of_color(self, outputs: Any) -> tf.Tensor:
        """The logits of colors [N, h, w, Q] among what `call` returns."""
        return outputs

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.image_size, self.resize

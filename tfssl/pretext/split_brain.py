"""Split-brain autoencoders: Zhang, Isola and Efros, CVPR 2017 (arXiv 1611.09842)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.data.ops import lab
from tfssl.pretext.colorization import Colorization
from tfssl.pretext.parts.halves import Halves
from tfssl.pretext.parts.maps import mean_pool, pixel_map
from tfssl.pretext.task import Batch, Measured


class SplitBrain(Halves, Colorization):
    """One network sees lightness and tells the color at each place of its last map, another sees
    the colors and tells the lightness: classes of the ab plane, and of 50 equal parts of L.

    The published encoder is both: RGB in, features side by side, twice as many as the backbone has
    (the paper's halves have a `width_multiplier` of 0.5). What a place tells is the mean over its
    pixels. Images without color count, though the network that sees the colors has nothing of them.

    Args:
      nearest, rebalance, gray: as of colorization; the paper has hard labels, counts all colors
        alike, and all images (gray=0).
      light_bins: classes of lightness (the paper: 50).
    """

    task = "split_brain"

    def __init__(
        self,
        backbone: tf.keras.Model,
        nearest: int = 1,
        rebalance: float = 1.0,
        gray: float = 0.0,
        light_bins: int = 50,
        **common: Any,
    ) -> None:
        super().__init__(backbone, nearest=nearest, rebalance=rebalance, gray=gray, **common)
        self.gray = gray or -1.0  # black goes to exactly 0, which is not beyond 0
        self.split()
        self.light_bins = light_bins
        raw = bool(getattr(backbone, "raw_maps", False))
        self.light_norm = self.norm("light_head_bn") if raw else None
        self.light_head = tf.keras.layers.Conv2D(
            light_bins, 1, name="light_head", dtype=tf.keras.backend.floatx()
        )

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """RGB in [0, 1] -> L / 50 - 1, a / 110 and b / 110."""
        x = lab.from_rgb(images)
        return tf.concat([x[..., :1] / 50 - 1, x[..., 1:] / 110], -1)

    def call(self, batch: Batch, training: bool = False) -> dict[str, tf.Tensor]:
        light, color = self.halves(batch["image"], training)
        x, y = (
            pixel_map(network, endpoints, self.task)
            for network, endpoints in ((self.backbone, light), (self.other, color))
        )  # NxhxwxD
        if self.head_norm and self.light_norm:
            x = tf.nn.relu(self.head_norm(x, training=training))
            y = tf.nn.relu(self.light_norm(y, training=training))
        return {"color": self.head(x), "light": self.light_head(y)}  # NxhxwxQ, NxhxwxB

    def objective(self, batch: Batch, outputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Measured]:
        loss, metrics = super().objective(batch, outputs["color"])
        logits = outputs["light"]
        lightness = lab.from_rgb(batch["image"])[..., :1] * (self.light_bins / 100)
        bins = tf.cast(mean_pool(lightness, logits.shape[1:3])[..., 0], tf.int32)
        bins = tf.clip_by_value(bins, 0, self.light_bins - 1)
        of_light = tf.nn.sparse_softmax_cross_entropy_with_logits(bins, logits)
        right = tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), bins), logits.dtype)
        return loss + tf.reduce_mean(of_light, [1, 2]), {
            **metrics,
            "light_accuracy": tf.reduce_mean(right, [1, 2]),
        }

    def of_color(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return outputs["color"]

    def chance(self) -> dict[str, float]:
        """Of lightness, a guess that takes all as likely."""
        color = super().chance()
        loss = color["loss"] + math.log(self.light_bins)
        return {**color, "loss": loss, "light_accuracy": 1 / self.light_bins}

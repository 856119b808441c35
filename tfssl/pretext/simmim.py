"""SimMIM: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022 (arXiv
2111.09886)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.parts.masked import Masked, fixed_order
from tfssl.pretext.task import Batch


class SimMIM(Masked):
    """The encoder sees all patches, some of them as a learned mask token; a linear layer predicts
    their pixels.

    The backbone has to be a vision transformer. Its positions are its own: the paper's ViT has
    relative position biases that blocks share. The online probe reads masked images.

    Args:
      min_area: smallest area of a crop, as a share of the image (the paper: 0.67).
      mask_ratio: share of the image that is masked (the paper: 0.6).
      mask_unit: side of the squares that are masked as a whole, in pixels (the paper: 32).
      norm_pix: targets are normalized by the mean and the deviation of their patch (the paper:
        not).
    """

    task = "simmim"

    def __init__(
        self,
        backbone: tf.keras.Model,
        min_area: float = 0.67,
        mask_ratio: float = 0.6,
        mask_unit: int = 32,
        norm_pix: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, min_area=min_area, norm_pix=norm_pix, **common)
        if mask_unit % self.patch or self.image_size % mask_unit:
            raise UserError(
                f"mask_unit={mask_unit} has to be a multiple of the patches' {self.patch} pixels, "
                f"and image_size={self.image_size} one of it"
            )
        self.units, self.unit = self.image_size // mask_unit, mask_unit // self.patch
        self.hidden = math.ceil(self.units**2 * mask_ratio)
        if self.hidden >= self.units**2:
            raise UserError(
                f"mask_ratio={mask_ratio} of {self.units**2} squares of {mask_unit} pixels leaves "
                "none to see: a smaller mask_unit has more squares"
            )
        # Its parts are called, and not the network, which would make its variables by itself.
        self.backbone.build((None, self.image_size, self.image_size, self.channels))
        floatx = tf.keras.backend.floatx()
        self.head = tf.keras.layers.Dense(self.values, name="head", dtype=floatx)
        normal = tf.keras.initializers.RandomNormal(stddev=0.02)
        channels = self.backbone.channels
        self.mask_token = self.add_weight("mask_token", [1, 1, channels], initializer=normal)

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        order = tf.argsort(draws.uniform(shape=[self.units**2]), 1)
        return {**batch, "masked": order[:, : self.hidden]}

    def seen(self, batch: Batch) -> tf.Tensor:
        units, floatx = self.units**2, tf.keras.backend.floatx()
        masked = batch.get("masked")
        if masked is None:  # in evaluation the same of all images
            order = fixed_order(units)[: self.hidden]
            masked = tf.tile(tf.constant([order], tf.int32), [batch["image"].shape[0], 1])
        seen = 1 - tf.reduce_sum(tf.one_hot(masked, units, dtype=floatx), 1)
        seen = tf.reshape(seen, [-1, self.units, 1, self.units, 1])
        seen = tf.tile(seen, [1, 1, self.unit, 1, self.unit])
        return tf.reshape(seen, [-1, self.side**2])

    def call(self, batch: Batch, training: bool = False) -> dict[str, tf.Tensor]:
        images, seen = self.normalize(batch["image"]), self.seen(batch)
        tokens, _ = self.backbone.tokens(images, seen, self.mask_token)  # NxLxD
        after, cls = self.backbone.transform(tokens, training)
        features = self.backbone.pooled(after[-1], cls)
        probe = self.probe_logits(features, lambda: features)
        return {"prediction": self.head(after[-1]), **probe}

    def error(self, difference: tf.Tensor) -> tf.Tensor:
        return tf.abs(difference)

    def chance(self) -> dict[str, float]:
        """The loss has no level that is known: it is that of the images' pixels."""
        return {"loss": math.nan, **super().chance()}

"""MAE: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv
2111.06377)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.backbones.norm import LayerNorm
from tfssl.backbones.vit import EPSILON, Block, sinusoids
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.parts.masked import Masked, fixed_order
from tfssl.pretext.task import Batch


class MAE(Masked):
    """The encoder sees a quarter of the patches; a small decoder reconstructs the pixels of the
    masked ones.

    The backbone has to compute with some tokens alone (`keep`): a vision transformer. The online
    probe reads what the encoder makes of the visible patches.

    Args:
      min_area: smallest area of a crop, as a share of the image (the paper: 0.2).
      mask_ratio: share of the patches that the encoder does not see (the paper: 0.75).
      decoder_channels: of the decoder (the paper: 512).
      decoder_depth: its blocks (the paper: 8).
      decoder_heads: heads of their attention (the paper: 16).
      norm_pix: targets are normalized by the mean and the deviation of their patch (the paper's
        better variant).
    """

    task = "mae"
    crop_method = "pillow_bicubic"

    def __init__(
        self,
        backbone: tf.keras.Model,
        min_area: float = 0.2,
        mask_ratio: float = 0.75,
        decoder_channels: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(backbone, min_area=min_area, norm_pix=norm_pix, **common)
        self.kept = int(self.side**2 * (1 - mask_ratio))
        if not 0 < self.kept < self.side**2:
            raise UserError(
                f"mask_ratio={mask_ratio} leaves {self.kept} of {self.side**2} patches: the "
                "encoder needs one, and the decoder one to reconstruct"
            )
        if decoder_channels % decoder_heads or decoder_channels % 4:
            raise UserError(
                f"decoder_channels={decoder_channels} has to be a multiple of "
                f"decoder_heads={decoder_heads}, and of 4"
            )
        if getattr(backbone, "representation", None):
            raise UserError(
                "representation_size: MAE's decoder reads the class token as wide as the patches' "
                "tokens: leave it out"
            )
        self.decoder_channels = decoder_channels
        dense: dict[str, Any] = {"kernel_initializer": "glorot_uniform"}
        self.decoder_embed = tf.keras.layers.Dense(decoder_channels, name="decoder_embed", **dense)
        self.decoder = [
            Block(decoder_channels, decoder_heads, 0.0, dense, f"decoder{i}")
            for i in range(1, decoder_depth + 1)
        ]
        self.decoder_norm = LayerNorm(epsilon=EPSILON, name="decoder_norm")
        floatx = tf.keras.backend.floatx()
        self.head = tf.keras.layers.Dense(self.values, name="head", dtype=floatx, **dense)
        normal = tf.keras.initializers.RandomNormal(stddev=0.02)
        self.mask_token = self.add_weight(
            "mask_token", [1, 1, decoder_channels], initializer=normal
        )

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        order = tf.argsort(draws.uniform(shape=[self.side**2]), 1)
        return {**batch, "keep": order[:, : self.kept]}

    def visible(self, batch: Batch) -> tf.Tensor:
        """Which patches the encoder sees, int32 [N, K]; in evaluation the same of all images,
        spread over each."""
        if "keep" in batch:
            return batch["keep"]
        order = fixed_order(self.side**2)[: self.kept]
        return tf.tile(tf.constant([order], tf.int32), [batch["image"].shape[0], 1])

    def seen(self, batch: Batch) -> tf.Tensor:
        places = tf.one_hot(self.visible(batch), self.side**2, dtype=tf.keras.backend.floatx())
        return tf.reduce_sum(places, 1)

    def call(self, batch: Batch, training: bool = False) -> dict[str, tf.Tensor]:
        keep = self.visible(batch)
        endpoints = self.backbone(self.normalize(batch["image"]), training=training, keep=keep)
        features = endpoints["pre_logits"]
        *_, tokens = (
            x for name, x in endpoints.items() if self.backbone.endpoint_kinds[name] == "map"
        )
        prediction = self.decode(tokens, features, keep, training)
        return {"prediction": prediction, **self.probe_logits(features, lambda: features)}

    def decode(
        self, tokens: tf.Tensor, features: tf.Tensor, keep: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """The pixels of all patches, [N, L, patch * patch * 3], from the tokens of those that were
        seen, [N, K, D], and the features of the image, [N, D], which stand in front of them."""
        x = self.decoder_embed(
            tf.concat([tf.cast(features, tokens.dtype)[:, None], tokens], 1)
        )  # Nx(1+K)xE
        places = tf.one_hot(keep, self.side**2, dtype=x.dtype)  # NxKxL
        hidden = 1 - tf.reduce_sum(places, 1)  # NxL
        patches = tf.matmul(places, x[:, 1:], transpose_a=True) + hidden[..., None] * tf.cast(
            self.mask_token, x.dtype
        )
        positions = tf.reshape(
            sinusoids(self.side, self.side, self.decoder_channels), [self.side**2, -1]
        )
        x = tf.concat([x[:, :1], patches + tf.cast(positions, x.dtype)], 1)
        for block in self.decoder:
            x = block(x, training=training)
        return self.head(self.decoder_norm(x)[:, 1:])

    def error(self, difference: tf.Tensor) -> tf.Tensor:
        return tf.square(difference)

    def chance(self) -> dict[str, float]:
        """Of the mean of each patch, if targets are normalized by patch."""
        level = (self.values - 1) / self.values if self.norm_pix else math.nan
        return {"loss": level, **super().chance()}

"""MAE: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv
2111.06377)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.backbones.norm import LayerNorm
from tfssl.backbones.vit import EPSILON, Block, sinusoids
from tfssl.data.ops import image as ops
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError
from tfssl.precision import at_least_float32
from tfssl.pretext.parts.online_probe import Probed
from tfssl.pretext.task import Batch, Example, Measured

GOLDEN = (math.sqrt(5) - 1) / 2


class MAE(Probed):
    """The encoder sees a quarter of the patches; a small decoder reconstructs the pixels of the
    masked ones.

    The backbone has to compute with some tokens alone (`keep`): a vision transformer. The online
    probe reads what the encoder makes of the visible patches.

    Args:
      image_size: side of the crops that the network sees, in pixels.
      min_area: smallest area of a crop, as a share of the image (the paper: 0.2).
      mask_ratio: share of the patches that the encoder does not see (the paper: 0.75).
      decoder_channels: of the decoder (the paper: 512).
      decoder_depth: its blocks (the paper: 8).
      decoder_heads: heads of their attention (the paper: 16).
      norm_pix: targets are normalized by the mean and the deviation of their patch (the paper's
        better variant).
      resize: shorter side, in pixels, to which an evaluation image is scaled before its central
        square of `image_size` is cut; 0 means image_size / 0.875.
    """

    task = "mae"

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        min_area: float = 0.2,
        mask_ratio: float = 0.75,
        decoder_channels: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
        resize: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        self.patch = getattr(self.backbone, "patch", 0)
        if not self.patch:
            raise UserError(
                "task 'mae' needs a backbone that computes with some patches alone: take "
                "--backbone=vit_small"
            )
        if image_size % self.patch:
            raise UserError(
                f"image_size={image_size} has to be a multiple of the patches' {self.patch} pixels"
            )
        self.side = image_size // self.patch
        self.kept = int(self.side**2 * (1 - mask_ratio))
        if not 0 < self.kept < self.side**2:
            raise UserError(
                f"mask_ratio={mask_ratio} leaves {self.kept} of {self.side**2} patches: the "
                "encoder needs one, and the decoder one to reconstruct"
            )
        self.min_area, self.norm_pix, self.resize = (
            min_area,
            norm_pix,
            resize or round(image_size / 0.875),
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
        self.channels = getattr(backbone, "input_channels", 3)
        values = self.channels * self.patch**2
        self.head = tf.keras.layers.Dense(values, name="head", dtype=floatx, **dense)
        normal = tf.keras.initializers.RandomNormal(stddev=0.02)
        self.mask_token = self.add_weight(
            "mask_token", [1, 1, decoder_channels], initializer=normal
        )

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        if seed is None:
            return {
                "image": ops.resize_central_crop(example["image"], self.image_size, self.resize)
            }
        image = ops.random_resized_crop(
            example["image"],
            seed,
            self.image_size,
            (self.min_area, 1.0),
            method="pillow",
            sampler="torch",
        )
        return {"image": ops.random_flip(image, fork(seed, 0))}

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        order = tf.argsort(draws.uniform(shape=[self.side**2]), 1)
        return {**batch, "keep": order[:, : self.kept]}

    def visible(self, batch: Batch) -> tf.Tensor:
        """Which patches the encoder sees, int32 [N, K]; in evaluation the same of all images,
        spread over each."""
        if "keep" in batch:
            return batch["keep"]
        noise = [GOLDEN * i % 1 for i in range(self.side**2)]
        order = sorted(range(self.side**2), key=noise.__getitem__)[: self.kept]
        return tf.tile(tf.constant([order], tf.int32), [batch["image"].shape[0], 1])

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

    def patches(self, images: tf.Tensor) -> tf.Tensor:
        """[N, S, S, 3] -> [N, L, patch * patch * 3]: row by row, and each by row, column and
        channel."""
        x = tf.reshape(images, [-1, self.side, self.patch, self.side, self.patch, self.channels])
        return tf.reshape(
            tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, self.side**2, self.channels * self.patch**2]
        )

    def targets(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The regression targets of images [N, S, S, 3], [N, L, patch * patch * 3]; and the mean
        and deviation [N, L, 1] by which it was normalized."""
        pixels = self.patches(at_least_float32(images))
        if not self.norm_pix:
            return pixels, tf.zeros_like(pixels[..., :1]), tf.ones_like(pixels[..., :1])
        mean, variance = tf.nn.moments(pixels, [2], keepdims=True)
        count = pixels.shape[2]
        deviation = tf.sqrt(variance * (count / (count - 1)) + 1e-6)
        return (pixels - mean) / deviation, mean, deviation

    def objective(self, batch: Batch, outputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Measured]:
        prediction = outputs["prediction"]
        targets, _, _ = self.targets(self.normalize(batch["image"]))
        error = tf.reduce_mean(tf.square(prediction - tf.cast(targets, prediction.dtype)), 2)  # NxL
        hidden = 1 - tf.reduce_sum(
            tf.one_hot(self.visible(batch), self.side**2, dtype=error.dtype), 1
        )
        loss = tf.reduce_sum(hidden * error, 1) / (self.side**2 - self.kept)
        return self.probed(batch, loss, {}, outputs.get("probe"))

    def chance(self) -> dict[str, float]:
        """Of the mean of each patch, if targets are normalized by patch."""
        count = self.channels * self.patch**2
        return {"loss": (count - 1) / count if self.norm_pix else math.nan, **super().chance()}

    def pictures(self, batch: Batch) -> tf.Tensor:
        """[3 n, S, S, 3] in [0, 1]: for each image what the encoder sees of it, what the decoder
        tells of the rest, and itself."""
        images = self.to_float({"image": batch["image"]})["image"]
        batch = {**batch, "image": images}
        _, mean, deviation = self.targets(self.normalize(images))
        prediction = self(batch)["prediction"] * tf.cast(deviation, images.dtype) + tf.cast(
            mean, images.dtype
        )
        seen = tf.reduce_sum(tf.one_hot(self.visible(batch), self.side**2, dtype=images.dtype), 1)[
            ..., None
        ]
        # `normalize` is affine in each channel: what it does to black and to white tells how to
        # undo it.
        black, white = (
            self.patches(self.normalize(tf.fill(tf.shape(images), tf.cast(v, images.dtype))))
            for v in (0, 1)
        )
        pixels, prediction = self.patches(images), (prediction - black) / (white - black)
        rows = [seen * pixels + (1 - seen) * 0.5, seen * pixels + (1 - seen) * prediction, pixels]
        x = tf.reshape(
            tf.stack(rows, 1), [-1, self.side, self.side, self.patch, self.patch, self.channels]
        )
        return tf.clip_by_value(
            tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, *images.shape[1:]]), 0.0, 1.0
        )

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.image_size, self.resize

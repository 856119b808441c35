"""What tasks have in common that mask patches of an image and predict their pixels: crops, targets,
the loss of the masked patches, pictures."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.data.ops import image as ops
from tfssl.data.ops.draws import fork
from tfssl.errors import UserError
from tfssl.precision import at_least_float32
from tfssl.pretext.parts.online_probe import Probed
from tfssl.pretext.task import Batch, Example, Measured

GOLDEN = (math.sqrt(5) - 1) / 2


class Masked(Probed):
    """Base class; a task has `seen`, `error`, and in its outputs "prediction" [N, L, values]: of
    each of the L patches its values, of which there are patch * patch * 3.

    Args:
      image_size: side of the crops that the network sees, in pixels.
      min_area: smallest area of a crop, as a share of the image.
      norm_pix: targets are normalized by the mean and the deviation of their patch.
      resize: shorter side, in pixels, to which an evaluation image is scaled before its central
        square of `image_size` is cut; 0 means image_size / 0.875.
    """

    crop_method = "pillow"  # of `data.ops.resize`

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        min_area: float = 0.2,
        norm_pix: bool = True,
        resize: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        self.patch = getattr(self.backbone, "patch", 0)
        if not self.patch:
            raise UserError(
                f"task {self.task!r} needs a backbone that computes with some patches alone: take "
                "--backbone=vit_small, without --neck"
            )
        if image_size % self.patch:
            raise UserError(
                f"image_size={image_size} has to be a multiple of the patches' {self.patch} pixels"
            )
        self.side = image_size // self.patch
        self.channels = getattr(backbone, "input_channels", 3)
        self.values = self.channels * self.patch**2
        self.min_area, self.norm_pix = min_area, norm_pix
        self.resize = resize or round(image_size / 0.875)

    def seen(self, batch: Batch) -> tf.Tensor:
        """Which patches the network sees, 1 or 0 in Keras's floatx: [N, L]."""
        raise NotImplementedError

    def error(self, difference: tf.Tensor) -> tf.Tensor:
        """The error of each value of a prediction, by its difference to the target."""
        raise NotImplementedError

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
            method=self.crop_method,
            sampler="torch",
        )
        return {"image": ops.random_flip(image, fork(seed, 0))}

    def patches(self, images: tf.Tensor) -> tf.Tensor:
        """[N, S, S, 3] -> [N, L, patch * patch * 3]: row by row, and each by row, column and
        channel."""
        x = tf.reshape(images, [-1, self.side, self.patch, self.side, self.patch, self.channels])
        return tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, self.side**2, self.values])

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
        """The mean error of the patches that the network does not see."""
        prediction = outputs["prediction"]
        targets, _, _ = self.targets(self.normalize(batch["image"]))
        error = tf.reduce_mean(self.error(prediction - tf.cast(targets, prediction.dtype)), 2)
        hidden = 1 - tf.cast(self.seen(batch), error.dtype)  # NxL
        loss = tf.reduce_sum(hidden * error, 1) / tf.reduce_sum(hidden, 1)
        return self.probed(batch, loss, {}, outputs.get("probe"))

    def pictures(self, batch: Batch) -> tf.Tensor:
        """[3 n, S, S, 3] in [0, 1]: for each image what the network sees of it, what it predicts of
        the rest, and itself."""
        images = self.to_float({"image": batch["image"]})["image"]
        batch = {**batch, "image": images}
        _, mean, deviation = self.targets(self.normalize(images))
        prediction = self(batch)["prediction"] * tf.cast(deviation, images.dtype) + tf.cast(
            mean, images.dtype
        )
        seen = tf.cast(self.seen(batch), images.dtype)[..., None]
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


def fixed_order(count: int) -> list[int]:
    """An order of `count` places for evaluation, whose first ones are spread over all."""
    noise = [GOLDEN * i % 1 for i in range(count)]
    return sorted(range(count), key=noise.__getitem__)

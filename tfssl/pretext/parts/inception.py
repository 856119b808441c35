"""The "Inception" preprocessing of an image, which rotation, exemplar and supervised training
share."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfssl.data.ops import image as ops
from tfssl.data.ops import photometric
from tfssl.data.ops.draws import Draws, fork
from tfssl.pretext.task import Batch, Example, Pretext


class InceptionImages(Pretext):
    """Training: a random crop of random area and aspect ratio, resized; a flip; brightness and
    saturation. Evaluation: the central crop.

    Args:
      min_area: smallest area of the random crop, as a share of the image (0.05 in the Inception
        recipe); at most 1. Below 0.1 it changes little: the recipe draws crops of less than 0.1
        again.
      flip: flip half of the training images left to right.
      color: vary brightness (by up to 32/255) and saturation (by 0.5 to 1.5) in training.
      resize: shorter side, in pixels, to which an evaluation image is scaled before its central
        square of `image_size` is cut; 0 means image_size / 0.875, the recipe's central share.
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        min_area: float = 0.05,
        flip: bool = True,
        color: bool = True,
        resize: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.min_area, self.flip, self.color = min_area, flip, color
        self.resize = resize or round(self.image_size / 0.875)

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        if seed is None:
            return {
                "image": ops.resize_central_crop(example["image"], self.image_size, self.resize)
            }
        image = ops.random_resized_crop(
            example["image"], seed, self.image_size, area_range=(self.min_area, 1.0)
        )
        return {"image": ops.random_flip(image, fork(seed, 0)) if self.flip else image}

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.image_size, self.resize

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        if not self.color:
            return batch
        return {
            **batch,
            "image": photometric.inception_color(batch["image"], draws.uniform(shape=[3])),
        }

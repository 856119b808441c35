"""Multi-crop (Caron et al., arXiv 2006.09882, Section 3.3): small views of each image beside its
large ones."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfssl.data import augmentation
from tfssl.errors import UserError
from tfssl.pretext.parts.views import Crops, Views


class MultiCrop(Views):
    """Base class of the methods with two large views of an image and several small ones, which cost
    little and see parts.

    Args:
      small_crops: small views of each image beside the two large ones (SwAV: 6).
      small_size: their side, in pixels, no longer than `image_size` (SwAV: 96).
      small_area: the least area of a small view, as a share of the image (SwAV: 0.05).
      small_max_area: its greatest; 0: the large views' least (SwAV).

    Raises:
      UserError: the small views are larger than the others.
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "swav",
        small_crops: int = 6,
        small_size: int = 96,
        small_area: float = 0.05,
        small_max_area: float = 0.0,
        **common: Any,
    ) -> None:
        self.small_crops, self.small_size = small_crops, small_size
        self.small_area, self.small_max_area = small_area, small_max_area
        super().__init__(backbone, augmentation=augmentation, **common)
        if small_crops and small_size > self.image_size:
            raise UserError(
                f"small_size={small_size} is above image_size={self.image_size}: small crops cost "
                "less than the two large ones; take a smaller size, or small_crops=0"
            )

    def crops(self) -> list[Crops]:
        least = self.min_area or augmentation.per_view(self.augmentation, 1)[0].crop_area[0]
        area = self.small_area, self.small_max_area or least
        small = Crops(self.small_crops, self.small_size, area)
        return [*super().crops(), small][: 1 + bool(self.small_crops)]

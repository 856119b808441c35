"""Relative patch location: Doersch et al., "Unsupervised Visual Representation Learning by Context
Prediction", ICCV 2015."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.parts.patches import Patches


class RelativePatch(Patches):
    """A patch beside the central one: on which of the eight sides? All eight pairs of every image
    are asked.

    As in Kolesnikov et al. (2019), which differs from the original in preprocessing and head.
    """

    task = "relative_patch"

    def __init__(self, backbone: tf.keras.Model, **common: Any) -> None:
        super().__init__(backbone, **common)
        if self.grid % 2 == 0:
            raise UserError(
                f"grid={self.grid} has no central cell: relative_patch needs an odd one"
            )
        centre = self.grid**2 // 2
        self.build_head(
            np.array([(i, centre) for i in range(self.grid**2) if i != centre], np.int32)
        )

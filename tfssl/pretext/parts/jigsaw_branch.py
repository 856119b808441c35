"""The jigsaw branch of PIRL (Misra and van der Maaten, CVPR 2020, arXiv 1912.01991, Section 3.3),
which InfoMin trains with as well."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.data import augmentation
from tfssl.data.ops import patches
from tfssl.data.ops.draws import fork
from tfssl.errors import UserError
from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Crops, Views
from tfssl.pretext.task import Batch, Measured

GRID = 3
PATCHES = GRID**2


class JigsawBranch(Views):
    """A further view of each image: the nine patches of one crop, in a random order. Each goes
    through the network by itself, and through a head of the form of the views' own; a linear layer
    makes one embedding of the nine side by side.

    Stands before a method among the base classes of a task; the method's `projection` is the form
    of the patches' head.

    Args:
      jigsaw_size: side, in pixels, of the crop that is cut into 3 x 3 cells with a patch in each
        (the papers: 255).
      jigsaw_patch_size: side of a patch, in pixels; what it is smaller than its cell is the range
        of its random place (the papers: 64).
      jigsaw_area: smallest area of that crop, as a share of the image's (the papers' code: 0.6).
      jigsaw_augmentation: policy of the patches, drawn for each by itself (see augmentation).
      jigsaw_weight: share of this branch in the loss, 0 to 1 (the papers: 0.5).
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        jigsaw_size: int = 255,
        jigsaw_patch_size: int = 64,
        jigsaw_area: float = 0.6,
        jigsaw_augmentation: str = "crop",
        jigsaw_weight: float = 0.5,
        **common: Any,
    ) -> None:
        if not 1 <= jigsaw_patch_size <= jigsaw_size // GRID:
            raise UserError(
                f"jigsaw_patch_size={jigsaw_patch_size} does not fit: jigsaw_size={jigsaw_size} in "
                f"{GRID} cells a side leaves "
                f"{jigsaw_size // GRID} pixels for each; take a smaller jigsaw_patch_size or a "
                "larger jigsaw_size"
            )
        if not (0 < jigsaw_area <= 1 and 0 <= jigsaw_weight <= 1):
            raise UserError(
                f"jigsaw_area={jigsaw_area} and jigsaw_weight={jigsaw_weight} are shares: 0 to 1"
            )
        self.jigsaw_size, self.jigsaw_patch_size, self.jigsaw_area = (
            jigsaw_size,
            jigsaw_patch_size,
            jigsaw_area,
        )
        self.jigsaw_augmentation, self.jigsaw_weight = jigsaw_augmentation, jigsaw_weight
        super().__init__(backbone, **common)
        sizes = self.projection.sizes
        self.patch_projection = MLP("patch_projection", sizes)
        self.jigsaw_projection = MLP("jigsaw_projection", sizes[-1:])

    def crops(self) -> list[Crops]:
        return [*super().crops(), Crops(PATCHES, self.jigsaw_patch_size, (self.jigsaw_area, 1.0))]

    def policies(self) -> Sequence[augmentation.Policy]:
        mine = augmentation.per_view(self.jigsaw_augmentation, PATCHES, self.strength)
        return (*super().policies()[:-PATCHES], *mine)

    def regions(self, group: Crops, first: int) -> list[augmentation.Region]:
        found = super().regions(group, first)
        return [found[0]._replace(size=self.jigsaw_size)] if group == self.crops()[-1] else found

    def group(
        self, crops: Sequence[tf.Tensor], seed: tf.Tensor, group: Crops, first: int
    ) -> tf.Tensor:
        if group != self.crops()[-1]:
            return super().group(crops, seed, group, first)
        places = patches.grid_offsets(
            fork(seed, first + 1), self.jigsaw_size, self.jigsaw_size, GRID, group.size
        )
        order = tf.random.experimental.stateless_shuffle(tf.range(PATCHES), fork(seed, first + 2))
        return patches.cut(crops[0], tf.gather(places, order), group.size)

    def embed_patches(self, batch: Batch, training: bool) -> tf.Tensor:
        """The embedding of each image's patches, in the order in which they are given: [N, E]."""
        z = self.embed(batch["image"][-1], {"z": self.patch_projection}, training)["z"]  # Nx9xE
        return self.jigsaw_projection(tf.reshape(z, [z.shape[0], -1]))

    def both(
        self, views: contrastive.Contrast, jigsaw: contrastive.Contrast
    ) -> tuple[tf.Tensor, Measured]:
        """(Loss, metrics) of a task, out of the `Contrast` of either branch."""
        loss = (1 - self.jigsaw_weight) * views.loss + self.jigsaw_weight * jigsaw.loss
        return loss, {"accuracy": views.accuracy, "jigsaw_accuracy": jigsaw.accuracy}

    def chance(self) -> dict[str, float]:
        levels = super().chance()
        return {**levels, "jigsaw_accuracy": levels["accuracy"]}

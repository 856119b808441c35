"""Jigsaw puzzles: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving
Jigsaw Puzzles", ECCV 2016."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError
from tfssl.pretext.parts import permutations as sets
from tfssl.pretext.parts.patches import Patches
from tfssl.pretext.task import Batch

ASKED_IN_EVALUATION = 100


class Jigsaw(Patches):
    """The patches of an image in an order out of a fixed set: which order is it? As in Kolesnikov
    et al. (2019).

    Evaluation asks for all orders of the set, or for 100 of them where there are more, the same of
    every image.

    Args:
      permutations: size of the set: the number of classes.
      permutation_criterion: the set is chosen one by one, each with the largest "mean" (Noroozi and
        Favaro) or the largest smallest ("min") Hamming distance to those before it.
      permutation_seed: seed of that choice; the set is always made anew from it.
      permutations_file: a file to read the set from instead: little-endian int32 count and length,
        then values from 1, as Noroozi published (permutations_100_max.bin). Of more than
        `permutations`, the first are taken. The run depends on what the file holds: keep it.
      permutations_per_image: how many orders, all different, each training image is shown in
        (supplement: 16; code: 8).
      share_permutations: draw them once for the whole batch instead of for each image (the study's
        code).
    """

    task = "jigsaw"

    def __init__(
        self,
        backbone: tf.keras.Model,
        permutations: int = 100,
        permutation_criterion: str = "mean",
        permutation_seed: int = 0,
        permutations_file: str = "",
        permutations_per_image: int = 16,
        share_permutations: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.permutations_per_image, self.share_permutations = (
            permutations_per_image,
            share_permutations,
        )
        if not 1 <= permutations_per_image <= permutations:
            raise UserError(
                f"permutations_per_image={permutations_per_image} must be 1 to "
                f"permutations={permutations}"
            )
        if permutations_file:
            table = sets.read(permutations_file, self.grid**2)
            if len(table) < permutations:
                raise UserError(
                    f"{permutations_file!r} holds {len(table)} permutations, and "
                    f"permutations={permutations}"
                )
        else:
            table = sets.greedy(permutations, self.grid**2, permutation_criterion, permutation_seed)
        self.build_head(table[:permutations])
        asked = np.random.RandomState(permutation_seed).permutation(permutations)[
            :ASKED_IN_EVALUATION
        ]
        self.asked_in_evaluation = np.sort(asked).astype(np.int32)

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        count = len(self.table)
        if self.share_permutations:
            lots = tf.random.stateless_uniform([1, count], fork(draws.seed, 0))
            lots = tf.tile(lots, [batch["image"].shape[0], 1])
        else:
            lots = draws.uniform(shape=[count])
        orders = tf.math.top_k(lots, self.permutations_per_image).indices  # Nx16, all different
        return super().augment({**batch, "orders": orders}, draws)

    def questions(self, batch: Batch) -> tf.Tensor:
        if "orders" in batch:
            return batch["orders"]
        return tf.tile(self.asked_in_evaluation[None], [batch["image"].shape[0], 1])

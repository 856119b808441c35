"""Instance discrimination: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", CVPR 2018 (arXiv 1805.01978)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError, check_choice
from tfssl.losses import contrastive, replicas
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.memory import Bank
from tfssl.pretext.parts.views import Crops, Views
from tfssl.pretext.task import Batch, Measured


class InstanceDiscrimination(Views):
    """Each image is a class of its own, whose weights are what the network last made of it: a
    memory bank with one direction for each.

    Args:
      num_images: images of the data set; 0 takes its number.
      augmentation: policy of the view (the paper's is moco_v1).
      temperature: what cosines are divided by (the paper: 0.07; for CIFAR-10 0.1).
      projection_size: outputs of the linear projection (the paper: 128).
      form: nce, the paper's noise-contrastive estimation; or cross_entropy over the image and its
        negatives, as in later code.
      negatives: entries of the bank that are drawn for each image (nce: 4096; cross_entropy:
        65536); 0: all, with cross_entropy.
      bank_momentum: share of its entry that an update keeps (the code: 0.5).
    """

    task = "instance_discrimination"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_images: int = 0,
        augmentation: str = "moco_v1",
        temperature: float = 0.07,
        projection_size: int = 128,
        form: str = "nce",
        negatives: int = 4096,
        bank_momentum: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        check_choice("form", form, ("nce", "cross_entropy"))
        if form == "nce" and not negatives:
            raise UserError(
                "negatives=0 stands for all, which form=nce estimates the loss of: take "
                "form=cross_entropy"
            )
        if num_images < 1:
            raise UserError(
                "num_images is missing: the memory bank needs to know how many images there are"
            )
        self.temperature, self.form, self.negatives, self.num_images = (
            temperature,
            form,
            negatives,
            num_images,
        )
        self.projection = MLP("projection", [projection_size])
        self.bank = Bank(num_images, projection_size, bank_momentum)
        # The normalization Z of nce, estimated in the first step and kept.
        self.constant = self.add_weight(
            "constant",
            [],
            initializer="zeros",
            trainable=False,
        )

    def crops(self) -> list[Crops]:
        return [Crops(1, self.image_size, None)]

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        batch = super().augment(batch, draws)
        if not self.negatives:
            return batch
        return {
            **batch,
            "negatives": draws.integers(self.num_images, shape=[self.negatives], view=1),
        }

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        return self.embed(batch["image"][0], {"z": self.projection}, training)  # Nx1xE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        found = self.discriminate(batch, outputs["z"][:, 0])
        return found.loss, {"accuracy": found.accuracy}

    def discriminate(
        self,
        batch: Batch,
        z: tf.Tensor,
        bank: Bank | None = None,
        constant: tf.Variable | None = None,
    ) -> contrastive.Contrast:
        """`Contrast` of embeddings [N, E]: each image's own entry of a bank among the others; by
        default of the task's, with its constant of nce."""
        bank, constant = bank or self.bank, self.constant if constant is None else constant
        v = contrastive.l2_normalize(z)
        # Other images than the bank's, in validation on another split, are given some entry: what
        # is measured of them is chance.
        index = batch["index"] % self.num_images
        if not self.negatives:
            logits = tf.matmul(v, bank.entries, transpose_b=True) / self.temperature  # Nximages
            return contrastive.classify(logits, tf.cast(index, tf.int32))
        # Validation has no draws: it takes one fixed set.
        spaced = tf.range(self.negatives, dtype=tf.int64) * self.num_images // self.negatives
        drawn = batch.get("negatives", tf.tile(spaced[None], [v.shape[0], 1]))  # NxK
        positive = tf.reduce_sum(v * tf.gather(bank.entries, index), 1) / self.temperature  # N
        negative = (
            tf.einsum("nd,nkd->nk", v, tf.gather(bank.entries, drawn)) / self.temperature
        )  # NxK
        if self.form == "nce":
            return contrastive.nce(
                positive,
                negative,
                self.negatives / self.num_images,
                self._estimate(negative, constant),
            )
        logits = tf.concat([positive[:, None], negative], 1)
        return contrastive.classify(logits, tf.zeros([v.shape[0]], tf.int32))

    def _estimate(self, negative: tf.Tensor, constant: tf.Variable) -> tf.Tensor:
        estimate = (
            replicas.mean(tf.reduce_mean(tf.exp(tf.stop_gradient(negative)))) * self.num_images
        )
        estimate = tf.where(constant > 0, tf.cast(constant, estimate.dtype), estimate)
        constant.assign(estimate)
        return estimate

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        self.bank.update(batch["index"], contrastive.l2_normalize(outputs["z"][:, 0]))

    def chance(self) -> dict[str, float]:
        others = self.negatives or self.num_images - 1
        loss = math.log(1 + others)
        if self.form == "nce":  # each of the decisions on a negative costs a little, too
            loss += others * math.log1p(1 / others)
        return {**super().chance(), "loss": loss, "accuracy": 1 / (1 + others)}

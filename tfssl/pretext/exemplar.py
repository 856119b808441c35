"""Exemplar: Dosovitskiy et al. (NIPS 2014), with the triplet loss that lets Kolesnikov et al. (CVPR
2019) train on any number of images."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfssl.data.ops import image as ops
from tfssl.data.ops import patches, photometric
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError, check_choice
from tfssl.losses import replicas
from tfssl.losses.triplet import semihard_triplets
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.task import Batch, Example, Measured, image_major


class Exemplar(InceptionImages):
    """Each image stands in the batch several times, each time cropped, mirrored and colored anew;
    copies of one image are to lie nearer to one another, by a margin, than to copies of any other.

    The 2019 study trains with 512 images, each eight times, and compares the copies that one TPU
    core holds. Its text leaves open gray images and standardization, which here are as in its code,
    and the normalization of the embeddings. (The code divides by norms over the batch,
    `norm_over=batch`, where the loss asks for embeddings of norm 1.)

    In validation all images are in color, and their crops are drawn from one fixed seed: copies
    without differences would measure nothing.

    Args:
      copies: how many times an image stands in the batch (the study: 8).
      gray: probability that a training image becomes gray, all its copies alike: the mean of its
        channels (the study's code: 0.66).
      standardize: bring each image the network sees to mean 0 and variance 1; otherwise to [-1, 1].
      embedding_size: outputs of the linear layer whose distances are compared (the study: 1000).
      norm_over: "features" scales each embedding to L2 norm 1; "batch" scales each feature so, over
        the batch, as the study's code does.
      margin: by how much nearer, in squared distance (the study: 0.5).
      global_triplets: compare the images of all replicas; otherwise, as published, each replica
        compares its own.
    """

    task = "exemplar"
    spans_batch = True

    def __init__(
        self,
        backbone: tf.keras.Model,
        copies: int = 8,
        gray: float = 0.66,
        standardize: bool = True,
        embedding_size: int = 1000,
        norm_over: str = "features",
        margin: float = 0.5,
        global_triplets: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        # images reach `normalize` as they are: half precision has no more than 256 levels
        self._autocast = False
        if copies < 2:
            raise UserError(
                f"copies={copies}: an image is compared with itself, so it takes 2 copies at least"
            )
        check_choice("norm_over", norm_over, ("features", "batch"))
        if not 0 <= gray <= 1:
            raise UserError(f"gray={gray} is a probability: 0 to 1")
        self.copies, self.gray, self.standardize = copies, gray, standardize
        self.norm_over, self.margin, self.global_triplets = norm_over, margin, global_triplets
        self.head = tf.keras.layers.Dense(
            embedding_size, name="head", dtype=tf.keras.backend.floatx()
        )

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        training, seed = seed is not None, tf.zeros([2], tf.int64) if seed is None else seed
        seeds = [fork(seed, view) for view in range(self.copies)]

        def crops(shape: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            return [ops.sample_crop(shape, own, (self.min_area, 1.0)) for own in seeds]

        parts = ops.cut(example["image"], crops, [(self.image_size, self.image_size)] * self.copies)
        copies = [ops.resize(part, self.image_size) for part in parts]
        if self.flip:
            copies = [
                ops.random_flip(copy, fork(own, self.copies)) for copy, own in zip(copies, seeds)
            ]
        copies = tf.stack(copies)  # KxSxSx3
        if not training:
            return {"image": copies}
        coin = tf.random.stateless_uniform([], seed)
        return {"image": tf.cond(coin < self.gray, lambda: patches.gray(copies), lambda: copies)}

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        if not self.color:
            return batch
        draws = tf.reshape(draws.uniform(shape=[self.copies, 3]), [-1, 3])
        images = photometric.inception_color(image_major(batch["image"]), draws)
        return {**batch, "image": tf.reshape(images, batch["image"].shape)}

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        return patches.standardize(images) if self.standardize else super().normalize(images)

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        return self.head(
            self.endpoints(image_major(batch["image"]), training)["pre_logits"]
        )  # NKxD, image-major

    def objective(self, batch: Batch, embeddings: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        weight = tf.repeat(batch["weight"], self.copies)  # NK
        anchors = tf.range(embeddings.shape[0])
        if self.global_triplets:
            anchors += replicas.first_row(embeddings.shape[0])
            embeddings, weight = replicas.gather(embeddings), replicas.gather(weight)  # RNKxD, RNK
        if embeddings.shape[0] == self.copies:
            raise UserError(
                "a replica that holds one image has none to compare it with: take a larger "
                "batch_size, or global_triplets"
            )
        image = tf.range(embeddings.shape[0]) // self.copies
        valid = (
            weight > 0
        )  # not so the blank rows of an evaluation, which count in norms over the batch too
        embeddings = tf.where(valid[:, None], embeddings, tf.zeros_like(embeddings))
        embeddings = tf.math.l2_normalize(embeddings, 1 if self.norm_over == "features" else 0)
        triplets = semihard_triplets(image, embeddings, self.margin, anchors, valid)
        pairs = self.copies - 1
        return triplets.loss / pairs, {"losing": triplets.losing / pairs, "nearer": triplets.auc}

    def chance(self) -> dict[str, float]:
        """`losing`: share of the positive pairs that do not keep the margin; all of them, each at
        the cost of the margin, if all embeddings are one point. `nearer`: share of (copy of the
        same image, copy of another) in which the former is nearer."""
        return {"loss": self.margin, "losing": 1.0, "nearer": 0.5}

    def preview(self, batch: dict) -> tf.Tensor:
        return image_major(batch["image"])  # NKxSxSx3

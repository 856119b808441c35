"""CLSA: Wang and Qi, "Contrastive Learning with Stronger Augmentations", TPAMI 2022 (arXiv
2104.07713)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.data import augmentation
from tfssl.errors import UserError
from tfssl.losses import contrastive, replicas
from tfssl.losses.distillation import distillation
from tfssl.pretext.moco import MoCo
from tfssl.pretext.parts.views import Crops
from tfssl.pretext.task import Batch, Measured


class CLSA(MoCo):
    """MoCo with further queries under stronger augmentation, which are not held to the image's key,
    but to what the weakly augmented query says: its distribution over all keys.

    Keys of the step's other images are candidates beside the queue's. Losses are sums over the weak
    queries, and over the pairs of a weak and a strong one, as in the published code.

    Args:
      augmentation: policy of the weak views; strong ones have RandAugment after it.
      augment_on: where the policies act: host (each image in the input pipeline), which RandAugment
        needs.
      temperature: what cosines are divided by, in both losses (the paper: 0.2).
      projection_layers: of the projection (the paper: 2).
      weak_sizes: comma list: sides of further weak views, in pixels (the paper's multi-crop:
        192,160,128,96). A view of side s has an area of min_area (0.2) to 1, times s / image_size.
      strong_sizes: likewise, of the strong views (the paper: 96; with multi-crop
        224,192,160,128,96).
      strong_ops: how many ops of RandAugment follow one another (the paper: 5).
      strong_weight: factor of their loss (the paper: 1).
    """

    task = "clsa"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "moco_v2",
        augment_on: str = "host",
        temperature: float = 0.2,
        projection_layers: int = 2,
        weak_sizes: str = "",
        strong_sizes: str = "96",
        strong_ops: int = 5,
        strong_weight: float = 1.0,
        **common: Any,
    ) -> None:
        self._sizes = f"{weak_sizes};{strong_sizes}"  # Keras takes no tuple yet
        self.strong_ops, self.strong_weight = strong_ops, strong_weight
        super().__init__(
            backbone,
            augmentation=augmentation,
            augment_on=augment_on,
            temperature=temperature,
            projection_layers=projection_layers,
            **common,
        )
        if self.symmetric:
            raise UserError("symmetric: CLSA has one key for each image; leave it out")

    @property
    def weak_sizes(self) -> tuple[int, ...]:
        return _numbers("weak_sizes", self._sizes.split(";")[0])

    @property
    def strong_sizes(self) -> tuple[int, ...]:
        return _numbers("strong_sizes", self._sizes.split(";")[1])

    def crops(self) -> list[Crops]:
        least = self.min_area or augmentation.per_view(self.augmentation, 1)[0].crop_area[0]
        sizes = (*self.weak_sizes, *self.strong_sizes)
        shares = [size / self.image_size for size in sizes]
        if max(shares, default=0) > 1:
            raise UserError(
                f"weak_sizes and strong_sizes are at most image_size={self.image_size} pixels"
            )
        further = [Crops(1, s, (least * share, share)) for s, share in zip(sizes, shares)]
        return [*super().crops(), *further]

    def policies(self) -> Sequence[augmentation.Policy]:
        views = sum(group.count for group in self.crops())
        weak = augmentation.per_view(self.augmentation, views, self.strength)
        first = views - len(self.strong_sizes)
        strong: dict[str, Any] = {"randaugment": self.strong_ops, "randaugment_pool": "clsa"}
        return (*weak[:first], *(dataclasses.replace(policy, **strong) for policy in weak[first:]))

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = super().call(batch, training)
        further = [
            self.embed(views, {"z": self.projection}, training)["z"] for views in batch["image"][1:]
        ]
        return {**outputs, "queries": tf.concat([outputs["z"], *further], 1)}  # NxVxE

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        queries, keys = outputs["queries"], self.own_keys(batch, outputs)[:, 0]  # NxVxE, NxE
        rows, weak = keys.shape[0], 1 + len(self.weak_sizes)
        candidates = tf.concat([replicas.gather(keys), self.queue.rows], 0)
        logits = tf.matmul(
            tf.reshape(contrastive.l2_normalize(queries), [-1, queries.shape[2]]),
            candidates,
            transpose_b=True,
        )
        logits = tf.reshape(logits / self.temperature, [-1, queries.shape[1], logits.shape[1]])
        blank = replicas.gather(tf.cast(batch["weight"] > 0, tf.int32)) == 0
        blank = tf.pad(blank, [[0, self.queue.size]])
        logits = tf.where(blank, tf.cast(contrastive.NEVER, logits.dtype), logits)  # NxVx(B+K)
        own = replicas.first_row(rows) + tf.range(rows)
        views = tf.unstack(logits, axis=1)
        found = [contrastive.classify(view, own) for view in views[:weak]]
        taught = [distillation(s, w) for s in views[weak:] for w in views[:weak]]
        strong = tf.add_n(taught) if taught else tf.zeros_like(found[0].loss)
        loss = tf.add_n([view.loss for view in found]) + self.strong_weight * strong
        return loss, {"accuracy": found[0].accuracy, "strong_loss": strong}

    def chance(self) -> dict[str, float]:
        count, weak = self.batch_size + self.queue.size, 1 + len(self.weak_sizes)
        strong = weak * len(self.strong_sizes) * math.log(count)
        return {
            **super().chance(),
            "loss": weak * math.log(count) + self.strong_weight * strong,
            "accuracy": 1 / count,
            "strong_loss": strong,
        }


def _numbers(name: str, text: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in text.split(",") if part.strip()]
    if not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(f"{name}={text}: a comma list of pixels, such as 128,96")
    return tuple(map(int, sizes))

"""A classifier on a pretrained encoder: what `tfssl-finetune` trains, from labels, from a teacher,
or from both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfssl.data.ops.draws import Draws
from tfssl.losses.distillation import distillation
from tfssl.optim.groups import Group, apart
from tfssl.pretext.supervised import Supervised


class Classifier(Supervised):
    """Softmax cross-entropy of a linear layer on one of the encoder's endpoints.

    The layer is initialized to zero (Chen et al., arXiv 2006.10029). With a teacher the loss of an
    image is weight * distillation + (1 - weight) * cross-entropy, the second where it has a label.

    Args:
      backbone: a `tfssl.backbones.hub.Hub`.
      num_classes: C.
      endpoint: input of the linear layer.
      head_rate: factor of the linear layer's learning rate.
      layer_decay: layer-wise decay: each stage of the encoder has this multiple of the learning
        rate of the stage after it (Clark et al., arXiv 2003.10555; He et al., arXiv 2111.06377:
        0.65 to 0.75); 1: none. See `Hub.stages`.
      teacher: a function, images [N, H, W, 3] in [0, 1] -> logits [N, C]; None for none.
      temperature, scale_by_t2: see `losses.distillation`.
      distill_weight: weight of distillation in the loss with a teacher.
      labeled: whether there are labels to measure accuracy by.
      min_area, color, weight_decay: as in `InceptionImages` and `Pretext`, with the defaults of
        fine-tuning.
    """

    task = "classification"
    needs = ()  # a teacher may stand in for labels
    head_initializer = "zeros"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_classes: int,
        endpoint: str = "pre_logits",
        head_rate: float = 1.0,
        layer_decay: float = 1.0,
        teacher: Callable[[tf.Tensor], tf.Tensor] | None = None,
        temperature: float = 1.0,
        distill_weight: float = 1.0,
        scale_by_t2: bool = False,
        labeled: bool = True,
        min_area: float = 0.08,
        color: bool = False,
        weight_decay: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            min_area=min_area,
            color=color,
            weight_decay=weight_decay,
            **common,
        )
        self.endpoint, self.labeled = endpoint, labeled
        self.head_rate, self.layer_decay = head_rate, layer_decay
        self.teacher, self.temperature, self.scale_by_t2 = teacher, temperature, scale_by_t2
        self.distill_weight = distill_weight if teacher else 0.0

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        return images  # the module normalizes

    def classify(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Images [N, H, W, 3] in [0, 1] -> the encoder's endpoints, `logits` [N, C] and
        `probabilities` [N, C]."""
        endpoints = self.encode(images, training)
        logits = self.head(self.vector(endpoints))  # NxC
        return {**endpoints, "logits": logits, "probabilities": tf.nn.softmax(logits)}

    def vector(self, endpoints: dict[str, tf.Tensor]) -> tf.Tensor:
        """Input of the linear layer: [N, D]."""
        return self.backbone.vector(endpoints, self.endpoint)

    def augment(self, batch: dict[str, tf.Tensor], draws: Draws) -> dict[str, tf.Tensor]:
        batch = super().augment(batch, draws)
        # Here, and not in the call or the objective: outside of the gradient tape.
        if not self.backbone.trainable:
            batch = {**batch, "encoded": self.vector(self.encode(batch["image"]))}
        return {**batch, "taught": self.teacher(batch["image"])} if self.teacher else batch

    def call(self, batch: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        if "encoded" in batch:
            return self.head(batch["encoded"])
        return self.classify(batch["image"], training)["logits"]

    def objective(
        self, batch: dict[str, tf.Tensor], logits: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor | tuple[tf.Tensor, tf.Tensor]]]:
        # N, N
        labels, known = tf.maximum(batch["label"], 0), tf.cast(batch["label"] >= 0, logits.dtype)
        loss, measured = super().objective({"label": labels}, logits)
        loss = (1 - self.distill_weight) * known * loss
        measured = (
            {name: (values, known) for name, values in measured.items()} if self.labeled else {}
        )
        if self.teacher:
            taught = batch["taught"] if "taught" in batch else self.teacher(batch["image"])
            loss += self.distill_weight * distillation(
                logits, taught, self.temperature, self.scale_by_t2
            )
            agree = tf.equal(tf.argmax(logits, 1), tf.argmax(taught, 1))
            measured["agreement"] = tf.cast(agree, logits.dtype)
        return loss, measured

    def chance(self) -> dict[str, float]:
        """`agreement`: of student and teacher on the top class. The loss is that of a uniform guess
        on a labeled image."""
        levels = super().chance() if self.labeled else {}
        if self.teacher:
            levels["agreement"] = 1 / self.num_classes
        scale = self.temperature**2 if self.scale_by_t2 else 1.0
        weight = self.distill_weight
        return {**levels, "loss": (1 - weight + weight * scale) * math.log(self.num_classes)}

    def groups(self) -> list[Group]:
        """LARS does not scale the linear layer, as in SimCLR's code: its weights start at zero, and
        so would its steps."""
        head = Group(self.head.trainable_variables, rate=self.head_rate, adapt=False)
        if self.layer_decay == 1:
            return apart(super().groups(), head)
        stages = self.backbone.stages()
        rates = [self.layer_decay ** (len(stages) - i) for i in range(len(stages))]
        return apart(super().groups(), *map(Group, stages, rates), head)

"""A classifier on a pretrained encoder: what `tfssl-finetune` trains, from labels, from a teacher,
or from both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfssl.data.ops import erasing
from tfssl.data.ops import randaugment as rand_augment
from tfssl.data.ops.draws import Draws, fork
from tfssl.data.ops.mixing import Mixing, partner
from tfssl.losses.distillation import distillation
from tfssl.losses.soft_labels import soft_cross_entropy, soft_targets
from tfssl.optim.groups import Group, apart
from tfssl.pretext.supervised import Supervised
from tfssl.pretext.task import Example


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
      mixing: of images and labels in pairs; the training accuracy is then that of the label with
        the larger share. A teacher sees the mixed images.
      label_smoothing: this much of a label is spread over all classes, in training.
      randaugment: ops of RandAugment on each training crop; randaugment_magnitude: their mean
        magnitude.
      random_erasing: probability of random erasing.
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
        mixing: Mixing | None = None,
        label_smoothing: float = 0.0,
        randaugment: int = 0,
        randaugment_magnitude: float = 9.0,
        random_erasing: float = 0.0,
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
        self.mixing, self.label_smoothing = mixing, label_smoothing
        self.randaugment, self.randaugment_magnitude = randaugment, randaugment_magnitude
        self.random_erasing = random_erasing
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

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        cropped = super().example(example, seed)
        if seed is None:
            return cropped
        image = cropped["image"]
        if self.randaugment:
            numbers = tf.random.stateless_uniform(
                [self.randaugment, rand_augment.DRAWS], fork(seed, 1)
            )
            image = rand_augment.rand_augment(
                tf.image.convert_image_dtype(image, tf.float32),
                numbers,
                self.randaugment_magnitude,
                pool="increasing",
            )
            image = tf.cast(tf.round(image * 255), tf.uint8)
        if self.random_erasing:
            image = erasing.random_erasing(image, fork(seed, 2), self.random_erasing)
        return {**cropped, "image": image}

    def augment(self, batch: dict[str, tf.Tensor], draws: Draws) -> dict[str, tf.Tensor]:
        batch = super().augment(batch, draws)
        if self.mixing or self.label_smoothing:
            batch = self._softened(batch, draws)
        # Here, and not in the call or the objective: outside of the gradient tape.
        if not self.backbone.trainable:
            batch = {**batch, "encoded": self.vector(self.encode(batch["image"]))}
        return {**batch, "taught": self.teacher(batch["image"])} if self.teacher else batch

    def _softened(self, batch: dict[str, tf.Tensor], draws: Draws) -> dict[str, tf.Tensor]:
        """The batch with mixed images and `targets` [N, C]; its label is the one of more weight."""
        labels = batch["label"]
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        if not self.mixing:
            return {**batch, "targets": targets}
        images, own = self.mixing.mix(batch["image"], draws)
        weight = tf.cast(own, targets.dtype)[:, None]
        return {
            **batch,
            "image": images,
            "targets": weight * targets + (1 - weight) * partner(targets),
            "label": tf.where(own >= 0.5, labels, partner(labels)),
        }

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
        loss = soft_cross_entropy(batch["targets"], logits) if "targets" in batch else known * loss
        loss *= 1 - self.distill_weight
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

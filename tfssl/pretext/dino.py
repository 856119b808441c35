"""DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021
(arXiv 2104.14294)."""

import math
from collections.abc import Mapping
from typing import Any, Optional

import tensorflow as tf

from tfssl.errors import check_choice
from tfssl.losses import replicas
from tfssl.losses.distillation import dino
from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.heads import MLP, Prototypes
from tfssl.pretext.parts.multi_crop import MultiCrop
from tfssl.pretext.parts.target import MomentumNetwork, cosine_momentum
from tfssl.pretext.task import Batch, Measured, image_major


class DINO(MultiCrop):
    """Self-distillation: the student's probabilities over prototypes, for each view, are matched to
    the teacher's for another large view of the image. The teacher is the student's moving average;
    its scores are centered and sharpened against collapse. It is the teacher that is published.

    Args:
      augmentation: policy of the views.
      temperature: what the student's scores are divided by (the paper: 0.1).
      teacher_temperature: what the teacher's are divided by (the paper: 0.04 to 0.07).
      warmup_teacher_temperature: the same at the start, where that is smaller (the paper: 0.04).
      teacher_warmup_epochs: over so many epochs it rises to `teacher_temperature` (the paper: 30).
      projection_hidden: hidden units of the projection, in two layers (the paper: 2048).
      projection_size: its outputs (the paper: 256).
      projection_norm: batch normalization in the projection (the paper: none).
      prototypes: how many (the paper: 65536; fewer for small data sets).
      freeze_prototypes_epochs: the prototypes do not learn before this epoch (the paper: 1).
      target_momentum: EMA decay of the teacher per step, at the start; it rises to 1 (the paper:
        0.996 for batches of 1024).
      momentum_schedule: cosine, as in the paper, or constant.
      center_momentum: EMA decay of the center of the teacher's scores per step (the paper: 0.9).
      small_crops: small views of each image beside the two large ones (the paper: 8).
    """

    task = "dino"

    def __init__(
        self,
        backbone: tf.keras.Model,
        augmentation: str = "dino",
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        teacher_warmup_epochs: float = 30.0,
        projection_hidden: int = 2048,
        projection_size: int = 256,
        projection_norm: bool = False,
        prototypes: int = 65536,
        freeze_prototypes_epochs: float = 1.0,
        target_momentum: float = 0.996,
        momentum_schedule: str = "cosine",
        center_momentum: float = 0.9,
        small_crops: int = 8,
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, small_crops=small_crops, **common)
        check_choice("momentum_schedule", momentum_schedule, ("cosine", "constant"))
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_warmup_epochs, self.freeze_prototypes_epochs = (
            teacher_warmup_epochs,
            freeze_prototypes_epochs,
        )
        self.target_momentum, self.momentum_schedule = target_momentum, momentum_schedule
        self.center_momentum = center_momentum
        sizes = [projection_hidden, projection_hidden, projection_size]
        norm = self.head_norm if projection_norm else None
        self.projection = MLP("projection", sizes, norm=norm, stddev=0.02, activation="gelu")
        # as PyTorch's linear layer draws them: uniform, up to 1 / sqrt(projection_size)
        self.prototypes = Prototypes("prototypes", prototypes, (3 * projection_size) ** -0.5)
        self.teacher = MomentumNetwork(self.backbone, self.projection, self.prototypes)
        self.center = self.add_weight(
            "center",
            [prototypes],
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )

    @property
    def published(self) -> tuple[tf.keras.Model, ...]:
        return (self.teacher.backbone,)

    @property
    def published_head(self) -> tf.keras.layers.Layer:
        return self.teacher.twins[1]

    def start(self) -> None:
        self.teacher.copy()

    def epoch(self) -> tf.Tensor:
        """How many epochs have been, of Keras's floatx."""
        step = self.optimizer.iterations if getattr(self, "optimizer", None) else 0
        return tf.cast(step, tf.keras.backend.floatx()) / (self.epoch_steps or 1.0)

    def probe_logits(self, x: tf.Tensor, encoded: Any) -> dict[str, tf.Tensor]:
        """The probe reads the teacher, which has seen the large views: see `call`."""
        return {}

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        heads = {"z": self.projection, "scores": self.prototypes}
        outputs = self.embed(batch["image"], heads, training)  # NxVxE, NxVxK
        large = batch["image"][0]  # Nx2xSxSx3
        features = self.teacher.backbone(self.normalize(image_major(large)), training=training)[
            "pre_logits"
        ]
        found = {"targets": self.teacher.head(features, training)}
        if self.probe:
            found["probe"] = self.probe(tf.stop_gradient(features))
        found = {
            name: tf.reshape(x, [-1, large.shape[1], x.shape[-1]]) for name, x in found.items()
        }
        return {**found, "z": outputs["z"][:, :2], "scores": outputs["scores"]}

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        done = tf.minimum(self.epoch() / max(self.teacher_warmup_epochs, 1e-6), 1.0)
        first, last = (
            min(self.warmup_teacher_temperature, self.teacher_temperature),
            self.teacher_temperature,
        )
        found = dino(
            outputs["scores"],
            outputs["targets"],
            self.center,
            self.temperature,
            first + (last - first) * done,
        )
        return found.loss, {"entropy": found.entropy, "divergence": found.loss - found.entropy}

    def groups(self) -> list[Group]:
        """Prototypes are frozen by a rate of 0. Without gradients Adam's moments would be 0,
        and its first steps several times too long: bias correction counts the run's steps."""

        def learns(step: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.epoch() >= self.freeze_prototypes_epochs, tf.float32)

        return apart(super().groups(), Group([self.prototypes.kernel], rate=learns))

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        mean = replicas.mean(tf.reduce_mean(tf.stop_gradient(outputs["targets"]), [0, 1]))
        self.center.assign(self.center_momentum * self.center + (1 - self.center_momentum) * mean)
        length = self.total_steps if self.momentum_schedule == "cosine" else 0
        self.teacher.follow(
            cosine_momentum(self.target_momentum, self.optimizer.iterations - 1, length)
        )

    def chance(self) -> dict[str, float]:
        """Of prototypes that are all as likely."""
        level = math.log(self.prototypes.count)
        return {**super().chance(), "loss": level, "entropy": level, "divergence": 0.0}

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        share = measured["entropy"] / (math.log(self.prototypes.count) or 1.0)
        if not 0.001 < share < 0.99:
            how, remedy = (
                ("all prototypes alike", "lower") if share > 0.5 else ("one prototype", "raise")
            )
            return (
                f"the teacher has collapsed onto {how} (entropy {measured['entropy']:.3g}): "
                f"{remedy} teacher_temperature"
            )
        return super().alarm(measured)

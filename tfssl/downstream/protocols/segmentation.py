"""Semantic segmentation: a linear or a dilated head on each endpoint's map; mean intersection over
union.

Logits are resized to the masks' size (bilinear) for loss and prediction alike. A location of the
baseline `pixels` has a receptive field of 8x8 pixels.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Optional

import numpy as np
import tensorflow as tf

from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream import pictures
from tfssl.downstream.features.maps import Maps
from tfssl.downstream.protocols.dense import (
    HEADS,
    Dense,
    Example,
    Predictions,
    Task,
    cross_entropy,
    head,
    shaped_like,
)
from tfssl.errors import UserError, check_choice


class Segmentation(Dense):
    """Semantic segmentation: mean intersection over union.

    "per_class" has the IoU of each class, None of a class that neither occurs nor is predicted.

    Args:
      head: Linear; or two 3x3 convolutions of dilation 6 before it (dilated), as MoCo's FCN has.
      ignore: Value of the masks' unlabeled pixels (VOC: 255).
      mirrored: Train on horizontally flipped images too.
    """

    name, metric, needs = "segmentation", "mIoU", ("mask",)
    flag_names = {"ignore": "ignore_class"}
    expense = 7
    repeated = ("head",)

    def __init__(
        self,
        head: Literal["linear", "dilated"] = "linear",
        ignore: int = 255,
        mirrored: bool = False,
        **dense: Any,
    ) -> None:
        super().__init__(**dense)
        check_choice("head", head, HEADS)
        self.head, self.ignore, self.mirrored = head, ignore, mirrored

    def task(self, size: tuple[int, int], seed: int) -> Task:
        return SegmentationTask(self.head, self.ignore, size, seed, self.mirrored)


class SegmentationTask(Task):
    """Prediction of a class for each pixel."""

    def __init__(self, head: str, ignore: int, *common: Any) -> None:
        super().__init__(*common)
        self.kind, self.ignore = head, ignore

    def read(self, example: Example) -> tuple[tf.Tensor, Example]:
        mask = shaped_like(example["mask"], example["image"])
        mask = tf.image.resize(mask[..., None], self.size, "nearest")[..., 0]
        return image.resize(example["image"], self.size), {"mask": mask}

    def mirror(self, picture: tf.Tensor, annotations: Example) -> tuple[tf.Tensor, Example]:
        return picture[:, ::-1], {"mask": annotations["mask"][:, ::-1]}

    def prepare(self, maps: Maps, source: Source) -> None:
        self.classes = int(self.targets(maps)["mask"].max()) + 1
        names = (
            source.class_names if source.num_classes is None else None
        )  # else the names are those of the images' classes
        self.names = list(names or ())[: self.classes]
        if len(self.names) < self.classes:
            self.names = [f"class {c}" for c in range(self.classes)]
        if self.classes < 2:
            raise UserError(
                f"{source.spec} {source.split}: the masks tell no classes apart, with "
                f"{self.ignore} standing for none"
            )

    def targets(self, maps: Maps) -> dict[str, np.ndarray]:
        masks = np.stack([annotations["mask"] for annotations in maps.annotations]).astype(np.int16)
        masks[masks == self.ignore] = -1
        return {"mask": masks}

    def head(self) -> tf.keras.Model:
        return head(self.kind, self.classes)

    def loss(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        return cross_entropy(outputs, batch["mask"], self.size)

    def decode(self, outputs: tf.Tensor) -> Any:
        return tf.argmax(tf.image.resize(outputs, self.size), -1, tf.int32)

    def measure(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> dict[str, Any]:
        masks = ((prediction, self.targets_of(maps, i)) for prediction, i in predicted)
        value, per_class = iou(masks, self.occurring(maps, images))
        return {"value": value, "per_class": per_class}

    def tested(self, maps: Maps) -> bool:
        return any(
            (annotations["mask"].astype(np.int32) != self.ignore).any()
            for annotations in maps.annotations
        )

    def targets_of(self, maps: Maps, number: int) -> np.ndarray:
        mask = maps.annotations[number * maps.views]["mask"].astype(np.int32)
        return np.where(mask == self.ignore, -1, mask)

    def occurring(self, maps: Maps, images: Iterable[int]) -> int:
        """The number of classes that were learned or that these images show: what no image of the
        training split showed cannot be predicted, and counts as missed."""
        return max([self.classes, *(int(self.targets_of(maps, i).max()) + 1 for i in images)])

    def picture(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> Optional[bytes]:
        classes = self.occurring(maps, images)
        colors = pictures.colors(classes)
        names = [*self.names, *(f"class {c}" for c in range(self.classes, classes))]
        rows = []
        for prediction, i in predicted:
            truth = self.targets_of(maps, i)
            rows.append((maps.shown[i], colors[truth], colors[prediction]))
        return pictures.grid(rows, ("image", "mask", "predicted"), names, colors)


def iou(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: int
) -> tuple[float, list[Optional[float]]]:
    """(mean IoU, IoU of each class) of pairs (predicted, true) int [H, W] below `classes`, true -1
    where there is no class; None for a class that neither occurs nor is predicted, which the mean
    leaves out."""
    confusion = np.zeros([classes, classes], np.int64)
    for prediction, truth in pairs:
        known = truth >= 0
        confusion += np.bincount(
            truth[known] * classes + prediction[known], minlength=classes**2
        ).reshape(classes, classes)
    hit, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    each = [float(h / u) if u else None for h, u in zip(hit, union)]
    return float(np.mean([v for v in each if v is not None])), each

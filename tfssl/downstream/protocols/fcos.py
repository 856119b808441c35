"""FCOS: an anchor-free detector on a pyramid of maps (Tian et al., ICCV 2019, arXiv 1904.01355),
frozen or fine-tuned.

    levels:      the tower's levels that a module publishes (t3, t4, ...: `--neck_tower`), or its
                 pyramid's (p3, p4, ...: `--neck=fpn`), or its three coarsest maps whose sides
                 halve, and a new pyramid on them (`necks.FPN`, with GroupNorm), which adds one
                 coarser level
    head:        `layers` times a 3x3 convolution to `units` channels, GroupNorm, ReLU; a tower for
                 classes and one for boxes, shared by all levels
    place:       the logit of each class; the distances to the four sides, stride * exp(s x) with a
                 learned factor s of each level (the paper's form; later code has relu); the logit
                 of its centerness
    assignment:  a place belongs to the smallest object in which it lies, within 1.5 strides of the
                 center, and whose farthest side is in the level's range: up to 8 strides, from
                 the 8 strides of the level before on (the paper's 64, 128, 256 for strides 8, 16
                 and 32); the first level's begins with 0, the last one's has no end
    loss:        focal loss / positive places + (1 - GIoU), weighted by centerness, / the sum of
                 these + binary cross-entropy of the centerness / positive places
    prediction:  score = sqrt(class * centerness); the best 1,000 places of each level; non-maximum
                 suppression for each class at IoU 0.6; at most 100 boxes

What differs from the published recipe: Adam with a cosine, images of one size, random scales drawn
once (`jitter`), the least score (0.01 of the score, not 0.05 of the class).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.backbones.necks import FPN
from tfssl.backbones.norm import GroupNorm
from tfssl.data.sources.base import Source
from tfssl.downstream.detector import Detector
from tfssl.downstream.features.maps import image_sides
from tfssl.downstream.protocol import Data
from tfssl.downstream.protocols.dense import DenseModel, Example, Task
from tfssl.downstream.protocols.detection import (
    LEAST,
    MOST,
    OVERLAP,
    RADIUS,
    RARE,
    Detection,
    DetectionTask,
    fitted,
    last,
    locations,
    spacing,
    tower,
)
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.losses import replicas
from tfssl.losses.detection import centerness, overlaps

REACH = 8.0  # of a level, in strides: the farthest side of an object that is its
BEST = 1000  # places of a level that non-maximum suppression sees
_LEVEL = re.compile(r"[pt]\d+")  # of a pyramid, and of the tower behind it


class FCOS(Detection):
    """Object detection on a pyramid of maps: AP50, AP75, COCO's and Pascal VOC's AP.

    Images, views and figures are those of `detection`, which is the probe of single maps.

    Args:
      neck_width: Channels of the pyramid that is learned where the module publishes none.
    """

    name = "fcos"
    flag_names = {"neck_width": "fcos_neck_width"}
    repeated = ("layers", "units", "jitter", "neck_width")

    def __init__(self, neck_width: int = 128, **detection: Any) -> None:
        super().__init__(**detection)
        if neck_width < 1:
            raise UserError(f"neck_width={neck_width} is a number of channels: at least 1")
        self.neck_width, self._published = neck_width, False

    def levels(self, endpoint: str) -> list[str]:
        return endpoint.split("+")

    def task(self, size: tuple[int, int], seed: int) -> Task:
        views = self.jittered_views if self.jitter != [1.0, 1.0] else 0
        width = 0 if self._published else self.neck_width
        scales = self.jitter
        return FCOSTask(width, self.layers, self.units, scales, views, size, seed, self.mirrored)

    def endpoints(
        self, data: Data[Source], names: Sequence[str] | None = None, pixels: bool = True
    ) -> list[str]:
        """One: the names of the maps, joined by "+"; of `names`, single ones or such."""
        module = data.required_module
        shapes = {
            name: shape
            for name, shape in module.shapes(image_sides(data.train, self.size)).items()
            if len(shape) == 3
        }
        if names is None:
            levels = [name for name in shapes if _LEVEL.fullmatch(name)]
            found = [name for name in levels if name[0] == levels[-1][0]] or pyramid(shapes)
        else:
            found = [one for name in names for one in self.levels(name)]
            unknown = [name for name in found if name not in shapes]
            if unknown:
                raise UserError(
                    f"module {module.handle!r}: {', '.join(unknown)} is no map; there is "
                    f"{', '.join(shapes)}"
                )
        if len(found) < 2 or not _halve([shapes[name] for name in found]):
            has = ", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in shapes.items())
            raise UserError(
                f"{self.name} needs two maps or more whose sides halve, the finest first, and "
                f"module {module.handle!r} has {has or 'no map'}"
            )
        return ["+".join(found)]

    def run(self, data: Data[Source], endpoints: Sequence[str]) -> Iterator[Result]:
        for endpoint in endpoints:
            self._published = all(_LEVEL.fullmatch(name) for name in self.levels(endpoint))
            for result in super().run(data, [endpoint]):
                own = {"neck_width": 0} if self._published else {}
                yield dataclasses.replace(result, details={**result.details, **own})


def _halve(shapes: Sequence[Sequence[int]]) -> bool:
    return all(
        tuple(math.ceil(side / 2) for side in one[:2]) == tuple(other[:2])
        for one, other in zip(shapes, shapes[1:])
    )


def pyramid(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The deepest map of each size, the three coarsest of more than one place whose sides halve,
    the finest first; `shapes` {name: (h, w, C)} in order of depth."""
    deepest = {tuple(shape[:2]): name for name, shape in shapes.items() if max(shape[:2]) > 1}
    found: list[str] = []
    for name in reversed(list(deepest.values())):
        if len(found) < 3 and (not found or _halve([shapes[name], shapes[found[0]]])):
            found.insert(0, name)
    return found


class FCOSTask(DetectionTask):
    """Prediction of boxes on several maps; outputs are a list, [N, h, w, K + 5] of each level."""

    def __init__(self, neck_width: int, *detection: Any) -> None:
        super().__init__(*detection)
        self.neck_width = neck_width

    def head(self) -> tf.keras.Model:
        return Head(self.layers, self.units, len(self.names), self.neck_width)

    def geometry(self, outputs: Sequence[tf.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all places, level after level: centers [L, 2] in pixels, strides [L, 2], and the range
        of the farthest side [L, 2]."""
        places, strides, ranges, begin = [], [], [], 0.0
        for i, output in enumerate(outputs):
            places.append(locations(self.size, output.shape[1:3]))
            stride, count = spacing(self.size, output.shape[1:3]), len(places[-1])
            end = float("inf") if i == len(outputs) - 1 else REACH * float(stride.mean())
            strides.append(np.tile(stride, [count, 1]))
            ranges.append(np.tile(np.array([begin, end], np.float32), [count, 1]))
            begin = end
        return np.concatenate(places), np.concatenate(strides), np.concatenate(ranges)

    def split_outputs(self, outputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """-> (logits of classes [N, L, K], boxes in pixels [N, L, 4], logits of the centerness [N,
        L])."""
        channels = outputs[0].shape[-1]
        places, strides, _ = self.geometry(outputs)
        flat = tf.concat(
            [tf.reshape(x, [-1, x.shape[1] * x.shape[2], channels]) for x in outputs], 1
        )
        logits, ends, quality = tf.split(flat, [channels - 5, 4, 1], -1)
        ends = np.tile(strides, [1, 2]) * tf.exp(tf.clip_by_value(ends, -8.0, 8.0))
        boxes = tf.concat([places - ends[..., :2], places + ends[..., 2:]], -1)
        return logits, boxes, quality[..., 0]

    def loss(self, outputs: Sequence[tf.Tensor], batch: Example) -> tf.Tensor:
        logits, boxes, quality = self.split_outputs(outputs)
        places, strides, ranges = self.geometry(outputs)
        owner, positive = assign(places, strides, ranges, batch["boxes"], batch["classes"] >= 0)
        positive, truth, count, of_classes = self.of_objects(logits, owner, positive, batch)
        central = centerness(tf.concat([places - truth[..., :2], truth[..., 2:] - places], -1))
        central = tf.where(positive, tf.cast(central, logits.dtype), 0.0)
        _, generalized = overlaps(boxes, tf.cast(truth, boxes.dtype))
        of_boxes = tf.reduce_sum(central * tf.where(positive, 1 - generalized, 0.0))
        of_quality = tf.nn.sigmoid_cross_entropy_with_logits(central, quality)
        of_quality = tf.reduce_sum(tf.where(positive, of_quality, 0.0))
        weight = tf.maximum(replicas.total(tf.reduce_sum(central)), 1e-6)
        return (of_classes + of_quality) / count + of_boxes / weight

    def decode(self, outputs: Sequence[tf.Tensor]) -> Any:
        logits, boxes, quality = self.split_outputs(outputs)
        boxes = tf.clip_by_value(boxes, 0.0, np.tile(self.size, 2))
        scores = tf.sqrt(tf.sigmoid(logits) * tf.sigmoid(quality)[..., None])
        best, begin = [], 0
        for output in outputs:
            count = output.shape[1] * output.shape[2]
            level = tf.reduce_max(scores[:, begin : begin + count], -1)
            best.append(begin + tf.math.top_k(level, min(count, BEST)).indices)
            begin += count
        kept = tf.concat(best, 1)
        boxes, scores = (
            tf.cast(tf.gather(x, kept, batch_dims=1), tf.float32) for x in (boxes, scores)
        )
        found = tf.image.combined_non_max_suppression(
            boxes[:, :, None], scores, MOST, MOST, OVERLAP, LEAST, clip_boxes=False
        )
        return dict(zip(("boxes", "scores", "classes", "count"), found))

    def published(self, network: DenseModel) -> Detector:
        return Detector(
            functools.partial(fitted, size=self.size),
            lambda images: self.decode(network.of_images(images)),
            self.size,
            self.names,
            network.module,
            "+".join(network.name),
            network.variables,
            network.trainable_variables,
            {"layers": self.layers, "units": self.units, "neck_width": self.neck_width},
        )


def assign(
    places: np.ndarray, strides: np.ndarray, ranges: np.ndarray, boxes: tf.Tensor, real: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The object that each place is assigned to.

    Args:
      places: [L, 2], centers in pixels; strides: [L, 2]; ranges: [L, 2], least and largest distance
        to the farthest side, both allowed.
      boxes: [N, M, 4]; real: bool [N, M], False for padding.

    Returns:
      (int32 [N, L], the object; bool [N, L], whether there is one).
    """
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]  # Nx1xMx2
    at = places[None, :, None]
    ends = tf.concat([at - low, high - at], -1)  # NxLxMx4
    far = tf.abs(at - (low + high) / 2) / strides[None, :, None]
    fits = tf.reduce_all(far < RADIUS, -1) & (tf.reduce_min(ends, -1) > 0) & real[:, None]
    side = tf.reduce_max(ends, -1)
    fits &= (side >= ranges[None, :, None, 0]) & (side <= ranges[None, :, None, 1])
    area = tf.where(fits, tf.reduce_prod(high - low, -1), np.inf)  # NxLxM
    return tf.argmin(area, -1, tf.int32), tf.reduce_min(area, -1) < np.inf


class Head(tf.keras.Model):
    """Maps [N, h, w, C] of several levels -> [N, h, w, K + 5] of each.

    Logits of classes; logarithms of the distances to the sides, in strides (top, left, bottom,
    right); logit of the centerness.

    Args:
      layers, units: of the two towers.
      classes: K.
      neck_width: of a pyramid on the maps, which adds a level; 0: the maps are the levels.
    """

    def __init__(self, layers: int, units: int, classes: int, neck_width: int = 0) -> None:
        super().__init__()
        self.fpn: Any = None
        self._width = neck_width
        self.of_classes, self.of_boxes = tower(layers, units), tower(layers, units)
        self.classes = last(classes, RARE)
        # 4 strides at first, the middle of a level's range being 4 to 8 of the farthest side
        self.sides, self.quality = last(4, math.log(4.0)), last(1)
        self.factors: list[tf.Variable] = []

    def build(self, shapes: list[tuple[int | None, ...]]) -> None:
        """Create all variables, for maps of these shapes."""
        if self._width:
            groups = int(np.gcd(self._width, 32))
            self.fpn = FPN(
                self._width, len(shapes), False, lambda name: GroupNorm(groups=groups, name=name)
            )
            self.fpn.build_maps([shape[-1] for shape in shapes])
        levels = len(shapes) + (1 if self._width else 0)
        self.factors = [
            self.add_weight(name=f"factor{i}", shape=[], initializer="ones") for i in range(levels)
        ]
        super().build(shapes)

    def call(self, maps: list[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        levels = self.fpn(maps, training=training) if self.fpn is not None else maps
        found = []
        for x, factor in zip(levels, self.factors):
            of_boxes = self.of_boxes(x, training=training)
            classes = self.classes(self.of_classes(x, training=training))
            found.append(
                tf.concat([classes, factor * self.sides(of_boxes), self.quality(of_boxes)], -1)
            )
        return found

"""Object detection, the probe of single maps: an anchor-free head on each endpoint's map, frozen or
fine-tuned; AP50, AP75 and COCO's AP by pycocotools, and Pascal VOC's AP of 11 points. `fcos` is the
detector on several maps at once.

    tower:       `layers` times a 3x3 convolution to `units` channels, GroupNorm, ReLU; one for
                 classes, one for boxes
    location:    the logit of each class; a box, by its center (in strides from the location) and
                 the logarithms of its sides (over a typical one); the logit of its quality, the
                 predicted IoU with the object
    loss:        focal loss (Lin et al., arXiv 1708.02002; alpha 0.25, gamma 2) + 1 - GIoU
                 (Rezatofighi et al., arXiv 1902.09630) + binary cross-entropy of the quality; the
                 last two at locations with an object; each divided by the number of these
    prediction:  score = sqrt(class * quality); non-maximum suppression for each class at IoU 0.6;
                 at most 100 boxes

Why this head: it needs no proposals and no anchors to tune to a data set, takes one map of any
stride, and its shapes are static. It is FCOS (Tian et al., arXiv 1904.01355) at one level, with
boxes by center and sides, so that a location beside a small object can predict it too. A location
is assigned to the smallest object whose center is within 1.5 strides, if it lies within the object,
or is the nearest to its center. Published evaluations train Fast or Faster R-CNN on frozen or
fine-tuned backbones: this protocol compares encoders, and its figures are not comparable to theirs.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import numpy as np
import tensorflow as tf

from tfssl.backbones.norm import GroupNorm
from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream import pictures
from tfssl.downstream.features.maps import Maps
from tfssl.downstream.metrics import boxes as measures
from tfssl.downstream.protocols.dense import Dense, Example, Predictions, Task, View
from tfssl.errors import UserError
from tfssl.losses import replicas
from tfssl.losses.detection import focal, overlaps

RADIUS = 1.5  # of the locations around an object's center that are assigned to it, in strides
RARE = -math.log((1 - 0.01) / 0.01)  # the logit of the initial probability of each class
# of the predictions: IoU that is suppressed, least score, number in an image
OVERLAP, LEAST, MOST = 0.6, 0.01, 100


class Detection(Dense):
    """Object detection: AP50.

    Images are scaled to fit `size`, and padded with black below or to the right. "coco_ap" is AP
    over IoUs from 0.5 to 0.95, "per_class" {name: AP50}. Difficult objects and crowds are ignored
    in training and evaluation.

    Args:
      layers: Convolutions of each of detection's two towers (FCOS: 4).
      units: Channels of the towers (FCOS: 256).
      mirrored: Train on horizontally flipped images too.
      jitter: LEAST,LARGEST scale of further views of each training image, uniformly distributed:
        enlarged and cropped, or reduced and padded with black, at a random location (large-scale
        jitter: 0.1,2; Ghiasi et al., arXiv 2012.07177); 1,1: none.
      jittered_views: Number of such views, half of them flipped where `mirrored`; they are drawn
        once. An epoch has all views.
      epochs: Passes over the images.
      learning_rate: Of Adam, at the first step; it falls along a cosine.
    """

    name, metric, needs = "detection", "AP50", ("boxes",)
    flag_names = {
        "layers": "detection_layers",
        "units": "detection_units",
        "jitter": "detection_jitter",
        "jittered_views": "",
    }
    expense = 9
    repeated: ClassVar[tuple[str, ...]] = ("layers", "units", "jitter")

    def __init__(
        self,
        layers: int = 2,
        units: int = 128,
        mirrored: bool = True,
        jitter: Sequence[float] = (1.0, 1.0),
        jittered_views: int = 4,
        epochs: int = 40,
        learning_rate: float = 0.001,
        **dense: Any,
    ) -> None:
        super().__init__(epochs=epochs, learning_rate=learning_rate, **dense)
        self.layers, self.units, self.mirrored = layers, units, mirrored
        self.jitter, self.jittered_views = list(check_jitter(jitter)), jittered_views

    def task(self, size: tuple[int, int], seed: int) -> Task:
        views = self.jittered_views if self.jitter != [1.0, 1.0] else 0
        return DetectionTask(self.layers, self.units, self.jitter, views, size, seed, self.mirrored)


def check_jitter(jitter: Sequence[float]) -> tuple[float, float]:
    """(least, largest) scale as floats; UserError unless 0 < least <= largest <= 8."""
    try:
        low, high = (float(value) for value in jitter)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not 0 < low <= high <= 8:
        raise UserError(
            f"detection: jitter={jitter}: give the least and the largest scale, such as 0.5,2"
        )
    return low, high


def fitted(picture: tf.Tensor, size: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """An image scaled to fit, and padded with black below or to the right.

    Args:
      picture: encoded, or uint8 [H, W, 3].
      size: (height, width) in pixels.

    Returns:
      (uint8 [*size, 3]; float32 [2], the sides of the image within it; float32 [2], pixels of the
      image for each of its own: times this, boxes are in pixels of the image).
    """
    sides = tf.cast(image.image_size(picture), tf.float32)
    scale = tf.reduce_min(tf.constant(size, tf.float32) / sides)
    inner = tf.maximum(tf.cast(tf.round(sides * scale), tf.int32), 1)
    pixels = tf.cond(
        scale < 1,
        lambda: image.resize(picture, tf.unstack(inner, 2), "area"),
        lambda: image.resize(picture, tf.unstack(inner, 2)),
    )
    pixels = tf.ensure_shape(tf.image.pad_to_bounding_box(pixels, 0, 0, *size), [*size, 3])
    inner = tf.cast(inner, tf.float32)
    return pixels, inner, sides / inner


class DetectionTask(Task):
    """Prediction of boxes with classes."""

    def __init__(
        self,
        layers: int,
        units: int,
        scales: Sequence[float],
        jittered_views: int,
        *common: Any,
        **more: Any,
    ) -> None:
        super().__init__(*common, **more)
        self.layers, self.units, self.scales, self.jittered_views = (
            layers,
            units,
            scales,
            jittered_views,
        )

    def read(self, example: Example) -> tuple[tf.Tensor, Example]:
        pixels, inner, scale = fitted(example["image"], self.size)
        boxes = example["boxes"] * tf.tile(inner, [2])  # nx4, in pixels
        none = tf.zeros_like(example["classes"], tf.bool)
        crowd = example.get("crowd", none)
        annotations = {
            "boxes": boxes,
            "classes": example["classes"],
            "difficult": example.get("difficult", none) | crowd,
            "crowd": crowd,
            "inner": inner,
            "scale": scale,
        }
        return pixels, annotations

    def mirror(self, pixels: tf.Tensor, annotations: Example) -> tuple[tf.Tensor, Example]:
        top, left, bottom, right = tf.unstack(annotations["boxes"], axis=1)
        width = tf.cast(self.size[1], tf.float32)
        boxes = tf.stack([top, width - right, bottom, width - left], 1)
        return pixels[:, ::-1], {**annotations, "boxes": boxes}

    def others(self) -> list[View]:
        def of_number(number: int) -> View:
            def view(
                pixels: tf.Tensor, annotations: Example, index: tf.Tensor
            ) -> tuple[tf.Tensor, Example]:
                if self.mirrored and number % 2:
                    pixels, annotations = self.mirror(pixels, annotations)
                seed = tf.stack(
                    [tf.cast(index, tf.int64), tf.constant(self.seed * 1009 + number, tf.int64)]
                )
                draws = tf.random.stateless_uniform([3], seed)
                low, high = self.scales
                return self.rescaled(pixels, annotations, low + (high - low) * draws[0], draws[1:])

            return view

        return [*super().others(), *map(of_number, range(self.jittered_views))]

    def rescaled(
        self, pixels: tf.Tensor, annotations: Example, scale: tf.Tensor, location: tf.Tensor
    ) -> tuple[tf.Tensor, Example]:
        """The view of an image enlarged or reduced by `scale`, and cropped, or padded with black,
        at `location`.

        Args:
          pixels: uint8 [H, W, 3]; annotations: as of `read`.
          scale: of both sides, rounded to whole pixels.
          location: [2] in [0, 1), down and across; 0: the top, or the left.

        Returns:
          (uint8 [H, W, 3], annotations) with boxes clipped to the view: a box of which less than a
          quarter is visible is difficult; one that is outside has class -1.
        """
        size = tf.constant(self.size, tf.int32)
        sides = tf.maximum(tf.cast(tf.round(scale * tf.cast(size, tf.float32)), tf.int32), 1)
        margin = sides - size  # to crop; negative: to pad
        offset = tf.cast(tf.floor(location * tf.cast(tf.abs(margin) + 1, tf.float32)), tf.int32)
        cut, pad = tf.where(margin > 0, offset, 0), tf.where(margin < 0, offset, 0)
        resized = tf.cast(tf.round(tf.image.resize(pixels, sides, antialias=True)), tf.uint8)
        kept = tf.minimum(sides, size)
        resized = resized[cut[0] : cut[0] + kept[0], cut[1] : cut[1] + kept[1]]
        resized = tf.image.pad_to_bounding_box(resized, pad[0], pad[1], *self.size)
        factor = tf.cast(sides, tf.float32) / tf.cast(size, tf.float32)
        whole = annotations["boxes"] * tf.tile(factor, [2]) + tf.cast(
            tf.tile(pad - cut, [2]), tf.float32
        )
        boxes = tf.clip_by_value(whole, 0.0, tf.tile(tf.cast(size, tf.float32), [2]))
        visible_area, area = (tf.reduce_prod(b[:, 2:] - b[:, :2], 1) for b in (boxes, whole))
        difficult = annotations["difficult"] | (visible_area < 0.25 * area)
        classes = tf.where(
            visible_area > 0, annotations["classes"], tf.constant(-1, annotations["classes"].dtype)
        )
        view = {**annotations, "boxes": boxes, "classes": classes, "difficult": difficult}
        return tf.ensure_shape(resized, [*self.size, 3]), view

    def prepare(self, maps: Maps, source: Source) -> None:
        boxes = np.concatenate(
            [annotations["boxes"][annotations["classes"] >= 0] for annotations in maps.annotations]
        )
        if not len(boxes):
            raise UserError(
                f"{source.spec} {source.split}: no image shows an object: nothing to learn"
            )
        known = max(annotations["classes"].max(initial=0) for annotations in maps.annotations) + 1
        self.names = list(source.class_names or (f"class {c}" for c in range(known)))
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        self.typical = np.exp(np.log(sides).mean(0)).astype(np.float32)  # height, width in pixels

    def tested(self, maps: Maps) -> bool:
        return any((~annotations["difficult"]).any() for annotations in maps.annotations)

    def targets(self, maps: Maps) -> dict[str, np.ndarray]:
        most = max(len(annotations["boxes"]) for annotations in maps.annotations)
        count = len(maps.annotations)
        boxes = np.zeros([count, most, 4], np.float32)
        classes, difficult = np.full([count, most], -1, np.int32), np.zeros([count, most], bool)
        for i, annotations in enumerate(maps.annotations):
            n = len(annotations["boxes"])
            boxes[i, :n], classes[i, :n], difficult[i, :n] = (
                annotations[key] for key in ("boxes", "classes", "difficult")
            )
        return {"boxes": boxes, "classes": classes, "difficult": difficult}

    def head(self) -> tf.keras.Model:
        return Head(self.layers, self.units, len(self.names))

    def loss(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        logits, boxes, quality = self.split_outputs(outputs)  # NxLxK, NxLx4, NxL
        shape = outputs.shape[1:3]
        at, stride = locations(self.size, shape), spacing(self.size, shape)
        owner, positive = assign(at, batch["boxes"], batch["classes"] >= 0, stride)
        positive, truth, count, of_classes = self.of_objects(logits, owner, positive, batch)
        overlap, generalized = overlaps(boxes, tf.cast(truth, boxes.dtype))  # NxL each
        of_quality = tf.nn.sigmoid_cross_entropy_with_logits(tf.stop_gradient(overlap), quality)
        at_objects = tf.reduce_sum(tf.where(positive, 1 - generalized + of_quality, 0.0))
        return (of_classes + at_objects) / count

    def of_objects(
        self, logits: tf.Tensor, owner: tf.Tensor, positive: tf.Tensor, batch: Example
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What an assignment means for the loss.

        Args:
          logits: of classes, [N, L, K].
          owner: [N, L], the object of each location; positive: bool [N, L], whether there is one.
          batch: targets.

        Returns:
          (bool [N, L], locations that have an object which is not difficult; their boxes [N, L, 4];
          their number over all replicas, at least 1; the focal loss, summed over locations without
          a difficult object).
        """
        difficult = positive & tf.gather(batch["difficult"], owner, batch_dims=1)
        positive &= ~difficult
        labels = tf.where(positive, tf.gather(batch["classes"], owner, batch_dims=1), -1)
        losses = focal(logits, tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype))  # NxLxK
        losses = tf.where(difficult[..., None], tf.zeros_like(losses), losses)
        count = replicas.total(tf.reduce_sum(tf.cast(positive, logits.dtype)))
        truth = tf.gather(batch["boxes"], owner, batch_dims=1)
        return positive, truth, tf.maximum(count, 1.0), tf.reduce_sum(losses)

    def split_outputs(self, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[N, h, w, K + 5] -> (logits of classes [N, L, K], boxes in pixels [N, L, 4], logits of
        the quality [N, L])."""
        count, channels = outputs.shape[1] * outputs.shape[2], outputs.shape[3]
        flat = tf.reshape(outputs, [-1, count, channels])
        logits, shift, sides, quality = tf.split(flat, [channels - 5, 2, 2, 1], -1)
        shape = outputs.shape[1:3]
        center = locations(self.size, shape) + shift * spacing(self.size, shape)
        half = self.typical * tf.exp(tf.clip_by_value(sides, -6.0, 6.0)) / 2
        return logits, tf.concat([center - half, center + half], -1), quality[..., 0]

    def decode(self, outputs: tf.Tensor) -> Any:
        logits, boxes, quality = self.split_outputs(outputs)
        boxes = tf.clip_by_value(boxes, 0.0, np.tile(self.size, 2).astype(np.float32))
        scores = tf.sqrt(tf.sigmoid(logits) * tf.sigmoid(quality)[..., None])
        detections = tf.image.combined_non_max_suppression(
            boxes[:, :, None], scores, MOST, MOST, OVERLAP, LEAST, clip_boxes=False
        )
        return {
            "boxes": detections[0],
            "scores": detections[1],
            "classes": detections[2],
            "count": detections[3],
        }

    def measure(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> dict[str, Any]:
        truths, predictions = [], []
        for prediction, i in predicted:
            annotations, n = maps.annotations[i * maps.views], int(prediction["count"])
            # to pixels of the file, by which COCO's areas are defined
            inner, scale = (np.tile(annotations[key], 2) for key in ("inner", "scale"))
            hard = annotations["difficult"].astype(int) + annotations["crowd"]
            truths.append((annotations["boxes"] * scale, annotations["classes"], hard))
            predictions.append(
                (
                    np.minimum(prediction["boxes"][:n], inner) * scale,
                    prediction["classes"][:n].astype(int),
                    prediction["scores"][:n],
                )
            )
        return measures.average_precision(truths, predictions, self.names)

    def picture(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> Optional[bytes]:
        palette, rows = pictures.colors(len(self.names)), []
        for prediction, i in predicted:
            shown, truth = maps.shown[i], maps.annotations[i * maps.views]
            sure = prediction["scores"][: int(prediction["count"])] >= 0.5
            boxes, of_class = (
                prediction["boxes"][: len(sure)][sure],
                prediction["classes"][: len(sure)][sure].astype(int),
            )
            rows.append(
                (
                    pictures.boxed(shown, truth["boxes"], truth["classes"], palette),
                    pictures.boxed(shown, boxes, of_class, palette),
                )
            )
        return pictures.grid(
            rows, ("objects", "predicted (score 0.5 or more)"), self.names, palette
        )


class Head(tf.keras.Model):
    """[N, h, w, C] -> [N, h, w, K + 5].

    Logits of classes, shift of the center (2), logarithms of the sides (2), logit of the quality.
    """

    def __init__(self, layers: int, units: int, classes: int) -> None:
        super().__init__()
        self.of_classes, self.of_boxes = tower(layers, units), tower(layers, units)
        self.classes, self.boxes = last(classes, RARE), last(5)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        boxes = self.boxes(self.of_boxes(x, training=training))
        return tf.concat([self.classes(self.of_classes(x, training=training)), boxes], -1)


def tower(layers: int, units: int) -> tf.keras.Model:
    """`layers` times a 3x3 convolution to `units` channels, GroupNorm and ReLU."""
    block = [
        layer
        for _ in range(layers)
        for layer in (
            tf.keras.layers.Conv2D(units, 3, padding="same", use_bias=False),
            GroupNorm(groups=math.gcd(units, 32)),
            tf.keras.layers.ReLU(),
        )
    ]
    return tf.keras.Sequential(block or [tf.keras.layers.Activation("linear")])


def last(channels: int, bias: float = 0.0) -> tf.keras.layers.Layer:
    """The 3x3 convolution to a tower's predictions, small at first."""
    return tf.keras.layers.Conv2D(
        channels,
        3,
        padding="same",
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=tf.keras.initializers.Constant(bias),
    )


def spacing(size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Pixels between adjacent locations of a map [h, w] on an image [H, W], down and across:
    float32 [2]. Layers that halve a side round up, so that h = ceil(H / stride) for a power of two;
    where there is none, h locations share H."""

    def of(side: int, places: int) -> float:
        power = 1 << (math.ceil(side / places) - 1).bit_length()
        return power if math.ceil(side / power) == places else side / places

    return np.array([of(*pair) for pair in zip(size, shape)], np.float32)


def locations(size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The center (y, x) in pixels of each location of a map [h, w] on an image [H, W], which all
    of them together lie in the middle of: float32 [L, 2]."""
    rows, columns = (
        (side - (places - 1) * stride) / 2 + stride * np.arange(places)
        for side, places, stride in zip(size, shape, spacing(size, shape))
    )
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


def assign(
    locations: np.ndarray, boxes: tf.Tensor, real: tf.Tensor, stride: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """The object that each location is assigned to.

    Args:
      at: [L, 2], centers of the locations in pixels.
      boxes: [N, M, 4]; real: bool [N, M], False for padding.
      stride: [2].

    Returns:
      (int32 [N, L], the object; bool [N, L], whether there is one).
    """
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]  # Nx1xMx2
    offset = tf.abs(locations[None, :, None] - (low + high) / 2) / stride  # NxLxMx2
    inside = tf.reduce_all(
        (locations[None, :, None] >= low) & (locations[None, :, None] <= high) & (offset <= RADIUS),
        -1,
    )
    nearest = tf.reduce_all(offset <= 0.5, -1)
    area = tf.reduce_prod(high - low, -1)  # Nx1xM
    area = tf.where((inside | nearest) & real[:, None], area, np.inf)  # NxLxM
    return tf.argmin(area, -1, tf.int32), tf.reduce_min(area, -1) < np.inf

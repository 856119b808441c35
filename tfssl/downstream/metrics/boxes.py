"""Average precision of boxes: COCO's, by pycocotools, and Pascal VOC's of 11 points."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfssl.downstream.metrics import average_precision as ranking

# of each image: boxes, classes, how hard they are or scores
Boxes = Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]


def average_precision(truths: Boxes, predictions: Boxes, names: Sequence[str]) -> dict[str, Any]:
    """AP50, COCO's AP and AP50 of each class, by pycocotools.

    Args:
      truths: for each image (boxes [n, 4] in pixels, classes int [n], how hard int or bool [n]: 1
        difficult, whose matches count neither way; 2 a crowd, likewise, by COCO's rule that a box
        within it matches it, whatever its size).
      predictions: for each image (boxes [n, 4], classes int [n], scores [n]).
      names: of the classes.

    Returns:
      {"value": AP50 (NaN without objects), "ap75": ..., "coco_ap": ..., "voc_ap": see
      `voc_average_precision`, "per_class": {name: AP50, None for a class without objects}}.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Judge(COCOeval):
        """Difficult objects may be matched repeatedly, as crowds, but by their IoU."""

        def computeIoU(self, image: int, category: int) -> Any:
            alone = [g for g in self._gts[image, category] if g["iscrowd"] and not g["crowd"]]
            for entry in alone:
                entry["iscrowd"] = 0
            overlaps = super().computeIoU(image, category)
            for entry in alone:
                entry["iscrowd"] = 1
            return overlaps

    def entry(i: int, box: np.ndarray, c: int, **more: float) -> dict[str, Any]:
        top, left, bottom, right = map(float, box)
        return {
            "image_id": i,
            "category_id": int(c),
            "bbox": [left, top, right - left, bottom - top],
            **more,
        }

    with contextlib.redirect_stdout(io.StringIO()):
        truth, detected = COCO(), COCO()
        common = {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": c} for c in range(len(names))],
        }
        lists = [
            [
                entry(i, box, c, iscrowd=int(hard > 0), crowd=int(hard > 1))
                for i, (boxes, classes, hardness) in enumerate(truths)
                for box, c, hard in zip(boxes, classes, hardness)
            ],
            [
                entry(i, box, c, score=float(score))
                for i, (boxes, classes, scores) in enumerate(predictions)
                for box, c, score in zip(boxes, classes, scores)
            ],
        ]
        for index, entries in zip((truth, detected), lists):
            for number, item in enumerate(entries, 1):
                item.update(id=number, area=item["bbox"][2] * item["bbox"][3])
            index.dataset = {**common, "annotations": entries}
            index.createIndex()
        judge = Judge(truth, detected, "bbox")
        judge.evaluate()
        judge.accumulate()
    # IoU x recall x class, of all sizes, 100 predictions
    precision = judge.eval["precision"][:, :, :, 0, -1]
    by_class = [
        np.mean(precision[0, :, c]) if (precision[0, :, c] > -1).all() else None
        for c in range(len(names))
    ]
    known = precision[:, :, [c for c, value in enumerate(by_class) if value is not None]]
    of_voc = voc_average_precision(truths, predictions, len(names))
    mean = lambda values: float(values.mean()) if values.size else float("nan")  # noqa: E731
    return {
        "value": mean(known[0]),
        "ap75": mean(known[5]),
        "coco_ap": mean(known),
        "voc_ap": mean(of_voc[~np.isnan(of_voc)]),
        "per_class": {name: None if v is None else float(v) for name, v in zip(names, by_class)},
    }


def voc_average_precision(
    truths: Boxes, predictions: Boxes, classes: int, overlap: float = 0.5
) -> np.ndarray:
    """AP of 11 points of each class as in Pascal VOC 2007 (Everingham et al., IJCV 2010): float64
    [classes], NaN of a class without objects.

    By descending score each prediction is compared with the object of its class that it overlaps
    most: right where their IoU is at least `overlap` and no prediction before it took the object;
    of a difficult object it counts neither way. Boxes are in continuous coordinates: the devkit's
    are whole pixels, both ends included.

    Args:
      truths, predictions: see `average_precision`.
      overlap: IoU from which on a prediction is right.
    """
    values = np.full(classes, np.nan)
    for c in range(classes):
        objects = [(b[k == c], d[k == c]) for b, k, d in truths]
        total = sum(int(np.sum(~d.astype(bool))) for _, d in objects)
        if not total:
            continue
        ranked = [
            (-s, i, box)
            for i, (b, k, s_) in enumerate(predictions)
            for box, s in zip(b[k == c], s_[k == c])
        ]
        ranked.sort(key=lambda entry: entry[:2])
        taken = [np.zeros(len(d), bool) for _, d in objects]
        scores, right = [], []
        for negative, i, box in ranked:
            boxes, difficult = objects[i]
            shared = iou(box, boxes) if len(boxes) else np.zeros(1)
            best = int(np.argmax(shared))
            found = bool(shared[best] >= overlap)
            if found and difficult[best]:
                continue
            scores.append(-negative)
            right.append(found and not taken[i][best])
            if found:
                taken[i][best] = True
        values[c] = ranking.average_precision(
            np.array(right, bool), np.array(scores), "11-point", total
        )
    return values


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box [4] with each of [n, 4]: [n]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = np.prod(np.maximum(sides, 0), 1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1) + np.prod(box[2:] - box[:2])
    return both / np.maximum(areas - both, 1e-12)

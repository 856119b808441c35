"""Average precision of boxes: known cases, and pycocotools at VOC's recalls."""

import numpy as np
import pytest

from tfssl.downstream.metrics.boxes import average_precision, voc_average_precision


def test_average_precision_of_known_cases():
    names, none = ["a", "b", "c"], np.zeros(1, bool)
    truths = [(np.array([[0.0, 0, 10, 10]]), np.array([i % 2]), none) for i in range(4)]
    exact = [(boxes, classes, np.array([0.9])) for boxes, classes, _ in truths]
    found = average_precision(truths, exact, names)
    whole = dict.fromkeys(("value", "ap75", "coco_ap", "voc_ap"), 1.0)
    assert found == {**whole, "per_class": {"a": 1.0, "b": 1.0, "c": None}}
    # IoU 0.6: right at 0.5, 0.55 and 0.6 of COCO's ten thresholds
    shifted = [(boxes + [0, 2.5, 0, 2.5], classes, score) for boxes, classes, score in exact]
    found = average_precision(truths, shifted, names)
    assert found["value"] == 1 and found["coco_ap"] == pytest.approx(0.3)
    assert found["ap75"] == 0 and found["voc_ap"] == 1
    # one of two of class a; of class b a false answer above the two right ones: precision 2/3 all
    # along
    some = [exact[0], exact[1], (np.zeros([0, 4]), np.zeros(0, int), np.zeros(0)), exact[3]]
    some[0] = (
        np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]),
        np.array([0, 1]),
        np.array([0.9, 0.95]),
    )
    found = average_precision(truths, some, names)
    assert found["per_class"]["a"] == pytest.approx(
        51 / 101, abs=1e-6
    )  # recalls 0, 0.01, ... 0.5 of 101
    assert found["per_class"]["b"] == pytest.approx(2 / 3, abs=1e-6)
    # of the recalls 0, 0.1, ..., 1 class a reaches six; class b's precision is 2/3 all along
    assert found["voc_ap"] == pytest.approx((6 / 11 + 2 / 3) / 2)
    hard = [(boxes, classes, np.ones(1, bool)) for boxes, classes, _ in truths[:1]] + truths[1:]
    found = average_precision(hard, exact[:1] + exact[1:], names)
    assert (
        found["value"] == found["voc_ap"] == 1.0
    )  # an answer to a difficult object counts neither way
    # within a difficult object, at a hundredth of its IoU: wrong; within a crowd: neither
    truth = np.array([[0.0, 0, 100, 100], [0, 200, 50, 250]]), np.zeros(2, int)
    answers = [[0.0, 0, 10, 10], [0, 0, 99, 99], [0, 0, 98, 98], [0, 200, 50, 250]]
    answers = np.array(answers), np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.6])
    for hard, value in ((np.array([True, False]), 0.5), (np.array([2, 0]), 1.0)):
        found = average_precision([(*truth, hard)], [answers], ["a"])
        assert found["value"] == found["ap75"] == pytest.approx(value) and found["voc_ap"] == 0.5
    nothing = [(np.zeros([0, 4]), np.zeros(0, int), np.zeros(0))] * 4
    assert average_precision(truths, nothing, names)["value"] == 0


def test_voc_average_precision_is_that_of_coco_at_its_eleven_recalls():
    """pycocotools at IoU 0.5 and eleven recalls, where objects are far apart, so that both rules of
    matching agree; 9 and 12 objects of the classes: no recall is a tenth, which rounding could miss."""
    coco, judge = (
        pytest.importorskip("pycocotools.coco"),
        pytest.importorskip("pycocotools.cocoeval"),
    )
    truths, predictions, truth, found = [], [], coco.COCO(), coco.COCO()
    lists, rng = ([], []), np.random.default_rng(5)
    for i in range(7):
        boxes = np.array([[40.0 * k, 0, 40 * k + 20, 20] for k in range(3)])
        classes, hard = np.array([0, 1, i % 2 or i % 3 == 0]).astype(int), np.zeros(3, bool)
        guessed = np.concatenate(
            [boxes + rng.uniform(-5, 5, [3, 1]), boxes + rng.uniform(-3, 3, [3, 4])]
        )
        of_class = np.concatenate([classes, rng.integers(0, 2, 3)])
        scores = rng.permutation(100)[:6] / 100 + i / 1e4
        truths.append((boxes, classes, hard))
        predictions.append((guessed, of_class, scores))
        for entries, rows in zip(
            lists, (zip(boxes, classes, hard), zip(guessed, of_class, scores))
        ):
            for (top, left, bottom, right), c, last in rows:
                entry = {"image_id": i, "category_id": int(c), "id": len(entries) + 1}
                entry |= {"bbox": [left, top, right - left, bottom - top]}
                entry |= {"area": (right - left) * (bottom - top), "iscrowd": 0}
                entries.append({**entry, "score": float(last)})
    for index, entries in zip((truth, found), lists):
        index.dataset = {"images": [{"id": i} for i in range(7)], "annotations": entries}
        index.dataset["categories"] = [{"id": 0}, {"id": 1}]
        index.createIndex()
    reference = judge.COCOeval(truth, found, "bbox")
    reference.params.iouThrs = np.array([0.5])
    reference.params.recThrs = np.linspace(0, 1, 11)
    reference.evaluate()
    reference.accumulate()
    expected = reference.eval["precision"][0, :, :, 0, -1].mean(0)
    values = voc_average_precision(truths, predictions, 2)
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert (0.2 < values).all() and (values < 1).all()
    assert np.isnan(voc_average_precision(truths, predictions, 3)[2])  # no such object

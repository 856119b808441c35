"""FCOS: assignment, losses and suppression against naive loops; that it learns; what it refuses."""

import math

import numpy as np
import pytest
import rectangles
import tensorflow as tf
import tiny_modules

from tfssl import downstream
from tfssl.downstream.protocol import Data
from tfssl.downstream.protocols import fcos
from tfssl.errors import UserError
from tfssl.hub import load as modules

SIZE, SHAPES = (64, 96), ((16, 24), (8, 12), (4, 6))
STRIDES = (4, 8, 16)


def task_and_outputs(seed, classes=2, count=2):
    """A task, random outputs of three levels, and five objects per image, the last one absent."""
    rng = np.random.default_rng(seed)
    task = fcos.FCOSTask(0, 1, 8, (1.0, 1.0), 0, SIZE)
    task.names = ["a", "b"]
    outputs = [
        rng.normal(0, 1, [count, *shape, classes + 5]).astype(np.float32) for shape in SHAPES
    ]
    low = rng.uniform(0, [40, 60], [count, 5, 2])
    sides = rng.uniform([4, 4], [70, 90], [count, 5, 2])
    boxes = np.concatenate([low, np.minimum(low + sides, SIZE)], -1).astype(np.float32)
    boxes[:, 0] = [2, 3, 62, 95]  # for the last level
    batch = {
        "boxes": boxes,
        "classes": np.array([[0, 1, 1, 0, -1]] * count, np.int32),
        "difficult": np.array([[False, False, True, False, False]] * count),
    }
    return task, outputs, batch


def naive(boxes, real):
    """{(level, row, column): object}, by the definition."""
    owners, begin = {}, 0.0
    for level, (stride, (height, width)) in enumerate(zip(STRIDES, SHAPES)):
        end = 8 * stride if level < 2 else math.inf
        for row in range(height):
            for column in range(width):
                y, x, best = (row + 0.5) * stride, (column + 0.5) * stride, math.inf
                for m, (top, left, bottom, right) in enumerate(boxes.tolist()):
                    ends = y - top, x - left, bottom - y, right - x
                    near = 1.5 * stride > max(
                        abs(y - (top + bottom) / 2), abs(x - (left + right) / 2)
                    )
                    area = (bottom - top) * (right - left)
                    in_range = begin <= max(ends) <= end
                    if real[m] and near and min(ends) > 0 and in_range and area < best:
                        owners[level, row, column], best = m, area
        begin = end
    return owners


def test_assignment_and_losses_are_those_of_naive_loops():
    task, outputs, batch = task_and_outputs(0)
    places, strides, ranges = task.geometry([tf.constant(x) for x in outputs])
    np.testing.assert_array_equal(ranges[[0, 384, 480]], [[0, 32], [32, 64], [64, np.inf]])
    real = batch["classes"] >= 0
    owner, positive = fcos.assign(places, strides, ranges, tf.constant(batch["boxes"]), real)
    begins, seen = (0, 384, 480), set()
    of_classes = of_quality = of_boxes = count = weights = 0.0
    for n in range(2):
        owners = naive(batch["boxes"][n], real[n])
        assert int(np.sum(positive[n])) == len(owners)
        for level, (height, width) in enumerate(SHAPES):
            for row, column in np.ndindex(height, width):
                value = outputs[level][n, row, column].astype(np.float64)
                m = owners.get((level, row, column))
                if m is not None:
                    assert int(owner[n, begins[level] + row * width + column]) == m
                    seen.add(level)
                if m is not None and batch["difficult"][n, m]:
                    continue
                label = -1 if m is None else batch["classes"][n, m]
                for c, logit in enumerate(value[:2]):
                    p = 1 / (1 + np.exp(-logit))
                    right, alpha = (p, 0.25) if c == label else (1 - p, 0.75)
                    of_classes -= alpha * (1 - right) ** 2 * np.log(right)
                if m is None:
                    continue
                stride = STRIDES[level]
                y, x = (row + 0.5) * stride, (column + 0.5) * stride
                top, left, bottom, right = batch["boxes"][n, m].astype(np.float64)
                t, e, b, r = y - top, x - left, bottom - y, right - x
                central = np.sqrt(min(t, b) / max(t, b) * min(e, r) / max(e, r))
                pt, pl, pb, pr = stride * np.exp(value[2:6])
                both = (min(t, pt) + min(b, pb)) * (min(e, pl) + min(r, pr))
                union = (t + b) * (e + r) + (pt + pb) * (pl + pr) - both
                hull = (max(t, pt) + max(b, pb)) * (max(e, pl) + max(r, pr))
                of_boxes += central * (1 - both / union + (hull - union) / hull)
                p = 1 / (1 + np.exp(-value[6]))
                of_quality -= central * np.log(p) + (1 - central) * np.log(1 - p)
                count, weights = count + 1, weights + central
    assert seen == {0, 1, 2} and count > 10
    expected = (of_classes + of_quality) / count + of_boxes / weights
    batch = {key: tf.constant(value) for key, value in batch.items()}
    loss = task.loss([tf.constant(x) for x in outputs], batch)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_answers_are_those_of_a_naive_suppression():
    task, outputs, _ = task_and_outputs(1, count=1)
    logits, boxes, quality = (
        v.numpy()[0] for v in task.split_outputs([tf.constant(x) for x in outputs])
    )
    boxes = np.clip(boxes, 0, [*SIZE, *SIZE])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    scores, kept = np.sqrt(sigmoid(logits) * sigmoid(quality)[:, None]), []
    area = lambda b: (b[2] - b[0]) * (b[3] - b[1])  # noqa: E731
    for c in range(2):
        mine = []
        for i in np.argsort(-scores[:, c]):
            for j in mine:
                sides = np.minimum(boxes[i][2:], boxes[j][2:]) - np.maximum(
                    boxes[i][:2], boxes[j][:2]
                )
                both = np.prod(np.maximum(sides, 0))
                if both > 0.6 * (area(boxes[i]) + area(boxes[j]) - both):
                    break
            else:
                mine.append(i)
        kept += [(scores[i, c], c, i) for i in mine[:100]]
    kept = sorted(kept, reverse=True)[:100]
    found = {key: v.numpy()[0] for key, v in task.decode([tf.constant(x) for x in outputs]).items()}
    assert found["count"] == len(kept) == 100
    np.testing.assert_allclose(found["scores"], [s for s, _, _ in kept], rtol=1e-5)
    assert found["classes"].astype(int).tolist() == [c for _, c, _ in kept]
    np.testing.assert_allclose(found["boxes"], [boxes[i] for _, _, i in kept], atol=1e-3)


def test_boxes_are_decoded_as_by_hand():
    """Distances are stride * exp(output), from the middle of the place."""
    task, outputs, _ = task_and_outputs(2, count=1)
    boxes = task.split_outputs([tf.constant(x) for x in outputs])[1].numpy()[0]
    row = 0
    for stride, level in zip(STRIDES, outputs):
        for i, j in np.ndindex(level.shape[1:3]):
            top, left, bottom, right = stride * np.exp(level[0, i, j, 2:6].astype(np.float64))
            y, x = (i + 0.5) * stride, (j + 0.5) * stride
            np.testing.assert_allclose(
                boxes[row], [y - top, x - left, y + bottom, x + right], rtol=1e-4, atol=1e-3
            )
            row += 1
    assert row == len(boxes)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return rectangles.sources(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return modules.load(tiny_modules.save_ours(tmp_path_factory.mktemp("module")))


@pytest.mark.parametrize("trunk, epochs", [("frozen", 12), ("fine_tuned", 1)])
def test_it_learns_what_is_there(scenes, module, trunk, epochs):
    train, test = scenes
    before = [v.numpy() for v in module.variables]
    few = {"units": 16, "layers": 1, "neck_width": 16, "size": (24, 32), "epochs": epochs}
    few |= {"learning_rate": 0.02, "val_fraction": 0, "trunk": trunk}
    (result,) = downstream.run("fcos", train, test, module=module, **few)
    assert result["endpoint"] == "stem+block" and result["neck_width"] == 16
    assert set(result["per_class"]) == {"bright", "dark"}
    assert result["trunk"] == trunk and not result["diverged"]
    if trunk == "frozen":
        assert result["value"] > 0.6 and 0 < result["coco_ap"] < result["value"], result
        assert result["coco_ap"] < result["voc_ap"] and 0 < result["ap75"] <= result["value"]
    for v, value in zip(module.variables, before):
        np.testing.assert_array_equal(v, value)


class Published:
    """What a module with a pyramid says of itself."""

    handle = "published"

    def __init__(self, **shapes):
        self.of_size = shapes

    def shapes(self, size):
        return self.of_size


def test_levels_are_the_published_ones_or_those_whose_sides_halve(scenes):
    trunk = {f"block{b}": (64 // 2**b, 96 // 2**b, 8) for b in range(1, 5)}
    trunk = {"stem": (32, 48, 4), **trunk}
    levels = {"p3": (8, 12, 5), "p4": (4, 6, 5), "p5": (2, 3, 5), "p6": (1, 2, 5)}
    protocol = fcos.FCOS(size=(64, 96))

    def chosen(names=None, **shapes):
        data = Data(*scenes, module=Published(**shapes, pre_logits=(8,)))
        return protocol.endpoints(data, names)

    assert chosen(**trunk) == ["block2+block3+block4"]
    assert chosen(**trunk, **levels) == ["p3+p4+p5+p6"]
    tower = {name.replace("p", "t"): shape for name, shape in levels.items()}
    assert chosen(**trunk, **levels, **tower) == ["t3+t4+t5+t6"]
    assert chosen(["block1", "block2"], **trunk) == chosen(["block1+block2"], **trunk)
    assert chosen(["block1", "block2"], **trunk) == ["block1+block2"]
    for names, message in ((["block2"], "two maps"), (["block1", "block3"], "sides halve")):
        with pytest.raises(UserError, match=message):
            chosen(names, **trunk)
    with pytest.raises(UserError, match="pre_logits is no map; there is stem, block1"):
        chosen(["block1", "pre_logits"], **trunk)
    with pytest.raises(UserError, match="has no map"):
        chosen()
    head = fcos.Head(1, 8, 2)  # on published levels: no neck of its own, towers shared
    head.build([(None, 8, 12, 5), (None, 4, 6, 5)])
    outputs = head([tf.zeros([1, 8, 12, 5]), tf.zeros([1, 4, 6, 5])])
    assert [tuple(x.shape) for x in outputs] == [(1, 8, 12, 7), (1, 4, 6, 7)]
    convs = 2 * (9 * 5 * 8 + 2 * 8) + 9 * 8 * 7 + 7
    assert head.count_params() == convs + 2


def test_replicas_give_the_head_of_one_device(scenes, replicas, float64, monkeypatch, tmp_path):
    """In double precision, over batches whose objects are shared unequally."""
    handle, heads = tiny_modules.save_ours(tmp_path), []
    monkeypatch.setattr(fcos.FCOSTask, "published", lambda task, network: network.head.variables)
    few = {"units": 4, "layers": 1, "neck_width": 4, "size": (16, 16), "epochs": 1}
    few |= {"learning_rate": 0.01, "val_fraction": 0, "mirrored": False, "publish": heads.append}
    results = [
        downstream.run("fcos", *scenes, module=modules.load(handle), strategy=among, **few)[0]
        for among in (None, replicas)
    ]
    one, other = ([v.numpy() for v in head] for head in heads)
    assert one[0].dtype == np.float64 and len(one) == len(other) > 10
    for v, w in zip(one, other):
        np.testing.assert_allclose(w, v, rtol=1e-9, atol=1e-9)
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-9)
    assert results[1]["value"] == results[0]["value"]
    with pytest.raises(UserError, match="batch_size=7 of 32 views does not divide over 2 replicas"):
        module = modules.load(handle)
        downstream.run("fcos", *scenes, module=module, strategy=replicas, batch_size=7, **few)

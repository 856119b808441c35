"""Detection: each part against its formula in NumPy, the metric against cases that are known, and
that heads learn."""

import numpy as np
import pytest
import rectangles
import tensorflow as tf
import tiny_modules
from PIL import Image

from tfssl import downstream
from tfssl.downstream.protocols import detection
from tfssl.errors import UserError
from tfssl.hub import load as modules

RNG = np.random.default_rng(0)


def random_boxes(*shape):
    low = RNG.uniform(0, 40, [*shape, 2])
    return np.concatenate([low, low + RNG.uniform(1, 30, [*shape, 2])], -1).astype(np.float32)


def test_overlaps_are_those_of_the_formula():
    one, other = random_boxes(200), random_boxes(200)
    iou, generalized = (v.numpy() for v in detection.overlaps(tf.constant(one), tf.constant(other)))
    for a, b, value, g in zip(one.astype(float), other.astype(float), iou, generalized):
        both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        assert value == pytest.approx(both / union, abs=1e-5)
        assert g == pytest.approx(both / union - (hull - union) / hull, abs=1e-5)
    same = detection.overlaps(tf.constant(one), tf.constant(one))
    np.testing.assert_allclose(same, np.ones([2, 200]), atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.31, 2.0])
def test_rescaled_views_show_the_objects_where_their_boxes_are(scale):
    """Rectangles of one color each: in the view each fills its box, by the formula x -> x * scale +
    shift, cut at the edges."""
    task = detection.DetectionTask(0, 4, (1.0, 1.0), 0, size=(40, 60))
    boxes = np.array([[2, 4, 14, 16], [20, 30, 38, 58], [30, 2, 38, 10]], np.float32)
    pixels = np.zeros([40, 60, 3], np.uint8)
    for c, (top, left, bottom, right) in enumerate(boxes.astype(int)):
        pixels[top:bottom, left:right, c] = 255
    answers = {
        "boxes": boxes,
        "classes": np.arange(3),
        "difficult": np.zeros(3, bool),
        "scale": np.ones(2, np.float32),
    }
    answers = {key: tf.constant(value) for key, value in answers.items()}
    rescaled = tf.function(task.rescaled)
    gone = hard = 0
    for place in ((0.0, 0.0), (0.999, 0.999), (0.3, 0.8), (0.999, 0.0)):
        view, told = rescaled(pixels, answers, tf.constant(scale), tf.constant(place))
        view, told = view.numpy(), {key: value.numpy() for key, value in told.items()}
        assert view.shape == (40, 60, 3)
        height, width = round(40 * scale), round(60 * scale)
        shift = [
            int(np.floor(p * (abs(a - b) + 1))) * (-1 if a > b else 1)
            for p, a, b in zip(place, (height, width), (40, 60))
        ]
        for c, (top, left, bottom, right) in enumerate(boxes):
            whole = [
                top * height / 40 + shift[0],
                left * width / 60 + shift[1],
                bottom * height / 40 + shift[0],
                right * width / 60 + shift[1],
            ]
            cut = np.clip(whole, 0, [40, 60, 40, 60])
            np.testing.assert_allclose(told["boxes"][c], cut, atol=1e-4)
            area = [max(0, b[2] - b[0]) * max(0, b[3] - b[1]) for b in (cut, whole)]
            assert (told["classes"][c] == -1) == (area[0] == 0) and told["difficult"][c] == (
                area[0] < 0.25 * area[1]
            )
            gone, hard = gone + (area[0] == 0), hard + (0 < area[0] < 0.25 * area[1])
            rows, columns = (np.flatnonzero((view[..., c] > 127).any(axis)) for axis in (1, 0))
            if area[0] and min(cut[2] - cut[0], cut[3] - cut[1]) > 2:
                np.testing.assert_allclose(
                    [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], cut, atol=1.01
                )
        if scale == 1.0:
            np.testing.assert_array_equal(view, pixels)
    assert gone + hard > 0 or scale < 2


def test_jitter_that_cannot_be_meant():
    for jitter in (("2", "0.5"), ("0", "1"), ("a", "2"), ("1",), ("nan", "2")):
        with pytest.raises(UserError, match="jitter.*such as 0.5,2"):
            detection.check_jitter(jitter)
    assert detection.check_jitter(["0.5", "2"]) == (0.5, 2.0)


def test_focal_loss_is_that_of_the_formula():
    x, y = RNG.normal(0, 4, [50]), RNG.integers(0, 2, [50])
    p = 1 / (1 + np.exp(-x))
    p_t, alpha_t = np.where(y, p, 1 - p), np.where(y, 0.25, 0.75)
    value = detection.focal(tf.constant(x), tf.constant(y, tf.float64))
    np.testing.assert_allclose(value, -alpha_t * (1 - p_t) ** 2 * np.log(p_t), rtol=1e-6)


def test_places_belong_to_the_smallest_object_near_by():
    size, shape = (48, 64), (6, 8)
    at, stride = detection.locations(size, shape), np.array([8, 8], np.float32)
    np.testing.assert_allclose(at[:2], [[4, 4], [4, 12]])
    boxes = random_boxes(3, 7)
    boxes[0, 0] = [20.5, 20.5, 21.5, 21.5]  # smaller than a stride: nothing lies within
    real = RNG.uniform(size=[3, 7]) < 0.8
    real[0, 0] = True
    owner, positive = (
        v.numpy() for v in detection.assign(at, tf.constant(boxes), tf.constant(real), stride)
    )
    for n in range(3):
        for k, (y, x) in enumerate(at):
            fits = {}
            for m, (top, left, bottom, right) in enumerate(boxes[n]):
                dy, dx = abs(y - (top + bottom) / 2) / 8, abs(x - (left + right) / 2) / 8
                within = top <= y <= bottom and left <= x <= right and max(dy, dx) <= 1.5
                if real[n, m] and (within or max(dy, dx) <= 0.5):
                    fits[m] = (bottom - top) * (right - left)
            assert positive[n, k] == bool(fits)
            if fits:
                assert owner[n, k] == min(fits, key=fits.get)
    assert positive[0, 2 * 8 + 2] and owner[0, 2 * 8 + 2] == 0  # the place at (20, 20)


def test_a_perfect_answer_has_no_loss_of_boxes_and_is_read_back():
    """Outputs that are set to the objects' boxes: GIoU 1, and the answers are these boxes."""
    task = detection.DetectionTask(1, 8, (1.0, 1.0), 0, size=(32, 48))
    task.names, task.typical = ["a", "b"], np.array([10, 12], np.float32)
    boxes = np.array([[[4, 4, 16, 20], [18, 26, 30, 44], [0, 0, 0, 0]]], np.float32)
    classes, difficult = np.array([[1, 0, -1]], np.int32), np.zeros([1, 3], bool)
    outputs = np.zeros([1, 4, 6, 7], np.float32)
    outputs[..., :2], outputs[..., 6] = -20, 20
    at = detection.locations((32, 48), (4, 6)).reshape(4, 6, 2)
    owner, positive = detection.assign(
        at.reshape(-1, 2), tf.constant(boxes), classes >= 0, np.array([8, 8], np.float32)
    )
    owner, positive = owner.numpy().reshape(4, 6), positive.numpy().reshape(4, 6)
    for i, j in zip(*np.nonzero(positive)):
        box = boxes[0, owner[i, j]]
        outputs[0, i, j, classes[0, owner[i, j]]] = 20
        outputs[0, i, j, 2:4] = ((box[:2] + box[2:]) / 2 - at[i, j]) / 8
        outputs[0, i, j, 4:6] = np.log((box[2:] - box[:2]) / task.typical)
    batch = {
        "boxes": tf.constant(boxes),
        "classes": tf.constant(classes),
        "difficult": tf.constant(difficult),
    }
    assert float(task.loss(tf.constant(outputs), batch)) == pytest.approx(0, abs=1e-5)
    hard = {**batch, "difficult": tf.constant([[False, True, False]])}
    assert float(task.loss(tf.constant(outputs), hard)) == pytest.approx(
        0, abs=1e-5
    )  # neither learned nor held against it
    wrong = outputs.copy()
    wrong[..., 2:4] += 1
    assert float(task.loss(tf.constant(wrong), batch)) > 0.5
    found = {key: value.numpy()[0] for key, value in task.decode(tf.constant(outputs)).items()}
    assert int(found["count"]) == 2
    order = np.argsort(found["boxes"][:2, 0])
    np.testing.assert_allclose(found["boxes"][:2][order], boxes[0, :2], atol=1e-3)
    assert found["classes"][:2][order].tolist() == [1, 0]


@pytest.mark.parametrize("side, layers, stride", [(375, 4, 16), (240, 6, 64), (96, 5, 32)])
def test_locations_lie_where_a_network_looks(side, layers, stride):
    """The centroids of what places of a chain of convolutions see, in the inner half of a map:
    `stride` pixels apart, and in all as far to one side as to the other, up to a place's half."""
    x = tf.Variable(tf.ones([1, side, 1, 1]))
    with tf.GradientTape(persistent=True) as tape:
        y = x
        for _ in range(layers):
            y = tf.nn.conv2d(y, tf.ones([3, 1, 1, 1]), [2, 1], "SAME")
    places = y.shape[1]
    at = detection.locations((side, side), (places, places)).reshape(places, places, 2)[:, 0, 0]
    np.testing.assert_allclose(np.diff(at), stride)
    assert at[0] == side - at[-1]
    inner = range(places // 4, places - places // 4)
    with tape:
        picked = [y[0, i, 0, 0] for i in inner]
    seen = [tape.gradient(p, x).numpy().ravel() for p in picked]
    centroids = np.array([(g * (np.arange(side) + 0.5)).sum() / g.sum() for g in seen])
    assert np.abs(centroids - at[inner.start : inner.stop]).max() <= stride / 2
    if places > 8:  # whose inner places do not see the border
        np.testing.assert_allclose(np.diff(centroids), stride)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return rectangles.sources(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return modules.load(tiny_modules.save_ours(tmp_path_factory.mktemp("module")))


@pytest.mark.parametrize("trunk", ["frozen", "fine_tuned"])
def test_heads_learn_what_is_there(scenes, module, trunk):
    train, test = scenes
    before = [v.numpy() for v in module.variables]
    few = {
        "units": 16,
        "layers": 2,
        "size": (48, 64),
        "epochs": 16,
        "learning_rate": 0.01,
        "trunk": trunk,
    }
    few["val_fraction"] = 0  # dense.run's choice is segmentation's test
    (result,) = downstream.run("detection", train, test, module=module, endpoints=["block"], **few)
    assert (
        result["metric"] == "AP50"
        and set(result["per_class"]) == {"bright", "dark"}
        and result["trunk"] == trunk
    )
    assert result["value"] > 0.6 and 0 < result["coco_ap"] < result["value"], result
    assert Image.open(__import__("io").BytesIO(result.picture)).size[0] == 2 * 64 + 4
    for v, value in zip(module.variables, before):
        np.testing.assert_array_equal(v, value)


def test_mirrored_images_have_mirrored_boxes(scenes):
    source = scenes[0]
    task = detection.DetectionTask(1, 8, (1.0, 1.0), 0, size=(48, 64), mirrored=True)
    for example in source.records().map(source.fetch).skip(1).take(4):
        image, answers = task.read(example)
        mirrored, theirs = task.mirror(image, answers)
        for (top, left, bottom, right), other in zip(
            answers["boxes"].numpy(), theirs["boxes"].numpy()
        ):
            there = [int(np.ceil(v)) for v in (top, left)] + [
                int(np.floor(v)) for v in (bottom, right)
            ]
            here = [there[0], 64 - there[3], there[2], 64 - there[1]]
            np.testing.assert_allclose(other, [top, 64 - right, bottom, 64 - left], atol=1e-4)
            one = image.numpy()[there[0] : there[2], there[1] : there[3]]
            np.testing.assert_array_equal(
                one[:, ::-1], mirrored.numpy()[here[0] : here[2], here[1] : here[3]]
            )
            assert abs(one.mean() - 128) > 60  # the rectangle, not the gray around it


def test_refusals(scenes, module, tmp_path):
    train, test = scenes
    with pytest.raises(UserError, match="trunk=thawed: choose one of frozen, fine_tuned"):
        downstream.run("detection", train, test, module=module, trunk="thawed")
    flat = modules.load(tiny_modules.save_callable(tmp_path / "flat"))
    with pytest.raises(UserError, match="no endpoint that is a map .* which detection needs"):
        downstream.run("detection", train, test, module=flat)

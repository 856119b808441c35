"""PixPro: its positives, its losses and its propagation against naive loops and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import dense

from tfssl import backbones, pretext
from tfssl.errors import UserError
from tfssl.pretext import pixpro

SMALL = {"projection_hidden": 8, "projection_size": 6}
WHOLE = (0.0, 0.0, 1.0, 1.0)


def task(**settings):
    network = tf.keras.Sequential([tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv")])
    settings = {"image_size": 16, "augmentation": "crop", **SMALL, **settings}
    return pretext.build("pixpro", backbones.build(network), **settings)


def mask(first, second, flips=(False, False), side=7):
    boxes = tf.constant([[first, second]], tf.float64)
    return pixpro.positives(boxes, tf.constant([flips]), side, 0.7)[0][0].numpy()


def test_positives_of_simple_boxes():
    """Closed forms of the geometry."""
    assert np.array_equal(mask(WHOLE, WHOLE), np.eye(49))  # neighbors: 1 / sqrt(2) of a diagonal
    tall = (0.0, 0.0, 1.0, 0.75)  # cells of 4 x 3: 0.6 of a diagonal to the side, 0.8 up and down
    assert mask(tall, tall).sum() == 49 + 2 * 7 * 6
    mirrored = mask(WHOLE, WHOLE, (False, True)).reshape(7, 7, 7, 7)
    assert np.array_equal(mirrored, np.einsum("ij,kl->ikjl", np.eye(7), np.eye(7)[::-1]) > 0)
    left, right = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
    touching = mask(left, right)
    assert touching.sum() == 7 and touching.reshape(7, 7, 7, 7)[3, 6, 3, 0]
    assert not mask((0.0, 0.0, 0.2, 0.2), (0.8, 0.8, 1.0, 1.0)).any()
    one, other = (0.1, 0.2, 0.7, 0.9), (0.3, 0.0, 0.8, 0.6)  # neither depends on which is first
    there, back = mask(one, other, (False, True)), mask(other, one, (True, False))
    assert 0 < there.sum() < 49**2 and np.array_equal(there, back.T)


def naive(box, flipped, side, threshold):
    """(near [P, P], inside [2, P]) by loops over the locations, from the published code's rule."""
    centers, diagonals = [], []
    for (top, left, bottom, right), flip in zip(box, flipped):
        if flip:
            left, right = right, left
        height, width = (bottom - top) / side, (right - left) / side
        centers.append(
            [
                (top + (i + 0.5) * height, left + (j + 0.5) * width)
                for i, j in np.ndindex(side, side)
            ]
        )
        diagonals.append(np.hypot(height, width))
    near = [
        [np.hypot(p[0] - q[0], p[1] - q[1]) / max(diagonals) < threshold for q in centers[1]]
        for p in centers[0]
    ]
    inside = [
        [b[0] <= y <= b[2] and b[1] <= x <= b[3] for y, x in of]
        for of, b in zip(centers, box[::-1])
    ]
    return np.array(near), np.array(inside)


def crops(rng, count):
    corner, size = rng.random([count, 2, 2]) * 0.5, 0.2 + rng.random([count, 2, 2]) * 0.3
    return np.concatenate([corner, corner + size], -1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["propagation", "contrast"])
def test_loss_and_metrics_equal_loops(kind, float64):
    rng, side = np.random.default_rng(0), 4
    model = task(kind=kind)
    box, flipped = crops(rng, 6), rng.random([6, 2]) < 0.5
    box[5] = [[0, 0, 0.2, 0.2], [0.7, 0.7, 1, 1]]  # nothing in common
    y, targets = rng.standard_normal([2, 6, 2, side, side, 6])
    outputs = {"y": (tf.constant(y),), "targets": (tf.constant(targets),)}
    batch = {"crop_box": (tf.constant(box),), "flipped": (tf.constant(flipped),)}
    loss, metrics = model.contrast(batch, outputs)
    y, targets = (unit(x.reshape(6, 2, side**2, 6)) for x in (y, targets))
    for n in range(6):
        near, inside = naive(box[n], flipped[n], side, 0.7)
        np.testing.assert_array_equal(mask(*box[n], flipped[n], side), near)
        total, matched, chances = 0.0, [], []
        for i, positive in ((0, near), (1, near.T)):
            cosines, alike = (x[n, i] @ targets[n, 1 - i].T for x in (y, targets))
            matched += [p[row.argmax()] for p, row in zip(positive, alike) if p.any()]
            chances += [np.mean([p.mean() for p in positive if p.any()] or [0])]
            if kind == "propagation":
                total += -2 * cosines[positive].mean() if positive.any() else 0
                continue
            e = np.exp(cosines / 0.3)
            rows = [p for p in range(side**2) if inside[i][p] and positive[p].any()]
            rows = [-np.log(e[p][positive[p]].sum() / e[p].sum()) for p in rows]
            total += np.mean(rows) / 2 if rows else 0
        np.testing.assert_allclose(loss[n], total, rtol=1e-5, atol=1e-12)  # 1e-6 beside the count
        np.testing.assert_allclose(metrics["positives"][0][n], near.mean())
        weight = float(metrics["match"][1][n])
        assert weight == float(near.any())
        if weight:
            counts = [np.any(near, 1).sum(), np.any(near, 0).sum()]
            parts = np.split(np.array(matched, float), [counts[0]])
            np.testing.assert_allclose(metrics["match"][0][n], np.mean([p.mean() for p in parts]))
            np.testing.assert_allclose(metrics["match_chance"][0][n], np.mean(chances))
        others = [
            (targets[n, v] @ targets[n, v].T)[~np.eye(side**2, dtype=bool)].mean() for v in (0, 1)
        ]
        np.testing.assert_allclose(metrics["smoothness"][0][n], np.mean(others), atol=1e-12)
    assert float(loss[5]) == 0 and set(model.chance()) >= set(metrics)
    p, instances = rng.standard_normal([2, 6, 2, 5])  # the instance branch: -2 cos, both directions
    model.instance_weight = 0.5
    both, _ = model.contrast(
        batch, {**outputs, "p": tf.constant(p), "instances": tf.constant(instances)}
    )
    cosines = np.sum(unit(p) * unit(instances)[:, ::-1], -1)
    np.testing.assert_allclose(both - loss, -2 * 0.5 * cosines.sum(1), atol=1e-9)


def test_equal_embeddings():
    """PixPro's loss is at its least, PixContrast's is log(locations / positives of the row); and
    the alarm is raised."""
    same = tf.ones([1, 2, 7, 7, 6])
    batch = {
        "crop_box": (tf.constant([[WHOLE, WHOLE]]),),
        "flipped": (tf.constant([[False, True]]),),
    }
    for kind, least in (("propagation", -4.0), ("contrast", np.log(49))):
        model = task(kind=kind)
        loss, metrics = model.contrast(batch, {"y": (same,), "targets": (same,)})
        assert float(loss[0]) == pytest.approx(least, rel=1e-5)
        assert float(metrics["smoothness"][0][0]) == pytest.approx(1, abs=1e-5)
    assert "embedded alike" in model.alarm({"smoothness": 0.99, "spread": 1.0})
    assert model.alarm({"smoothness": 0.5, "spread": 1.0}) is None


def test_propagation_equals_a_loop(float64):
    """With the transformation's layers 0, 1 and 2; with a root, and negative cosines clamped."""
    norm = backbones.build("resnet18_v1", 1 / 8).norm_policy
    rng = np.random.default_rng(1)
    for sharpness, layers in ((2.0, 1), (0.5, 0), (2.0, 2)):
        x = rng.standard_normal([2, 3, 3, 24])  # so wide that no location is 0 after the ReLU
        layer = pixpro.Propagation(sharpness, layers, norm)
        found = layer(tf.constant(x), training=True).numpy().reshape(2, 9, 24)
        g, x = x.reshape(-1, 24), unit(x.reshape(2, 9, 24))
        for i, linear in enumerate(layer.transform.dense if layers else ()):
            if i:  # batch normalization and ReLU between the two
                g = np.maximum((g - g.mean(0)) / np.sqrt(g.var(0) + 1e-5), 0)
            g = g @ linear.kernel.numpy() + linear.bias.numpy()
        g = unit(g).reshape(2, 9, 24)
        for n, i in np.ndindex(2, 9):
            weights = [max(x[n, i] @ x[n, j], 0) + 1e-6 * (sharpness < 1) for j in range(9)]
            expected = sum(w**sharpness * g[n, j] for j, w in enumerate(weights))
            np.testing.assert_allclose(found[n, i], expected, rtol=1e-8, atol=1e-10)


def test_parameters_of_the_published_heads():
    """9,449,728 of the projection, 65,792 of the propagation."""
    norm = backbones.build("resnet18_v1", 1 / 8).norm_policy
    projection = pixpro.Projection("p", (4096, 256), norm, raw=False)
    projection(tf.zeros([1, 2, 2, 2048]))
    propagation = pixpro.Propagation(2.0, 1, norm)
    propagation(tf.zeros([1, 2, 2, 256]))
    counts = [
        sum(int(np.prod(v.shape)) for v in layer.trainable_variables)
        for layer in (projection, propagation)
    ]
    assert counts == [dense(2048, 4096) + 2 * 4096 + dense(4096, 256), dense(256, 256)]
    assert counts == [9_449_728, 65_792]


def test_a_neck_is_trained_by_its_levels(source):
    """All levels of more than one location are compared, gradients reach trunk and neck, and the
    maps are seen in the picture."""
    backbone = backbones.build("resnet18_v2", 1 / 16, neck="fpn", neck_width=8)
    settings = {"image_size": 64, "augmentation": "crop", **SMALL}
    model = pretext.build("pixpro", backbone, **settings)
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    batch = model.to_float(next(iter(model.dataset(source, 2))))
    with tf.GradientTape() as tape:
        outputs = model(batch, training=True)
        assert [y.shape[2] for y in outputs["y"]] == [8, 4, 2]
        loss = tf.reduce_sum(model.objective(batch, outputs)[0])
    variables = [v for v in model.trainable_variables if "output3" not in v.name]  # that of p6
    variables = [v for v in variables if "output_bn3" not in v.name]
    gradients = tape.gradient(loss, variables)
    missing = {v.name for v, g in zip(variables, gradients) if g is None}
    assert all("last_bn" in name for name in missing), missing  # of pre_logits alone
    assert any("output0" in v.name for v in variables) and any("conv" in v.name for v in variables)
    pictures = model.pictures(next(iter(model.dataset(source, 2))))
    assert pictures.shape == (6, 64, 64, 3) and 0 <= pictures.numpy().min() <= 1


def test_a_tower_is_trained_through_its_pyramid(source):
    backbone = backbones.build("resnet18_v2", 1 / 16, neck="fpn", neck_width=8, neck_tower=1)
    model = pretext.build("pixpro", backbone, image_size=64, augmentation="crop", **SMALL)
    model.prepare()
    batch = model.to_float(next(iter(model.dataset(source, 2))))
    with tf.GradientTape() as tape:
        endpoints = model.endpoints(model.each(batch)[0][:, 0], True)
        maps = model.maps(endpoints)
    names = {id(x): name for name, x in endpoints.items()}
    assert [names[id(x)] for x in maps] == ["t3", "t4", "t5"]
    learned = [v for part in (backbone.tower, backbone.fpn) for v in part.trainable_variables]
    learned = [v for v in learned if "output3" not in v.name and "output_bn3" not in v.name]
    assert all(g is not None for g in tape.gradient(maps, learned)) and len(learned) > 20


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"map_endpoints": "pre_logits"}, "maps of more than one location"),
        ({"map_endpoints": "nowhere"}, "^map_endpoints=nowhere"),  # and nothing of Keras
        ({"kind": "both"}, "choose one of propagation, contrast"),
        ({"transform_layers": 3}, "0, 1 or 2"),
        ({"augmentation": "infomin", "augment_on": "host"}, "rotate=0 and randaugment=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        task(**settings).prepare()

"""Surface normals: from depth by closed forms, from pictures, what is not there."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfssl
from tfssl.data.sources import normals
from tfssl.errors import UserError
from tfssl.testing import check_source

CAMERA = fx, fy, cx, cy = 70.0, 64.0, 39.0, 27.5
SHAPE = 56, 80


def rays():
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(SHAPE)], -1)  # right, down, forward


def told(n):
    """Right, down, forward -> right, up, to the viewer."""
    return n * [1, -1, -1]


@pytest.mark.parametrize(
    "direction", [(0, 0, -1), (0.3, 0.2, -1), (-0.8, 0.5, -1), (0.1, -1.2, -1)]
)
@pytest.mark.parametrize("unit", [1, 1000])
def test_planes_are_exact(direction, unit):
    n = np.array(direction) / np.linalg.norm(direction)
    z = -2.0 / (rays() @ n)  # n . P = -2
    z = np.where(z > 0, z, 0) * unit
    found = normals.from_depth(tf.constant(z, tf.float32), *CAMERA).numpy()
    inner = np.s_[3:-3, 3:-3]
    where = (z[inner] > 0) & (np.linalg.norm(found[inner], axis=-1) > 0)
    assert where.mean() > 0.8
    np.testing.assert_allclose(
        found[inner][where], np.broadcast_to(told(n), found[inner][where].shape), atol=2e-3
    )
    assert not found[:3].any() and not found[:, :3].any()  # a window beyond the image


def test_spheres_are_near():
    r, centre, radius = rays(), np.array([0.1, 0.05, 4.0]), 1.5
    b = r @ centre
    root = b**2 - (r**2).sum(-1) * (centre @ centre - radius**2)
    z = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / (r**2).sum(-1), 0)
    truth = told((z[..., None] * r - centre) / radius)
    found = normals.from_depth(tf.constant(z, tf.float32), *CAMERA, window=3).numpy()
    where = np.linalg.norm(found, axis=-1) > 0
    angle = np.degrees(np.arccos(np.clip((truth * found).sum(-1)[where], -1, 1)))
    assert where.sum() > 800 and np.median(angle) < 1 and np.percentile(angle, 95) < 6


def test_edges_and_holes_are_not_known():
    z = np.full(SHAPE, 2.0, np.float32)
    z[:, 40:] = 3.0
    z[20, 15] = 0
    found = np.linalg.norm(normals.from_depth(tf.constant(z), *CAMERA).numpy(), axis=-1)
    assert (
        not found[17:24, 12:19].any()
        and found[16, 15] == pytest.approx(1)
        and found[24, 15] == pytest.approx(1)
    )
    assert (
        not found[:, 37:43].any()
        and (found[3:-3, 43:-3] > 0.99).all()
        and (found[30:50, 3:37] > 0.99).all()
    )


def test_both_layouts(tmp_path):
    rng = np.random.default_rng(0)
    n = rng.normal(size=[2, 12, 16, 3])
    n /= np.linalg.norm(n, axis=-1, keepdims=True)
    for i in range(2):
        for folder in ("a/train", "a/trainnormals", "b/train", "b/traindepth"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in "ab":
            Image.new("RGB", (16, 12), (9, 99, 9)).save(tmp_path / name / "train" / f"{i}.jpg")
        picture = np.round((n[i] + 1) * 127.5).astype(np.uint8)
        picture[:2] = 0
        Image.fromarray(picture).save(tmp_path / "a/trainnormals" / f"{i}.png")
        depth = (
            (2000 / (1 + 0.01 * np.arange(16) * np.ones([12, 1]))).round().astype(np.uint16)
        )  # 1 / z is linear
        Image.fromarray(depth).save(tmp_path / "b/traindepth" / f"{i}.png")
    source = tfssl.open_source(f"normals:{tmp_path}/a", "train")
    assert source.provides == ("normals",) and source.num_examples == 2
    check_source(source)
    for i, example in enumerate(source.records().map(source.fetch)):
        found = example["normals"].numpy()
        assert not found[:2].any()
        np.testing.assert_allclose(found[2:], n[i, 2:], atol=0.012)
        np.testing.assert_allclose(np.linalg.norm(found[2:], axis=-1), 1, atol=1e-5)
    with pytest.raises(UserError, match="camera.txt', which should hold four numbers: fx fy cx cy"):
        tfssl.open_source(f"normals:{tmp_path}/b", "train")
    (tmp_path / "b/camera.txt").write_text("20 20 7.5 5.5\n", encoding="utf-16")
    with pytest.raises(UserError, match="camera.txt' is not text in UTF-8: save it as such$"):
        tfssl.open_source(f"normals:{tmp_path}/b", "train")
    (tmp_path / "b/camera.txt").write_text("20 20 7.5\n5.5\n", encoding="utf-8-sig")
    source = tfssl.open_source(f"normals:{tmp_path}/b", "train")
    (found,) = [
        example["normals"].numpy() for example in source.records().map(source.fetch).take(1)
    ]
    a, c = 0.01 / 2000, 1 / 2000  # 1 / z = a u + c
    expected = -np.array([a * 20, 0, c + a * 7.5])
    np.testing.assert_allclose(
        found[3:-3, 3:-3],
        np.broadcast_to(told(expected / np.linalg.norm(expected)), [6, 10, 3]),
        atol=0.02,
    )
    with pytest.raises(UserError, match="no such folder"):
        tfssl.open_source(f"normals:{tmp_path}/c")
    with pytest.raises(UserError, match="expected SPLIT and SPLITnormals"):
        tfssl.open_source(f"normals:{tmp_path}")

"""Surface normals: angles against their cosine, and that heads learn shading."""

import dense_heads
import numpy as np
import pytest
import tiny_modules
from PIL import Image

import tfssl
from tfssl import downstream
from tfssl.downstream.protocols import surface_normals
from tfssl.errors import UserError
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Tiles, each a plane of one of six directions, as bright as it faces the light, three lights
    in three colors."""
    root, rng = tmp_path_factory.mktemp("normals"), np.random.default_rng(0)
    directions = np.array(
        [[0, 0, 1], [0.7, 0, 0.7], [-0.7, 0, 0.7], [0, 0.7, 0.7], [0, -0.7, 0.7], [0.5, 0.5, 0.7]]
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lights = np.array([[0.6, 0.3, 0.74], [-0.5, 0.5, 0.7], [0.1, -0.7, 0.7]])
    for split, count in (("train", 12), ("test", 6)):
        for folder in (split, split + "normals"):
            (root / folder).mkdir()
        for i in range(count):
            tiles = rng.integers(0, 6, [2, 3]).repeat(16, 0).repeat(16, 1)
            n = directions[tiles]
            image = np.clip(
                30 + 200 * np.maximum(n @ lights.T, 0) + rng.normal(0, 4, n.shape), 0, 255
            )
            Image.fromarray(image.astype(np.uint8)).save(root / split / f"{i}.png")
            picture = np.round((n + 1) * 127.5).astype(np.uint8)
            picture[:4] = 0
            Image.fromarray(picture).save(root / (split + "normals") / f"{i}.png")
    return [tfssl.open_source(f"normals:{root}", split) for split in ("train", "test")]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return modules.load(tiny_modules.save_ours(tmp_path_factory.mktemp("module")))


def test_angles():
    rng = np.random.default_rng(0)
    one, other = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=[2, 300, 3])
    )
    np.testing.assert_allclose(
        surface_normals.angles(one, other), np.degrees(np.arccos((one * other).sum(1))), atol=1e-6
    )
    small = np.array([[np.sin(1e-6), 0, np.cos(1e-6)]])
    assert surface_normals.angles(small, np.array([[0, 0, 1.0]]))[0] == pytest.approx(
        np.degrees(1e-6), rel=1e-6
    )
    assert surface_normals.angles(-small, small)[0] == pytest.approx(180)
    found = surface_normals.summary(np.array([1.0, 12, 25, 40]))
    assert found == {
        "value": 0.25, "mean_angle": 19.5, "median_angle": 18.5, "within": {"11.25": 0.25, "22.5": 0.5, "30": 0.75}
    }  # fmt: skip


@pytest.mark.parametrize("head,epochs", [("linear", 60), ("dilated", 15)])
def test_heads_learn_shading(scenes, module, head, epochs):
    (result,) = downstream.run(
        "surface_normals",
        *scenes,
        module=module,
        endpoints=["pixels"],
        head=head,
        clusters=6,
        epochs=epochs,
        learning_rate=0.02,
    )
    assert result["value"] > 0.6 and result["median_angle"] < 11 and result["val_value"] > 0.5, (
        result
    )
    assert (
        result["within"]["11.25"]
        == result["value"]
        <= result["within"]["22.5"]
        <= result["within"]["30"]
    )
    assert result["clusters"] == 6 and result.picture.startswith(b"\x89PNG")


def test_replicas_give_the_head_of_one_device(scenes, replicas, float64, monkeypatch, tmp_path):
    """Batches whose halves have as many known pixels; the clusters are the same, for they come
    before."""
    task = surface_normals.NormalsTask
    dense_heads.check_replicas(
        "surface_normals", task, scenes[0], tmp_path, replicas, monkeypatch, 2, clusters=6
    )


def test_a_mirrored_surface_faces_the_other_side(scenes):
    source = scenes[0]
    task = surface_normals.NormalsTask("linear", 6, (32, 48), 0, True)
    for example in source.records().map(source.fetch).take(2):
        image, answers = task.read(example)
        mirrored, theirs = task.mirror(image, answers)
        np.testing.assert_array_equal(image[:, 5], mirrored[:, 42])
        before, after = answers["normals"].numpy()[:, 5], theirs["normals"].numpy()[:, 42]
        np.testing.assert_array_equal(before * np.float16([-1, 1, 1]), after)


def test_refusals(scenes, module):
    with pytest.raises(UserError, match="fewer than 40 directions: set fewer clusters"):
        downstream.run("surface_normals", *scenes, module=module, endpoints=["stem"], epochs=1)

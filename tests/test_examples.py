"""The scripts of examples/, each run whole with tiny settings."""

import importlib
import math
import os
import pathlib
import runpy
import shutil

import numpy as np
import pytest
import tensorflow as tf
from encoders import save_encoder
from scipy.spatial import distance

import tfssl

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def script(name):
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("modules") / "simclr")


def test_own_photographs(photos, tmp_path, capsys):
    """From a folder of unlabeled images to the neighbors of some."""
    flat = tmp_path / "photos"
    flat.mkdir()
    for path in photos.rglob("*.jpg"):
        shutil.copy(path, flat)
    (flat / "broken.jpg").write_bytes(b"no image")
    module = tmp_path / "module"
    given = [
        str(flat),
        f"--out={module}",
        *"--image_size=16 --batch_size=16 --steps=2 --width=0.0625 --queries=3".split(),
    ]
    similar = script("own_photographs")["main"](given)
    assert len(similar) == 3 and f"published: {module}" in capsys.readouterr().out
    for name, others in similar.items():
        assert len({name, *others}) == 4 and all(
            (flat / other).exists() for other in [name, *others]
        )
        assert "broken.jpg" not in [name, *others]
    assert tf.saved_model.load(str(module))(tf.zeros([1, 32, 32, 3])).shape[0] == 1


def test_neighbors_are_those_of_scipy():
    features = np.random.default_rng(0).normal(size=(20, 5))
    rows = script("own_photographs")["neighbors"](features, [3, 17], 4)
    apart = distance.cdist(features, features, "cosine")
    for query, found in zip((3, 17), rows):
        assert list(found) == list(np.argsort(apart[query])[1:5])  # the first is the query itself


def test_compare_encoders(encoder, photos, capsys):
    splits = ["--train_split=train[:75%]", "--test_split=train[75%:]"]
    given = [f"one={encoder}", encoder, f"--dataset=folder:{photos}", *splits]
    results = script("compare_encoders")["main"](given)
    assert set(results) == {
        (name, p) for name in ("one", encoder, "raw pixels") for p in ("knn", "logistic")
    }
    one, again = (
        [results[name, p]["value"] for p in ("knn", "logistic")] for name in ("one", encoder)
    )
    assert one == again and results["raw pixels", "knn"]["endpoint"] == "pixels"
    printed = capsys.readouterr().out
    assert f"{results['one', 'knn']['value']:.1%}" in printed and "12 images" not in printed


def test_finetune_and_predict(encoder, photos, tmp_path, capsys):
    example, out = script("finetune_and_predict"), tmp_path / "run"
    given = [
        encoder,
        str(photos),
        str(photos / "warm"),
        f"--out={out}",
        "--epochs=4",
        "--batch_size=8",
        "--learning_rate=0.1",
    ]
    rows = example["main"](given)
    assert sorted(row["name"] for row in rows) == sorted(map(str, (photos / "warm").iterdir()))
    assert all(
        row["class"] in ("cold", "warm")
        and math.isclose(sum(float(row[c]) for c in ("cold", "warm")), 1, abs_tol=1e-4)
        for row in rows
    )
    assert (
        sum(row["class"] == "warm" for row in rows) > len(rows) / 2
    )  # a fifth of them it has not seen
    assert "from Python: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        example["command"](
            "predict", "--module=nowhere", "--images=nowhere", f"--output={tmp_path / 'x.csv'}"
        )
    assert end.value.code == 1


@pytest.fixture
def new_method(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("new_method")


def test_new_method(new_method):
    tiny = (
        "--image_size=16 --width=0.0625 --batch_size=16 --steps=2 --train_split=train[:48] "
        "--test_split=test[:32]"
    )
    results = new_method.main(["--dataset=glyphs:60", *tiny.split()])
    assert set(results) == {"untrained", "trained"} and all(
        0 <= result["value"] <= 1 for result in results.values()
    )


def test_the_new_method_is_its_papers(new_method, float64):
    """Alignment and uniformity by SciPy's pairwise distances; rows of weight 0 count for nothing.
    The chance level by sampling."""
    network = tf.keras.Sequential([tf.keras.layers.GlobalAveragePooling2D()])
    settings = {"image_size": 16, "projection_size": 8, "uniformity_weight": 0.5, "potential": 3.0}
    task = tfssl.pretext.build("new_method:AlignmentUniformity", network, **settings)
    z = np.random.default_rng(0).normal(size=(6, 2, 8))
    weight = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    loss, metrics = task.contrast({"weight": tf.constant(weight)}, {"z": tf.constant(z)})
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    alignment = ((unit[:, 0] - unit[:, 1]) ** 2).sum(-1)
    uniformity = np.mean(
        [np.log(np.exp(-3 * distance.pdist(unit[:5, v], "sqeuclidean")).mean()) for v in (0, 1)]
    )
    np.testing.assert_allclose(metrics["alignment"], alignment, rtol=1e-12)
    np.testing.assert_allclose(loss, alignment + 0.5 * uniformity, rtol=1e-12)

    many = np.random.default_rng(1).normal(size=(2000, 8))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    sampled = np.log(np.exp(-3 * distance.pdist(many, "sqeuclidean")).mean())
    chance = task.chance()
    assert math.isclose(chance["uniformity"], sampled, rel_tol=0.01)
    assert math.isclose(chance["loss"], 2 + 0.5 * chance["uniformity"])


def test_the_new_method_on_replicas(new_method, replicas, float64):
    """Two replicas of three images compute what one of six does: losses, and the gradients of all
    embeddings."""
    network = tf.keras.Sequential([tf.keras.layers.GlobalAveragePooling2D()])
    z = tf.constant(np.random.default_rng(0).normal(size=(6, 2, 8)))
    task = tfssl.pretext.build("new_method:AlignmentUniformity", network, image_size=16)

    def losses_and_gradients(z, replicas):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss, _ = task.contrast({"weight": tf.ones([z.shape[0]])}, {"z": z})
            mean = tf.reduce_mean(loss) / replicas
        return loss, tape.gradient(mean, z)

    alone = losses_and_gradients(z, 1)
    rows = 6 // replicas.num_replicas_in_sync

    @tf.function
    def together():
        def step():
            first = tf.distribute.get_replica_context().replica_id_in_sync_group * rows
            return losses_and_gradients(
                tf.ensure_shape(z[first : first + rows], [rows, 2, 8]), 6 // rows
            )

        return [
            tf.concat(replicas.experimental_local_results(part), 0) for part in replicas.run(step)
        ]

    for one, several in zip(alone, together()):
        np.testing.assert_allclose(several, one, rtol=1e-9, atol=1e-12)


def test_scenes(tmp_path):
    """What is read is what was drawn, and no letter hides another."""
    example = script("scenes")
    example["main"](str(tmp_path / "scenes"), {"train": 4, "test": 2})
    source = tfssl.open_source(f"boxes:{tmp_path / 'scenes'}", "train")
    rng = np.random.default_rng(0)
    for read in source.records().map(source.fetch):
        _, placed = example["scene"](rng)
        boxes = np.array([box for _, box in placed])[:, [1, 0, 3, 2]] / np.tile(example["SIZE"], 2)
        np.testing.assert_allclose(read["boxes"], boxes, atol=0.01)  # VOC counts pixels from 1
        assert [source.class_names[c] for c in read["classes"]] == [letter for letter, _ in placed]
        for i, (_, one) in enumerate(placed):
            assert all(example["overlap"](one, other) <= 0.2 for _, other in placed[:i])


def test_every_example_is_tested():
    tests = pathlib.Path(__file__).read_text()
    assert (
        all(f'"{path.stem}"' in tests for path in EXAMPLES.glob("*.py"))
        and len(os.listdir(EXAMPLES)) >= 4
    )

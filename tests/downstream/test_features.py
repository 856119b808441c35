import os

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules

import tfssl
from tfssl.downstream import features, modules
from tfssl.downstream.features import extract
from tfssl.errors import UserError


@pytest.fixture
def module(modules_dir):
    return modules.load(modules_dir / "ours" / "1")


@pytest.fixture
def source(pictures):
    return tfssl.open_source(f"folder:{pictures[0]}")


def crops(source, pictures, index):
    """The central 16x16 of the 20x20 pictures, in [0, 1]."""
    return np.stack([pictures[1][source.name(i)] for i in index])[:, 2:18, 2:18] / 255.0


def test_features_are_the_modules_own(module, source, pictures):
    found = extract(module, source, batch_size=4)  # 11 images: the last batch is not full
    images = tf.constant(crops(source, pictures, range(11)), tf.float32)
    maps = tiny_modules.Encoder().maps(images)
    assert list(found.endpoints) == ["stem", "block", "pre_logits"]
    for name, value in maps.items():
        np.testing.assert_allclose(found.endpoints[name], np.reshape(value, [11, -1]), rtol=1e-4, atol=1e-5)
        assert found.endpoints[name].dtype == np.float32
    assert list(found.index) == list(range(11))
    assert list(found.labels) == [source.class_names.index(source.name(i).split("/")[-2]) for i in range(11)]
    assert found.dropped == [] and found.class_names == ["dark", "light"] and found.num_classes == 2


def test_maps_are_pooled(module, source):
    whole = extract(module, source, ["stem"]).endpoints["stem"].reshape(11, 16, 16, 8)  # 2048 values
    pooled = extract(module, source, ["stem"], target=600).endpoints["stem"]  # stride ceil(sqrt(2048 / 600)) = 2
    np.testing.assert_allclose(pooled, whole.reshape(11, 8, 2, 8, 2, 8).max((2, 4)).reshape(11, -1), rtol=1e-6)
    pooled = extract(module, source, ["stem"], target=600, pool="avg").endpoints["stem"]
    np.testing.assert_allclose(
        pooled, whole.reshape(11, 8, 2, 8, 2, 8).mean((2, 4)).reshape(11, -1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 11, 64])
def test_batch_size_changes_nothing(module, source, batch_size):
    reference = extract(module, source, ["block"], batch_size=3).endpoints["block"]
    found = extract(module, source, ["block"], batch_size=batch_size).endpoints["block"]
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-5)


def test_pixels(module, source, pictures):
    found = extract(module, source, ["pixels"])
    np.testing.assert_allclose(found.endpoints["pixels"], crops(source, pictures, range(11)).reshape(11, -1), atol=1e-6)


def test_large_pixels_are_averaged(module, source, pictures):
    # 16x16x3 = 768 values; 8x8x3 = 192 are the most that 200 allow
    found = extract(module, source, ["pixels"], target=200).endpoints["pixels"]
    blocks = crops(source, pictures, range(11)).reshape(11, 8, 2, 8, 2, 3).mean((2, 4))
    np.testing.assert_allclose(found, blocks.reshape(11, -1), atol=1e-6)
    assert extract(module, source, ["pixels"], image_size=80).endpoints["pixels"].shape == (11, 54 * 54 * 3)


def test_half_precision(module, source):
    full, half = (extract(module, source, dtype=d).endpoints["block"] for d in ("float32", "float16"))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="float64.*float32, float16"):
        extract(module, source, dtype="float64")


@pytest.mark.parametrize("scale, dtype", [(1e30, "float32"), (1e5, "float16")])
def test_infinite_features_are_refused(tmp_path, source, scale, dtype):
    broken = tf.train.Checkpoint()
    spec = tf.TensorSpec([None, 16, 16, 3])
    broken.__call__ = tf.function(lambda x: tf.reduce_mean(x, [1, 2]) * scale * scale, input_signature=[spec])
    tf.saved_model.save(broken, str(tmp_path / "m"), signatures={})
    with pytest.raises(
        UserError,
        match="endpoint output is infinite or not a number for 11 of 11 images of folder:.*the first: "
        + (".*use float32" if dtype == "float16" else ""),
    ):
        extract(str(tmp_path / "m"), source, dtype=dtype)


def test_one_endpoint_that_is_no_number_leaves_the_others(tmp_path, source, caplog):
    broken = tf.train.Checkpoint()
    spec = tf.TensorSpec([None, 16, 16, 3])
    level = lambda x: tf.reduce_mean(x, [1, 2])  # noqa: E731
    broken.__call__ = tf.function(
        lambda x: {"good": level(x), "odd": tf.math.log(level(x) - 0.4)}, input_signature=[spec]
    )
    tf.saved_model.save(broken, str(tmp_path / "m"), signatures={})
    with caplog.at_level("WARNING", logger="absl"):
        features = extract(str(tmp_path / "m"), source)
    bad = int((~np.isfinite(features.endpoints["odd"])).any(1).sum())
    assert 0 < bad < 11 and f"endpoint odd is infinite or not a number for {bad} of 11 images" in caplog.text
    with pytest.raises(UserError, match=f"/m': endpoint odd is .* {bad} of 11 images"):
        tfssl.downstream.run("knn", features, features)
    assert len(tfssl.downstream.run("knn", features, features, endpoints=["good"])) == 1
    with pytest.raises(UserError, match="endpoint odd"):
        features.save(str(tmp_path / "features.npz"))


def test_unreadable_images_are_dropped_and_named(module, pictures, tmp_path, caplog):
    for path, pixels in pictures[1].items():
        target = tmp_path / os.path.relpath(path, pictures[0])
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(
            b"\x89PNG broken" if path.endswith(("03.png", "04.png")) else tf.io.encode_png(pixels).numpy()
        )
    source = tfssl.open_source(f"folder:{tmp_path}")
    with caplog.at_level("WARNING", logger="absl"):
        found = extract(module, source, ["pixels"], batch_size=4)
    bad = [i for i in range(11) if source.name(i).endswith(("03.png", "04.png"))]
    assert list(found.index) == [i for i in range(11) if i not in bad]
    assert sorted(found.dropped) == sorted(source.name(i) for i in bad)
    assert [found.endpoints["pixels"].shape[0], len(found.labels)] == [9, 9]
    (warning,) = [r.getMessage() for r in caplog.records if "could not be read" in r.getMessage()]
    assert "2 of 11 images" in warning and "dark/03.png" in warning and "light/04.png" in warning
    names = [os.path.join(pictures[0], os.path.relpath(source.name(i), tmp_path)) for i in found.index]
    kept = np.stack([pictures[1][name] for name in names])[:, 2:18, 2:18] / 255.0
    np.testing.assert_allclose(found.endpoints["pixels"], kept.reshape(9, -1), atol=1e-6)


def test_no_readable_image(module, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match="a.png"):
        extract(module, tfssl.open_source(f"folder:{tmp_path}"))


def test_unknown_endpoint(module, source):
    with pytest.raises(UserError, match="no endpoint block9, logits; it has: stem, block, pre_logits, pixels"):
        extract(module, source, ["stem", "block9", "logits"])


class TestCache:
    @pytest.fixture
    def passes(self, monkeypatch):
        """The endpoints of each pass over the images that was really made."""
        made, fill = [], features._fill
        monkeypatch.setattr(features, "_fill", lambda arrays, *args: made.append(list(arrays)) or fill(arrays, *args))
        return made

    def test_a_second_call_reads(self, module, source, tmp_path, passes):
        plain = extract(module, source)
        first = extract(module, source, cache_dir=str(tmp_path))
        again = extract(module, source, cache_dir=str(tmp_path))
        assert len(passes) == 2 and first.seconds > 0 and again.seconds == 0
        assert isinstance(again.endpoints["block"], np.memmap) and isinstance(first.endpoints["block"], np.memmap)
        for name in plain.endpoints:
            np.testing.assert_array_equal(again.endpoints[name], plain.endpoints[name])
        np.testing.assert_array_equal(again.labels, plain.labels)
        np.testing.assert_array_equal(again.index, plain.index)

    def test_only_missing_endpoints_are_computed(self, module, source, tmp_path, passes):
        extract(module, source, ["block"], cache_dir=str(tmp_path))
        found = extract(module, source, ["stem", "block", "pixels"], cache_dir=str(tmp_path))
        assert passes == [["block"], ["stem", "pixels"]]
        assert list(found.endpoints) == ["stem", "block", "pixels"]

    @pytest.mark.parametrize(
        "settings", [{"image_size": 12}, {"resize": 17}, {"pool": "avg"}, {"target": 500}, {"dtype": "float16"}]
    )
    def test_other_settings_are_other_features(self, module, source, tmp_path, passes, settings):
        extract(module, source, ["stem"], cache_dir=str(tmp_path))
        cached = extract(module, source, ["stem"], cache_dir=str(tmp_path), **settings)
        np.testing.assert_array_equal(
            cached.endpoints["stem"], extract(module, source, ["stem"], **settings).endpoints["stem"]
        )

    def test_other_weights_are_other_features(self, module, source, tmp_path, passes):
        extract(module, source, ["stem"], cache_dir=str(tmp_path / "c"))
        (tmp_path / "other").mkdir()
        extract(tiny_modules.save_ours(tmp_path / "other", seed=1), source, ["stem"], cache_dir=str(tmp_path / "c"))
        assert len(passes) == 2

    def test_other_images_are_other_features(self, module, pictures, tmp_path, passes):
        def write(seed):
            for i in range(20):
                noise = np.random.default_rng(seed + i).integers(0, 256, [20, 20, 3]).astype(np.uint8)
                (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(noise).numpy())
            return tfssl.open_source(f"folder:{tmp_path}")

        first = extract(module, write(0), ["stem"], cache_dir=str(tmp_path / "c"))
        other = extract(module, write(100), ["stem"], cache_dir=str(tmp_path / "c"))  # under the same names
        assert len(passes) == 2
        assert not np.array_equal(first.endpoints["stem"], other.endpoints["stem"])

    def test_an_interrupted_pass_leaves_nothing(self, module, source, tmp_path, monkeypatch):
        def interrupted(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(features, "_fill", interrupted)
            with pytest.raises(KeyboardInterrupt):
                extract(module, source, ["stem"], cache_dir=str(tmp_path))
        assert [f for _, _, files in os.walk(tmp_path) for f in files] == ["key.json"]
        assert extract(module, source, ["stem"], cache_dir=str(tmp_path)).endpoints["stem"].shape == (11, 2048)

    def test_a_repaired_image_makes_a_new_pass(self, module, source, tmp_path, passes, monkeypatch):
        """The digest samples names and contents: what it misses, the rows of a later pass may show."""
        monkeypatch.setattr(features, "identity", lambda source: "the same")
        extract(module, source, ["stem"], cache_dir=str(tmp_path))
        fill = features._fill
        monkeypatch.setattr(
            features,
            "_fill",
            lambda arrays, *args: {**fill(arrays, *args), "index": np.arange(10), "labels": np.zeros(10, int)},
        )
        found = extract(module, source, ["stem", "block"], cache_dir=str(tmp_path))
        assert passes == [["stem"], ["block"], ["stem"]]
        assert found.endpoints["stem"].shape[0] == found.endpoints["block"].shape[0] == len(found.labels) == 10

    def test_remote_folder(self, module, source):
        with pytest.raises(UserError, match="gs://bucket.*local folder"):
            extract(module, source, cache_dir="gs://bucket/x")

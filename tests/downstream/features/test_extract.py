import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules
from sequences import Sequences

import tfssl
from tfssl.downstream.features import extract as features
from tfssl.downstream.features.extract import extract
from tfssl.errors import UserError
from tfssl.hub import load as modules


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
        np.testing.assert_allclose(
            found.endpoints[name], np.reshape(value, [11, -1]), rtol=1e-4, atol=1e-5
        )
        assert found.endpoints[name].dtype == np.float32
    assert list(found.index) == list(range(11))
    assert list(found.labels) == [
        source.class_names.index(source.name(i).split("/")[-2]) for i in range(11)
    ]
    assert found.dropped == [] and found.class_names == ["dark", "light"] and found.num_classes == 2


def test_maps_are_pooled(module, source):
    whole = (
        extract(module, source, ["stem"]).endpoints["stem"].reshape(11, 16, 16, 8)
    )  # 2048 values
    pooled = extract(module, source, ["stem"], target=600).endpoints[
        "stem"
    ]  # stride ceil(sqrt(2048 / 600)) = 2
    np.testing.assert_allclose(
        pooled, whole.reshape(11, 8, 2, 8, 2, 8).max((2, 4)).reshape(11, -1), rtol=1e-6
    )
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
    np.testing.assert_allclose(
        found.endpoints["pixels"], crops(source, pictures, range(11)).reshape(11, -1), atol=1e-6
    )


def test_frames_know_their_sequences(module):
    """By which a validation part takes or leaves them whole; of images there are none."""
    frames = Sequences([3, 5, 4])
    found = extract(module, frames, ["pixels"], batch_size=4, progress=False)
    assert found.sequences.dtype == np.int64
    np.testing.assert_array_equal(found.sequences, frames.sequences()[found.index])
    lost = features.sequences(frames, np.array([11, 2]))
    np.testing.assert_array_equal(lost, frames.sequences()[[11, 2]])


def test_large_pixels_are_averaged(module, source, pictures):
    # 16x16x3 = 768 values; 8x8x3 = 192 are the most that 200 allow
    found = extract(module, source, ["pixels"], target=200).endpoints["pixels"]
    blocks = crops(source, pictures, range(11)).reshape(11, 8, 2, 8, 2, 3).mean((2, 4))
    np.testing.assert_allclose(found, blocks.reshape(11, -1), atol=1e-6)
    assert extract(module, source, ["pixels"], image_size=80).endpoints["pixels"].shape == (
        11,
        54 * 54 * 3,
    )


def test_half_precision(module, source):
    full, half = (
        extract(module, source, dtype=d).endpoints["block"] for d in ("float32", "float16")
    )
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="float64.*float32, float16"):
        extract(module, source, dtype="float64")


@pytest.mark.parametrize("scale, dtype", [(1e30, "float32"), (1e5, "float16")])
def test_infinite_features_are_refused(tmp_path, source, scale, dtype):
    broken = tf.train.Checkpoint()
    spec = tf.TensorSpec([None, 16, 16, 3])
    broken.__call__ = tf.function(
        lambda x: tf.reduce_mean(x, [1, 2]) * scale * scale, input_signature=[spec]
    )
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
    assert (
        0 < bad < 11
        and f"endpoint odd is infinite or not a number for {bad} of 11 images" in caplog.text
    )
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
            b"\x89PNG broken"
            if path.endswith(("03.png", "04.png"))
            else tf.io.encode_png(pixels).numpy()
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
    names = [
        os.path.join(pictures[0], os.path.relpath(source.name(i), tmp_path)) for i in found.index
    ]
    kept = np.stack([pictures[1][name] for name in names])[:, 2:18, 2:18] / 255.0
    np.testing.assert_allclose(found.endpoints["pixels"], kept.reshape(9, -1), atol=1e-6)


def test_no_readable_image(module, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match="a.png"):
        extract(module, tfssl.open_source(f"folder:{tmp_path}"))


def test_unknown_endpoint(module, source):
    with pytest.raises(
        UserError, match="no endpoint block9, logits; it has: stem, block, pre_logits, pixels"
    ):
        extract(module, source, ["stem", "block9", "logits"])


class TestCache:
    @pytest.fixture
    def passes(self, monkeypatch):
        """The endpoints of each pass over the images that was really made."""
        made, fill = [], features._fill
        monkeypatch.setattr(
            features,
            "_fill",
            lambda arrays, *args: made.append(list(arrays)) or fill(arrays, *args),
        )
        return made

    def test_a_second_call_reads(self, module, source, tmp_path, passes):
        plain = extract(module, source)
        first = extract(module, source, cache_dir=str(tmp_path))
        again = extract(module, source, cache_dir=str(tmp_path))
        assert len(passes) == 2 and first.seconds > 0 and again.seconds == 0
        assert isinstance(again.endpoints["block"], np.memmap) and isinstance(
            first.endpoints["block"], np.memmap
        )
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
        "settings",
        [
            {"image_size": 12},
            {"resize": 17},
            {"pool": "avg"},
            {"target": 500},
            {"dtype": "float16"},
        ],
    )
    def test_other_settings_are_other_features(self, module, source, tmp_path, passes, settings):
        extract(module, source, ["stem"], cache_dir=str(tmp_path))
        cached = extract(module, source, ["stem"], cache_dir=str(tmp_path), **settings)
        np.testing.assert_array_equal(
            cached.endpoints["stem"],
            extract(module, source, ["stem"], **settings).endpoints["stem"],
        )

    def test_other_weights_are_other_features(self, module, source, tmp_path, passes):
        extract(module, source, ["stem"], cache_dir=str(tmp_path / "c"))
        (tmp_path / "other").mkdir()
        extract(
            tiny_modules.save_ours(tmp_path / "other", seed=1),
            source,
            ["stem"],
            cache_dir=str(tmp_path / "c"),
        )
        assert len(passes) == 2

    def test_other_images_are_other_features(self, module, pictures, tmp_path, passes):
        def write(seed):
            for i in range(20):
                noise = (
                    np.random.default_rng(seed + i).integers(0, 256, [20, 20, 3]).astype(np.uint8)
                )
                (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(noise).numpy())
            return tfssl.open_source(f"folder:{tmp_path}")

        first = extract(module, write(0), ["stem"], cache_dir=str(tmp_path / "c"))
        other = extract(
            module, write(100), ["stem"], cache_dir=str(tmp_path / "c")
        )  # under the same names
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
        assert extract(module, source, ["stem"], cache_dir=str(tmp_path)).endpoints[
            "stem"
        ].shape == (11, 2048)

    def test_other_rows_make_a_new_pass(self, module, source, tmp_path, passes, monkeypatch):
        """What an earlier pass read of the same files, while one could not be read, say, is not
        mixed with a later one's."""
        extract(module, source, ["stem"], cache_dir=str(tmp_path))
        fill = features._fill
        monkeypatch.setattr(
            features,
            "_fill",
            lambda arrays, *args: {
                **fill(arrays, *args),
                "index": np.arange(10),
                "labels": np.zeros(10, int),
            },
        )
        found = extract(module, source, ["stem", "block"], cache_dir=str(tmp_path))
        assert passes == [["stem"], ["block"], ["stem"]]
        assert (
            found.endpoints["stem"].shape[0]
            == found.endpoints["block"].shape[0]
            == len(found.labels)
            == 10
        )

    def test_damaged_features_are_computed_again(self, module, source, tmp_path, passes, caplog):
        extract(module, source, ["stem", "block"], cache_dir=str(tmp_path))
        (path,) = tmp_path.glob("*/stem.npy")
        with open(path, "r+b") as f:
            f.seek(200)
            f.write(bytes(50))
        with caplog.at_level("WARNING", logger="absl"):
            again = extract(module, source, ["stem", "block"], cache_dir=str(tmp_path))
        assert passes == [["stem", "block"], ["stem"]] and "stem.npy are damaged" in caplog.text
        np.testing.assert_array_equal(
            again.endpoints["stem"], extract(module, source, ["stem"]).endpoints["stem"]
        )

    @pytest.mark.parametrize("what", ["values", "labels"])
    def test_verify_computes_a_sample_again(
        self, module, source, tmp_path, passes, monkeypatch, caplog, what
    ):
        """Of features that were wrong when they were written, with the checksums of what is
        wrong."""
        fill = features._fill

        def wrong(arrays, *args):
            rows = fill(arrays, *args)
            if what == "labels":
                return {**rows, "labels": 1 - rows["labels"]}
            arrays["block"][7] += 1
            return rows

        with monkeypatch.context() as patch:
            patch.setattr(features, "_fill", wrong)
            extract(module, source, ["stem", "block"], cache_dir=str(tmp_path))
        fresh = extract(module, source, ["stem", "block"])
        del passes[:]
        with caplog.at_level("WARNING", logger="absl"):
            found = extract(module, source, ["stem", "block"], cache_dir=str(tmp_path), verify=True)
        assert passes == [["stem", "block"]] * 2 and "computed again" in caplog.text
        np.testing.assert_array_equal(found.endpoints["block"], fresh.endpoints["block"])
        np.testing.assert_array_equal(found.labels, fresh.labels)
        assert (
            extract(module, source, ["stem", "block"], cache_dir=str(tmp_path), verify=True).seconds
            == 0
        )

    def test_a_source_that_does_not_say_what_it_is_made_of_is_not_cached(
        self, module, source, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(type(source), "parts", tfssl.data.Source.parts)
        extract(module, source, ["block"], cache_dir=str(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_remote_folder(self, module, source):
        with pytest.raises(UserError, match="gs://bucket.*local folder"):
            extract(module, source, cache_dir="gs://bucket/x")


def bitmap(seed, side=20):
    """A BMP of random pixels, always as many bytes; and the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, [side, side, 3]).astype(np.uint8)
    head = b"BM" + (54 + pixels.size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    sizes = (40).to_bytes(4, "little") + side.to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
    return head + sizes + pixels[::-1, :, ::-1].tobytes(), pixels


def content(seed):
    return b"BM broken" if seed is None else bitmap(seed)[0]


def rewrite(path, data, touched):
    """Write a file in place, if its contents are others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
        touched.append(path)


class Written:
    """A data set of [name, label, seed of the pixels] rows, written as one of several kinds; label i is that of classes[i]."""

    def __init__(self, kind, root):
        self.kind, self.root, self.classes = kind, root, ["dark", "light"]
        self.rows = [[f"{i:02}", i % 2, i] for i in range(12)]

    def write(self):
        """Write what has changed; the files that were written."""
        touched = []
        getattr(self, self.kind.split(":")[0])(touched)
        return touched

    def folder(self, touched):
        paths = [self.root / self.classes[label] / f"{name}.bmp" for name, label, _ in self.rows]
        for path in {*self.root.rglob("*.bmp")} - {*paths}:
            path.unlink()
        for path, (_, _, seed) in zip(paths, self.rows):
            rewrite(path, content(seed), touched)

    def records(self, image, label):
        """The bytes of a TFRecord file."""
        path = self.root.with_suffix(".unfinished")
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _, number, seed in self.rows:
                feature = {
                    image: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content(seed)])),
                    label: tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=feature)
                    ).SerializeToString()
                )
        return path.read_bytes()

    def tfrecord(self, touched):
        rewrite(
            self.root / "train-00000-of-00001",
            self.records("image/encoded", "image/class/label"),
            touched,
        )

    def tfds(self, touched):
        """As tensorflow-datasets prepares it."""
        folder, data, module = (
            self.root / "own" / "1.0.0",
            self.records("image", "label"),
            "tensorflow_datasets.core.features.",
        )
        image = {
            "shape": {"dimensions": ["-1", "-1", "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        }
        features_ = {
            "image": {"pythonClassName": f"{module}image_feature.Image", "image": image},
            "label": {
                "pythonClassName": f"{module}class_label_feature.ClassLabel",
                "classLabel": {"numClasses": "2"},
            },
        }
        whole = {
            "pythonClassName": f"{module}features_dict.FeaturesDict",
            "featuresDict": {"features": features_},
        }
        split = {"name": "train", "shardLengths": [str(len(self.rows))], "numBytes": str(len(data))}
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info = {"name": "own", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
        rewrite(folder / "features.json", json.dumps(whole).encode(), touched)
        rewrite(folder / "label.labels.txt", "\n".join(self.classes).encode(), touched)
        rewrite(folder / "dataset_info.json", json.dumps(info).encode(), touched)
        rewrite(folder / "own-train.tfrecord-00000-of-00001", data, touched)

    def open(self):
        if self.kind == "tfds":
            return tfssl.open_source("tfds:own", data_dir=str(self.root))
        kind, _, remote = self.kind.partition(":")
        return tfssl.open_source(f"{kind}:{'file://' if remote else ''}{self.root}")

    def expected(self, source):
        """Pixels of the central 16x16 [n, 768] in [0, 1], and the class's number of each, as the
        source counts; no unreadable images."""
        rows, classes = self.rows, self.classes
        if self.kind.startswith("folder"):
            classes = sorted(classes)
            by_name = {f"{self.classes[row[1]]}/{row[0]}.bmp": row for row in rows}
            rows = [by_name["/".join(name.split("/")[-2:])] for name in source.names()]
        rows = [row for row in rows if row[2] is not None]
        pixels = [bitmap(seed)[1][2:18, 2:18].reshape(-1) / 255 for _, _, seed in rows]
        return (
            np.array(pixels),
            [classes.index(self.classes[label]) for _, label, _ in rows],
            classes,
        )


def swap(rows, i, j):
    rows[i][2], rows[j][2] = rows[j][2], rows[i][2]


IN_PLACE = {
    "an image": lambda d: d.rows[9].__setitem__(2, 100),
    "an image, with its old time": lambda d: d.rows[10].__setitem__(2, 101),
    "the last image": lambda d: d.rows[-1].__setitem__(2, 102),
    "two images change places": lambda d: swap(d.rows, 2, 7),
    "a label": lambda d: d.rows[8].__setitem__(1, 1),
    "all labels": lambda d: [row.__setitem__(1, 1 - row[1]) for row in d.rows],
    "an image more": lambda d: d.rows.append(["99", 0, 103]),
    "an image less": lambda d: d.rows.pop(3),
    "a name": lambda d: d.rows[4].__setitem__(0, "aa"),
    "a class's name": lambda d: d.classes.__setitem__(0, "zenith"),
    "an image breaks": lambda d: d.rows[5].__setitem__(2, None),
    "it is repaired": lambda d: d.rows[5].__setitem__(2, 104),
}


@pytest.mark.parametrize("kind", ["folder", "folder:file", "tfrecord", "tfds"])
def test_no_change_in_place_leaves_stale_features(kind, module, tmp_path):
    """Twelve changes, one after the other: what comes of the cache is what the files hold now."""
    data, stale = Written(kind, tmp_path / "data"), []
    for change in (None, *IN_PLACE):
        before = {path: path.stat() for path in (tmp_path / "data").rglob("*")}
        if change:
            IN_PLACE[change](data)
        for path in data.write():
            if change and "old time" in change:
                os.utime(path, ns=(before[path].st_atime_ns, before[path].st_mtime_ns))
        source = data.open()
        found = extract(
            module, source, ["pixels"], cache_dir=str(tmp_path / "cache"), progress=False
        )
        pixels, labels, classes = data.expected(source)
        same = found.endpoints["pixels"].shape == pixels.shape
        same = (
            same
            and np.allclose(found.endpoints["pixels"], pixels, atol=1e-6)
            and list(found.labels) == labels
        )
        if not same or found.class_names not in (None, classes):
            stale.append(change)
    assert stale == []
    assert (
        extract(
            module, data.open(), ["pixels"], cache_dir=str(tmp_path / "cache"), progress=False
        ).seconds
        == 0
    )


EXTRACTION = """
import sys
from tfssl.downstream.features import cache
cache._SECONDS = 0
import tfssl
from tfssl.downstream.features.extract import extract
kept, keep, kill_after = [0], cache.FeatureCache.keep, int(sys.argv[4])
def counted(self, arrays, done, rows):
    kept[0] += 1
    if kept[0] == kill_after:
        import os, signal
        if int(sys.argv[5]):
            arrays["block"][done:] = 77
            keep(self, arrays, done, rows)
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, arrays, done, rows)
cache.FeatureCache.keep = counted
extract(sys.argv[1], tfssl.open_source(sys.argv[2]), ["block", "pixels"], batch_size=4, cache_dir=sys.argv[3])
print(kept[0], "steps")
"""


@pytest.mark.usefixtures("optimized")  # which the processes have
def test_killed_at_each_of_its_steps_it_goes_on_to_the_same_array(modules_dir, pictures, tmp_path):
    """Before and after a record of its progress: SIGKILL, four times in a row, and then the end."""
    module, source = str(modules_dir / "ours" / "1"), f"folder:{pictures[0]}"
    whole = extract(module, tfssl.open_source(source), ["block", "pixels"], batch_size=4)

    def run(kill_after, recorded):
        arguments = [module, source, str(tmp_path), str(kill_after), str(int(recorded))]
        return subprocess.run(
            [sys.executable, "-c", EXTRACTION, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    assert run(1, False).returncode == -signal.SIGKILL  # nothing of it is left
    assert run(2, False).returncode == -signal.SIGKILL  # four images are
    again = run(1, True)  # at eight
    assert again.returncode == -signal.SIGKILL and "4 of 11 images are done" in again.stdout
    last = run(99, False)
    assert last.returncode == 0, last.stderr
    assert "8 of 11 images are done" in last.stdout and "1 steps" in last.stdout
    found = extract(
        module,
        tfssl.open_source(source),
        ["block", "pixels"],
        batch_size=4,
        cache_dir=str(tmp_path),
    )
    assert found.seconds == 0 and list(found.index) == list(range(11))
    np.testing.assert_array_equal(found.labels, whole.labels)
    for name in whole.endpoints:
        np.testing.assert_array_equal(found.endpoints[name], whole.endpoints[name])


@pytest.mark.slow
def test_killed_at_twenty_moments_it_goes_on_to_the_same_arrays(modules_dir, tmp_path):
    """Wherever it is by then: it does not wait. A record of its progress after each batch."""
    rng, photos = np.random.default_rng(0), tmp_path / "photos"
    photos.mkdir()
    for i in range(400):
        picture = rng.integers(0, 256, [20, 20, 3], np.uint8)
        (photos / f"{i:03}.png").write_bytes(tf.io.encode_png(picture).numpy())
    module, source = str(modules_dir / "ours" / "1"), f"folder:{photos}"
    told = EXTRACTION.replace(
        "rows)\ncache.", "rows)\n    print('kept', done, flush=True)\ncache."
    )  # a record: each process adds four images at least
    command = [sys.executable, "-c", told, module, source, str(tmp_path / "cache"), "999", "0"]
    reached = []
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.startswith("kept"):
                break
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        reached.append(int(line.split()[1]))
        process.communicate()
    assert reached == sorted(reached) and reached[-1] >= reached[0] + 19 * 4, (
        reached
    )  # each went on
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "of 400 images are done" in last
    settings = {"endpoints": ["block", "pixels"], "batch_size": 4}
    whole = extract(module, tfssl.open_source(source), **settings)
    found = extract(
        module, tfssl.open_source(source), **settings, cache_dir=str(tmp_path / "cache")
    )
    assert found.seconds == 0 and list(found.index) == list(range(400))
    for name in whole.endpoints:
        np.testing.assert_array_equal(found.endpoints[name], whole.endpoints[name])

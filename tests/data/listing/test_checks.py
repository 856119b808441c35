import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.data import gaps, pipeline
from tfssl.data.listing import checks
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.subset import nested
from tfssl.errors import UserError


def test_probe_passes_with_one_readable_image(write_images, tmp_path):
    root = write_images([f"{i}.jpg" for i in range(20)])
    for i in range(19):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(b"broken")
    tfssl.open_source("folder:" + root).check_readable()


def test_probe_names_the_first_image_and_the_reason(write_images, tmp_path):
    root = write_images([f"{i}.jpg" for i in range(20)])
    for i in range(20):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(b"this is no image")
    source = tfssl.open_source("folder:" + root)
    with pytest.raises(
        UserError, match="none of the first 5 images of folder:.*Unknown image file format"
    ) as error:
        source.check_readable(limit=5)
    assert source.name(0) in str(error.value) and "\n" not in str(error.value)


def test_probe_of_a_file_that_is_gone(write_images, tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "PATIENCE", 0.1)
    source = tfssl.open_source("folder:" + write_images(["1.jpg"]))
    (tmp_path / "photos" / "1.jpg").unlink()
    with pytest.raises(UserError, match="1.jpg.*No such file"):
        source.check_readable()


def test_probe_of_no_image():
    with pytest.raises(UserError, match="mine, split train, has no images"):
        IndexedSource("mine", "train", num_examples=0).check_readable()


def test_scan_counts_classes_and_finds_what_is_wrong(write_images, tmp_path):
    photos = tmp_path / "photos"
    root = write_images([f"{name}/{i}.png" for name in ("a", "b") for i in range(5)])
    (photos / "a" / "0.png").write_bytes((photos / "b" / "3.png").read_bytes())
    (photos / "b" / "4.png").write_bytes((photos / "b" / "3.png").read_bytes())
    (photos / "a" / "2.png").write_bytes((photos / "a" / "1.png").read_bytes())
    (photos / "a" / "3.png").write_bytes((photos / "a" / "3.png").read_bytes()[:40])
    (photos / "b" / "0.png").write_bytes(b"")
    (photos / "b" / "notes.txt").write_text("x")
    seen = []
    found = tfssl.open_source("folder:" + root).scan(lambda done, count: seen.append((done, count)))
    assert found.images == 10 and found.per_class == {"a": 4, "b": 4} and found.unlabelled == 0
    assert {name for name, _ in found.unreadable} == {f"{root}/a/3.png", f"{root}/b/0.png"}
    assert all(reason and "\n" not in reason for _, reason in found.unreadable)
    groups = [
        {f"{root}/a/0.png", f"{root}/b/3.png", f"{root}/b/4.png"},
        {f"{root}/a/1.png", f"{root}/a/2.png"},
    ]
    assert sorted(map(set, found.duplicates), key=len, reverse=True) == groups
    assert found.ignored == {".txt": 1} and found.sizes == {(6, 5): 8}
    assert seen[-1] == (8, 10)


@pytest.mark.parametrize("codec", [tf.io.encode_png, tf.io.encode_jpeg])
def test_images_too_thin_to_crop_are_named_with_their_sides(write_images, tmp_path, codec):
    """Decoding alone reads them; the crop of training, evaluation and prediction refuses them."""
    root = write_images(["a.png", "b.png"])
    for name, sides in {"thin": (4, 400), "tall": (404, 8), "just": (4, 200)}.items():
        image = codec(np.zeros([*sides, 3], np.uint8)).numpy()
        (tmp_path / "photos" / f"{name}.png").write_bytes(image)
    source = tfssl.open_source("folder:" + root)
    found = source.scan()
    assert found.images == 5 and found.sizes == {(6, 5): 2, (4, 200): 1}
    reasons = dict(found.unreadable)
    assert set(reasons) == {f"{root}/{name}.png" for name in ("thin", "tall")}
    for name, sides in (("thin", "4 400"), ("tall", "404 8")):
        assert "more than 50 times the other" in reasons[f"{root}/{name}.png"]
        assert sides in reasons[f"{root}/{name}.png"]

    seen = np.zeros(source.places, bool)
    for batch in pipeline.evaluation_crops(source, 8, 8, 5).as_numpy_iterator():
        seen[batch["index"][batch["weight"] > 0]] = True
    assert seen.sum() == 3
    assert dict(checks.reasons(source, ~seen)) == reasons  # as predictions.csv tells them

    for name in ("a", "b", "just"):
        (tmp_path / "photos" / f"{name}.png").unlink()
    with pytest.raises(UserError, match="none of the first 2 images.*more than 50 times"):
        tfssl.open_source("folder:" + root).check_readable()


def test_unreadable_images_of_a_subset_are_named(write_images, tmp_path):
    """Theirs alone, also where their place in the split is beyond the subset's length."""
    root = write_images([f"{i:02}.png" for i in range(40)])
    for i in range(0, 40, 4):
        (tmp_path / "photos" / f"{i:02}.png").write_bytes(b"no image")
    source = nested(tfssl.open_source("folder:" + root), 20, seed=3)
    chosen = {source.name_in_graph(r).numpy().decode() for r in source.records()}
    found = {name for name, _ in source.scan().unreadable}
    assert found == {name for name in chosen if int(name[-6:-4]) % 4 == 0} and found


def test_scan_of_a_stream(write_records, tmp_path):
    root = write_records({"train-00000-of-00002": [0, 1, None], "train-00001-of-00002": [1, 1]})
    with tf.io.TFRecordWriter(f"{root}/train-00001-of-00002") as writer:
        for image in (b"broken", None):
            feature = tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[image] if image else [])
            )
            example = tf.train.Example(
                features=tf.train.Features(feature={"image/encoded": feature})
            )
            writer.write(example.SerializeToString())
    found = tfssl.open_source("tfrecord:" + root).scan()
    assert found.images == 5 and found.per_class == {"0": 1, "1": 1} and found.unlabelled == 1
    assert [name for name, _ in found.unreadable] == [
        f"record {i} of {root}/train-00001-of-00002" for i in (0, 1)
    ]
    assert found.duplicates == []


def test_scan_of_pixels():
    class Pixels(tfssl.data.sources.base.IndexedSource):
        def fetch(self, record):
            image = tf.cast(tf.fill([4, 4, 3], record["index"] % 3), tf.uint8)
            return {"image": image, "label": tf.constant(-1, tf.int64), "index": record["index"]}

        def name(self, index):
            return str(index)

    found = Pixels("x", "train", 5).scan()
    assert (
        found.duplicates == [["0", "3"], ["1", "4"]]
        and found.unlabelled == 5
        and found.per_class == {}
    )
    Pixels("x", "train", 5).check_readable()
    assert np.sum(list(found.sizes.values())) == 5

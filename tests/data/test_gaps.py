"""Images that cannot be had: an outage that passes changes nothing, one that lasts ends the run by
name; bounds on what is replaced."""

import dataclasses
import os
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import errors
from tfssl.data import gaps, pipeline
from tfssl.data.listing import checks, counts
from tfssl.downstream.features import extract as features
from tfssl.downstream.features import maps
from tfssl.runtime import failures


def number(example, seed):
    """An image whose gray value is its number."""
    return {"image": tf.ensure_shape(tf.io.decode_png(example["image"], channels=3), [4, 4, 3])}


def gray(value):
    return tf.io.encode_png(np.full([4, 4, 3], value, np.uint8)).numpy()


def folder(path, broken=()):
    """48 images, by number; those that are `broken` are none."""
    path.mkdir()
    for i in range(48):
        (path / f"{i:02}.png").write_bytes(b"no image" if i in broken else gray(i))
    return tfssl.open_source(f"folder:{path}")


def values(batches):
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


def test_an_outage_that_passes_changes_nothing(tmp_path, capfd):
    """Before 0.2 about 40 steps followed on copies of the first image that came back."""
    source = folder(tmp_path / "photos")
    expected = values(
        pipeline.training_batches(source, number, 8, seed=1, steps=300).as_numpy_iterator()
    )
    batches = pipeline.training_batches(source, number, 8, seed=1, steps=300).as_numpy_iterator()
    seen = [next(batches) for _ in range(3)]
    os.rename(tmp_path / "photos", tmp_path / "gone")
    threading.Timer(1.0, os.rename, (tmp_path / "gone", tmp_path / "photos")).start()
    seen += list(batches)
    assert values(seen) == expected
    assert not any(batch["replaced"].any() for batch in seen)
    (line,) = capfd.readouterr().err.splitlines()
    assert "No such file" in line and "photos/" in line and "trying again for 40 s" in line


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_an_outage_that_lasts_is_one_line_that_names_a_file(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "PATIENCE", 0.5)
    source = folder(tmp_path / "photos")
    if kind == "training":
        batches = pipeline.training_batches(source, number, 8)
    else:
        batches = pipeline.evaluation_batches(source, number, 8)
    shutil.move(tmp_path / "photos", tmp_path / "gone")
    begun = time.monotonic()
    with pytest.raises(tf.errors.OpError) as caught:
        next(batches.as_numpy_iterator())
    assert time.monotonic() - begun < 5
    line = failures.explain(caught.value)
    assert (
        f"{tmp_path}/photos/" in line
        and "No such file or directory" in line
        and "same command again" in line
    )
    assert "\n" not in line and "Traceback" not in line


def test_a_file_that_is_away_alone_may_be_taken_out(tmp_path, monkeypatch, capfd):
    """Its folder answers; where it is a link, the line says where that leads."""
    monkeypatch.setattr(gaps, "PATIENCE", 0.2)
    source = folder(tmp_path / "photos")
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "gone.png")
    with pytest.raises(errors.UserError) as caught:
        source.check_readable(1)
    link = f"No such file or directory (it is a link to {tmp_path}/gone.png, which is not there)"
    line = str(caught.value)
    assert f"{link}; it was tried for 0.2 s. Once it can be read again" in line
    assert line.endswith("from what is saved; or take it out of the data") and "\n" not in line
    assert f"{link}; trying again" in capfd.readouterr().err
    shutil.move(tmp_path / "photos", tmp_path / "gone")
    with pytest.raises(errors.UserError, match="directory; it was tried .* from what is saved$"):
        source.check_readable(1)


def all_maps(source):
    def read(example):
        return number(example, None)["image"], {"boxes": tf.range(example["index"] % 3)}

    made = maps.Maps(None, source, ["images"], read, batch_size=8)
    return (
        made.arrays["images"][:, 0, 0, 0].tolist(),
        [len(answer["boxes"]) for answer in made.annotations],
        made.dropped,
    )


PASSES = {
    "maps": all_maps,
    "labels": lambda source: tf.nest.map_structure(list, features.read_labels(source)),
    "scan": lambda source: dataclasses.astuple(source.scan()),
    "sides": lambda source: maps.image_sides(source, (0, 0)),
    "labelled": checks.unlabelled,
}


@pytest.mark.parametrize("kind", PASSES)
def test_no_pass_leaves_out_what_could_not_be_reached_for_a_while(kind, shards):
    """Files that are gone for half a second; of those that stay away the pass says so, and makes no
    shorter list of the rest."""
    expected = PASSES[kind](tfssl.open_source(f"tfrecord:{shards}"))
    source = tfssl.open_source(f"tfrecord:{shards}")
    os.rename(shards, f"{shards}.gone")
    threading.Timer(0.5, os.rename, (f"{shards}.gone", shards)).start()
    assert PASSES[kind](source) == expected


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_that_reaches_nothing_any_more_ends_by_name(kind, shards, monkeypatch):
    source = tfssl.open_source(f"tfrecord:{shards}")
    monkeypatch.setattr(gaps, "PATIENCE", 0.3)
    os.rename(shards, f"{shards}.gone")
    begun = time.monotonic()
    with pytest.raises((tfssl.errors.UserError, tf.errors.OpError)) as caught:
        PASSES[kind](source)
    assert time.monotonic() - begun < 20
    line = (
        str(caught.value)
        if isinstance(caught.value, tfssl.errors.UserError)
        else failures.explain(caught.value)
    )
    assert (
        f"{shards}/train-00000-of-00003" in line
        and "it was tried for 0.3 s" in line
        and "same command again" in line
    )


def test_undecodable_images_are_left_out_of_maps_and_labels_alone_know_them(tmp_path):
    source = folder(tmp_path / "photos", {3, 17})
    images, boxes, dropped = all_maps(source)
    order = [int(name[-6:-4]) for name in source.names()]
    kept = [(number, place) for place, number in enumerate(order) if number not in (3, 17)]
    assert images == [number for number, _ in kept] and boxes == [place % 3 for _, place in kept]
    assert sorted(name[-6:] for name in dropped) == ["03.png", "17.png"]


def test_counting_waits_for_files_that_are_away(shards, monkeypatch):
    (shards / ".tfssl_counts.json").unlink()
    paths = [str(path) for path in sorted(shards.iterdir())]
    count = counts._counter("image/class/label", {})
    os.rename(shards, f"{shards}.gone")
    threading.Timer(0.5, os.rename, (f"{shards}.gone", shards)).start()
    assert [count(path)["records"] for path in paths] == [20, 20, 20]
    os.rename(shards, f"{shards}.gone")
    monkeypatch.setattr(gaps, "PATIENCE", 0.3)
    with pytest.raises(
        tfssl.errors.UserError,
        match="train-00000-of-00003 cannot be read: No such file or directory; it was tried",
    ):
        count(paths[0])


@pytest.mark.parametrize("number", errors.TROUBLES)
def test_a_disk_in_trouble_says_nothing_about_the_image(number):
    """TensorFlow makes a FailedPreconditionError of ENOTCONN, as of a folder that is called like an
    image."""
    for kind in (
        tf.errors.FailedPreconditionError,
        tf.errors.OutOfRangeError,
        tf.errors.UnknownError,
    ):
        assert not gaps.is_of_content(kind(None, None, f"/mnt/a.jpg; {os.strerror(number)}"))
    assert gaps.is_of_content(
        tf.errors.FailedPreconditionError(None, None, "/mnt/a.jpg; Is a directory")
    )


def test_unreadable_images_are_named_once_with_the_reason(tmp_path, capfd):
    source = folder(tmp_path / "photos", {3, 17})
    for _ in range(2):  # a picture for TensorBoard, then training
        list(pipeline.training_batches(source, number, 8, seed=1, steps=20))
    lines = sorted(capfd.readouterr().err.splitlines())
    assert [line.split(": ")[1][-6:] for line in lines] == ["03.png", "17.png"]
    assert all(
        line.startswith("skipped unreadable image: ") and "image" in line.split(": ")[2]
        for line in lines
    )
    assert list(source.unreadable) and all(source.unreadable.values())


def test_a_gap_longer_than_a_batch_ends_the_run(tmp_path):
    """The order of seed 1 is known, so exactly the images of its places 20 to 28 can be broken: a
    batch is 8."""
    source = folder(tmp_path / "whole")
    order = [int(source.name(int(r["index"]))[-6:-4]) for r in source.records(seed=1).take(48)]
    batches = pipeline.training_batches(
        folder(tmp_path / "borne", order[20:28]), number, 8, seed=1, steps=6
    )
    seen = np.concatenate(values(batches.as_numpy_iterator()))
    np.testing.assert_array_equal(seen[20:29], order[28])
    source = folder(tmp_path / "not borne", order[20:29])
    with pytest.raises(tf.errors.OpError) as caught:
        list(pipeline.training_batches(source, number, 8, seed=1, steps=6))
    line = failures.explain(caught.value)
    assert "9 images in a row cannot be decoded" in line and any(
        f"/{i:02}.png: " in line for i in order[20:29]
    )


def test_where_nothing_can_be_decoded_the_run_ends(tmp_path):
    source = folder(tmp_path / "photos")
    with pytest.raises(tf.errors.OpError, match="in a row cannot be decoded.*no good"):
        list(pipeline.training_batches(source, _fails, 8, seed=1, steps=6))


def _fails(example, seed):
    with tf.control_dependencies(
        [tf.debugging.assert_equal(tf.strings.length(example["image"]), -1, "no good")]
    ):
        return {"image": tf.zeros([4, 4, 3], tf.uint8)}


@pytest.fixture
def shards(tmp_path):
    """3 files of 20 images, counted."""
    for shard in range(3):
        with tf.io.TFRecordWriter(f"{tmp_path}/train-{shard:05}-of-00003") as writer:
            for i in range(20):
                content = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[gray(20 * shard + i)])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[i % 2])
                    ),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=content)
                    ).SerializeToString()
                )
    tfssl.open_source(f"tfrecord:{tmp_path}")
    return tmp_path


def damage(file, how):
    """Returns the first record that is lost; those of these files are equally long."""
    status, content = file.stat(), bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2 + 5] ^= 0xFF
        first = (len(content) // 2 + 5) // (len(content) // 20)
    else:
        del content[len(content) // 20 * 12 :]
        first = 12
    file.write_bytes(content)
    if how == "flip":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    return first, len(bytearray(content)) // (20 if how == "flip" else 12) * first


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_shard_ends_the_run_or_keeps_all_numbers(how, shards):
    def run(source, start=0, steps=18):
        return list(
            pipeline.training_batches(source, number, 10, 3, start, steps).as_numpy_iterator()
        )

    source = tfssl.open_source(f"tfrecord:{shards}")
    whole = run(source)
    first, offset = damage(shards / "train-00001-of-00003", how)
    for passes in (run, lambda source: list(pipeline.evaluation_batches(source, number, 10))):
        with pytest.raises(tf.errors.OpError) as caught:
            passes(source)
        line = failures.explain(caught.value)
        assert (
            f"'{shards}/train-00001-of-00003' is damaged" in line
            and "--skip_damaged_shards" in line
        )
        assert f"after {first} records (at byte {offset})" in line

    source = tfssl.open_source(f"tfrecord:{shards}", skip_damaged_shards=True)
    lost = np.arange(20 + first, 40)
    assert source.num_examples == 60
    borne = run(source)
    for was, is_ in zip(whole, borne):
        np.testing.assert_array_equal(is_["number"], was["number"])
        np.testing.assert_array_equal(is_["replaced"], np.isin(was["index"], lost))
        np.testing.assert_array_equal(
            is_["index"][~is_["replaced"]], was["index"][~is_["replaced"]]
        )
        np.testing.assert_array_equal(is_["image"][:, 0, 0, 0], is_["index"])
        assert all(20 <= i < 20 + first for i in is_["index"][is_["replaced"]])
    for start in (4, 9):
        for a, b in zip(borne[start:], run(source, start, 18 - start)):
            np.testing.assert_array_equal(a["image"], b["image"])
    seen = [
        b["index"][b["weight"] > 0]
        for b in pipeline.evaluation_batches(source, number, 10).as_numpy_iterator()
    ]
    np.testing.assert_array_equal(np.concatenate(seen), np.setdiff1d(np.arange(60), lost))


def test_a_shard_that_cannot_be_reached_for_a_while(shards):
    source = tfssl.open_source(f"tfrecord:{shards}")
    expected = values(
        pipeline.training_batches(source, number, 10, 3, steps=30).as_numpy_iterator()
    )
    os.rename(shards, f"{shards}.gone")
    threading.Timer(1.0, os.rename, (f"{shards}.gone", shards)).start()
    assert (
        values(pipeline.training_batches(source, number, 10, 3, steps=30).as_numpy_iterator())
        == expected
    )

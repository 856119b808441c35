"""Fixtures: tiny image files and TFRecords, and a cache folder of the test's own."""

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder of the test."""
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encode():
    """Function (number, format) -> the bytes of an image that no other number gives."""

    def encode(number, ending=".png"):
        image = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
        return (tf.io.encode_png(image) if ending == ".png" else tf.io.encode_jpeg(image)).numpy()

    return encode


@pytest.fixture
def write_images(tmp_path, encode):
    """Function (list of relative paths) -> the folder that holds them, each another image."""

    def write(paths, root="photos"):
        for number, path in enumerate(paths):
            file = tmp_path / root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(number, ".png" if path.lower().endswith("png") else ".jpg"))
        return str(tmp_path / root)

    return write


@pytest.fixture
def write_records(tmp_path, encode):
    """Function ({file name: labels, one per record; None: no label}) -> folder; record k of all has
    image k."""

    def write(files, image_key="image/encoded", label_key="image/class/label", root="records"):
        (tmp_path / root).mkdir(exist_ok=True)
        number = 0
        for name, labels in files.items():
            with tf.io.TFRecordWriter(str(tmp_path / root / name)) as writer:
                for label in labels:
                    feature = {
                        image_key: tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[encode(number)])
                        )
                    }
                    if label is not None:
                        feature[label_key] = tf.train.Feature(
                            int64_list=tf.train.Int64List(value=[label])
                        )
                    example = tf.train.Example(features=tf.train.Features(feature=feature))
                    writer.write(example.SerializeToString())
                    number += 1
        return str(tmp_path / root)

    return write


@pytest.fixture
def order():
    """Function (source, count, **arguments of records) -> list of (number, index), as a pipeline
    would get them."""

    def order(source, count=None, **arguments):
        records = source.records(**arguments)
        records = records if count is None else records.take(count)
        return [(int(r["number"]), int(r["index"])) for r in records.as_numpy_iterator()]

    return order

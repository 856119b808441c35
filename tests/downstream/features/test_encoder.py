import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.data.sources.subset import Subset
from tfssl.downstream.features import extract as extraction
from tfssl.downstream.features.encoder import Encoder
from tfssl.downstream.protocols import linear_sgd
from tfssl.hub import load as modules


@pytest.fixture
def module(modules_dir):
    return modules.load(modules_dir / "ours" / "1")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 50])
def test_large_batches_go_in_parts(module, pictures, batch_size):
    source = tfssl.open_source(f"folder:{pictures[0]}")
    images = tf.constant(np.random.default_rng(0).integers(0, 256, [7, 16, 16, 3]), tf.uint8)
    maps = module.endpoints(tf.cast(images, tf.float32) / 255)
    found = Encoder(module, source, 16, 20, batch_size=batch_size).large_batch_encoder(
        ["block", "pixels"], 7
    )(images)
    np.testing.assert_allclose(
        found["block"], np.reshape(maps["block"], [7, -1]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["pixels"], np.reshape(images, [7, -1]) / 255, atol=1e-6)


def test_a_subset_is_a_source_of_its_own(pictures):
    source = tfssl.open_source(f"folder:{pictures[0]}")
    index = np.array([7, 2, 3, 10])
    subset = Subset(source, index)

    def seen(**arguments):
        records = subset.records(**arguments).take(12)
        return [(int(r["number"]), int(subset.fetch(r)["index"])) for r in records]

    assert seen() == [(0, 2), (1, 3), (2, 7), (3, 10)]
    order = seen(seed=1)
    assert [number for number, _ in order] == list(range(12))
    for epoch in range(3):
        assert sorted(i for _, i in order[4 * epoch : 4 * epoch + 4]) == [2, 3, 7, 10]
    assert len({tuple(i for _, i in order[k : k + 4]) for k in (0, 4, 8)}) > 1
    assert seen(seed=1, start=6)[:6] == order[6:]  # it begins anywhere
    assert seen(seed=1, rows=(4, 1, 3))[:6] == [pair for pair in order if pair[0] % 4 in (1, 2)]


def test_images_of_a_stream(modules_dir, tmp_path):
    """Records that can only be read in turn: a subset of them is what its rows say."""
    for shard in range(2):
        with tf.io.TFRecordWriter(str(tmp_path / f"train-{shard:05}-of-00002")) as writer:
            for i in range(6):
                pixels = np.full([20, 20, 3], 10 * (6 * shard + i), np.uint8)
                feature = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[tf.io.encode_png(pixels).numpy()])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[i % 2])
                    ),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=feature)
                    ).SerializeToString()
                )
    source = tfssl.open_source(f"tfrecord:{tmp_path}")
    found = extraction.extract(str(modules_dir / "ours" / "1"), source, ["pixels"])
    rows = np.array([0, 3, 4, 8, 11])
    batches = iter(linear_sgd._crops(found, rows, 5, seed=0))
    for _ in range(3):
        images, chosen = next(batches)
        assert sorted(chosen.numpy()) == list(rows)
        np.testing.assert_array_equal(images[:, 0, 0, 0], 10 * chosen.numpy())


def test_crops(module, pictures):
    source = tfssl.open_source(f"folder:{pictures[0]}")
    images, index = Encoder(module, source, 16, 20), np.arange(source.num_examples)

    def crops(kind, start_step=0):
        data = images.random_crops(index, 4, seed=0, crops=kind, start_step=start_step).take(
            6 - start_step
        )
        batches = list(data.as_numpy_iterator())
        return np.concatenate([b["image"] for b in batches]), np.concatenate(
            [b["index"] for b in batches]
        )

    plain, order = crops("random")
    flipped, same_order = crops("random_flip")
    np.testing.assert_array_equal(order, same_order)
    turned = np.all(flipped == plain[:, :, ::-1], axis=(1, 2, 3))
    assert 0 < turned.sum() < len(turned)
    np.testing.assert_array_equal(flipped[~turned], plain[~turned])
    later, _ = crops("random_flip", start_step=2)
    np.testing.assert_array_equal(later, flipped[8:])
    resized, _ = crops("resized_flip")
    assert resized.shape == plain.shape and not np.array_equal(resized, flipped)
    # A crop of a smaller area is enlarged, which is smoother; pictures are noise.
    assert (
        np.abs(np.diff(resized.astype(float), axis=2)).mean()
        < np.abs(np.diff(plain.astype(float), axis=2)).mean()
    )

"""Subsets of a source: which images, in which order, by which numbers."""

import re

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.data.sources.subset import Ordered, Subset, evenly_spaced, nested
from tfssl.errors import UserError


@pytest.fixture(scope="module", params=["folder", "tfrecord"])
def source(request, photos, tmp_path_factory):
    """The same 48 photographs, that can be read in any order or only one after the other."""
    if request.param == "folder":
        return tfssl.open_source(f"folder:{photos}")
    folder = tmp_path_factory.mktemp("records")
    paths = sorted(photos.rglob("*.jpg"))
    for shard in range(3):
        with tf.io.TFRecordWriter(str(folder / f"train-{shard:05}-of-00003")) as writer:
            for path in paths[16 * shard :][:16]:
                features = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[path.read_bytes()])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[int(path.parent.name == "warm")])
                    ),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=features)
                    ).SerializeToString()
                )
    return tfssl.open_source(f"tfrecord:{folder}/train-*")


def images(source, **order):
    """(hash of the content, index, number) of each record."""
    records = source.records(**order).map(lambda r: {**source.fetch(r), "number": r["number"]})
    return [(hash(r["image"].tobytes() if hasattr(r["image"], "tobytes") else r["image"]), int(r["index"]), int(r["number"]))
            for r in records.take(3 * source.num_examples).as_numpy_iterator()]  # fmt: skip


def test_smaller_ones_lie_within_larger_ones(source):
    whole = {content: index for content, index, _ in images(source)}
    sets = {n: images(nested(source, n, seed=5)) for n in (6, 20, 48)}
    for n, found in sets.items():
        assert (
            [number for *_, number in found] == list(range(n)) == [index for _, index, _ in found]
        )
        assert len({content for content, *_ in found}) == n
        places = [whole[content] for content, *_ in found]
        assert places == sorted(places)  # split order
    contents = {n: {content for content, *_ in found} for n, found in sets.items()}
    assert contents[6] < contents[20] < contents[48]
    assert contents[20] != {content for content, *_ in images(nested(source, 20, seed=6))}
    with pytest.raises(UserError, match="a subset of 49 images: .* has 48"):
        nested(source, 49)


def test_a_small_part_of_a_stream_says_what_it_costs(source, caplog):
    nested(source, 30)
    assert not caplog.records
    nested(source, 12)
    warned = "12 of 48 records: each epoch reads all of them; .* a slice such as .*:25%]"
    assert bool(re.search(warned, caplog.text)) == (not source.random_access)


def test_epochs_start_anywhere(source):
    part = nested(source, 20)
    whole = images(part, seed=3)
    assert len(whole) == 60 and [number for *_, number in whole] == list(range(60))
    for epoch in range(3):
        assert sorted(index for _, index, _ in whole[20 * epoch :][:20]) == list(range(20))
    assert images(part, seed=3, start=27)[:30] == whole[27:57]
    assert [r for r in images(part, seed=3, rows=(4, 1, 3))[:20]] == [
        r for r in whole if r[2] % 4 in (1, 2)
    ][:20]


def test_epochs_that_machines_share(source):
    """Each image of the subset has a number of its own within the epoch, whoever reads it."""
    part = nested(source, 20)
    shared = part.shardable_epoch(3, tf.constant(2, tf.int64)).map(
        lambda r: {**part.fetch(r), "number": r["number"]}
    )
    pairs = [(int(r["number"]), int(r["index"])) for r in shared.as_numpy_iterator()]
    assert sorted(pairs) == [(40 + i, i) for i in range(20)]


def test_names_and_places(source):
    part = Subset(source, [40, 3, 17])
    renumbered = Subset(source, [40, 3, 17], renumber=True)
    assert [index for _, index, _ in images(part)] == [3, 17, 40]
    assert (
        [part.name(i) for i in (3, 17, 40)]
        == [renumbered.name(i) for i in range(3)]
        == [source.name(i) for i in (3, 17, 40)]
    )


def test_spread(source):
    found = [index for _, index, _ in images(evenly_spaced(source, 5))]
    assert found == ([0, 12, 24, 35, 47] if source.random_access else [0, 1, 2, 3, 4])
    assert evenly_spaced(source, 1000).num_examples == 48


def windows(seed):
    """Blocks of five images that follow one another from a random one on."""
    return (
        tf.random.stateless_uniform([], seed, 0, 12, tf.int64) + tf.range(5, dtype=tf.int64)
    ) % 12


def test_an_order_of_ones_own(source):
    if not source.random_access:
        with pytest.raises(
            UserError, match="orders the images itself, and records are read one after the other"
        ):
            Ordered(source, windows, 5)
        return
    part = nested(source, 12)
    ordered = Ordered(part, windows, 5)
    assert ordered.num_examples == 12 and images(ordered) == images(part)
    whole = images(ordered, seed=3)
    assert [number for *_, number in whole] == list(range(36))
    expected = np.concatenate([windows(tf.constant([3, k], tf.int64)) for k in range(8)])[:36]
    content = {index: content for content, index, _ in images(part)}
    assert [(c, i) for c, i, _ in whole] == [(content[i], i) for i in expected]
    assert images(ordered, seed=3, start=17)[:19] == whole[17:]
    assert (
        images(ordered, seed=3, rows=(4, 1, 3))[:16]
        == [r for r in whole if r[2] % 4 in (1, 2)][:16]
    )
    with pytest.raises(UserError, match="--data_service"):
        ordered.shardable_epoch(3, tf.constant(0, tf.int64))


def test_a_memory_bank_of_the_subset(source):
    """Images are numbered from 0, as a bank with an entry for each wants them; all of them are
    trained on."""
    part = nested(source, 12)
    model = tfssl.pretext.build(
        "rotation", tf.keras.Sequential([tf.keras.layers.Conv2D(2, 3)]), image_size=8
    )
    batches = model.dataset(part, 6, steps=2)
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(12))

"""Sequences of frames: layouts, whole sequences in splits, and clips against plain Python."""

import collections
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from sequences import Sequences

import tfssl
from tfssl.data import pipeline
from tfssl.data.overlap import overlap
from tfssl.data.sources.folder import Files
from tfssl.data.sources.frames import Clips
from tfssl.data.sources.subset import Ordered, evenly_spaced, nested
from tfssl.errors import UserError
from tfssl.testing import check_source


def frames(lengths, where="{}/{}.jpg"):
    return [where.format(name, i) for name, length in lengths.items() for i in range(length)]


def found(root, split="train"):
    """{sequence: names of its frames, in order} of a source, by what it says of its sequences."""
    source = tfssl.open_source(f"frames:{root}", split)
    names = [os.path.relpath(name, root) for name in source.names()]
    numbers = source.sequences()
    parts = [[n for n, k in zip(names, numbers) if k == i] for i in range(numbers.max() + 1)]
    sequences = {os.path.dirname(part[0]): [os.path.basename(n) for n in part] for part in parts}
    assert len(sequences) == len(parts)
    assert all({os.path.dirname(n) for n in part} == {os.path.dirname(part[0])} for part in parts)
    return sequences


SPLITS = {f"{s}/{q}{s}": 3 for s in ("train", "test") for q in "ab"}


@pytest.mark.parametrize(
    "paths, sequences, splits",
    [
        (frames({"walk": 12, "run": 2}), {"walk", "run"}, {"train"}),
        (frames(SPLITS), {"train/atrain", "train/btrain"}, {"train", "test"}),
        (frames({"a": 2, "b": 2}, "{}/frames/{}.jpg"), {"a/frames", "b/frames"}, {"train"}),
        (frames({"clip": 3}, "{}/frames/{}.jpg"), {"clip/frames"}, {"train"}),
        (frames({"train": 3, "val": 2, "trainannot": 3}), {"train"}, {"train", "val"}),
        (frames({"test1": 2, "test2": 2}), {"test1", "test2"}, {"train"}),
        (frames({"": 4}, "{}{}.jpg"), {""}, {"train"}),
    ],
)
def test_layouts(write_images, paths, sequences, splits):
    root = write_images(paths)
    assert set(found(root)) == sequences
    check_source(tfssl.open_source(f"frames:{root}"))
    with pytest.raises(UserError, match="no split 'nothing'; it has") as error:
        tfssl.open_source(f"frames:{root}", "nothing")
    assert set(re.findall(r"(\w+) \(\d+ sequences\)", str(error.value))) >= splits


def test_frames_are_in_the_natural_order_of_their_names(write_images):
    names = ["f_1.jpg", "f_2.jpg", "f_10.jpg", "f_010.jpg", "f_11.jpg", "f_100.jpg", "g_3.jpg"]
    root = write_images([f"a/{name}" for name in sorted(names)] + ["b/1.jpg"])
    expected = ["f_1.jpg", "f_2.jpg", "f_010.jpg", "f_10.jpg", "f_11.jpg", "f_100.jpg", "g_3.jpg"]
    assert found(root)["a"] == expected


def test_a_slice_never_cuts_a_sequence(write_images):
    lengths = {f"s{i}": 1 + i for i in range(10)}
    root = write_images(frames(lengths))
    whole = found(root)
    assert {name: len(part) for name, part in whole.items()} == lengths
    for share in range(10, 100, 10):
        first, rest = (found(root, s) for s in (f"train[:{share}%]", f"train[{share}%:]"))
        assert len(first) == share // 10 and {**first, **rest} == whole
        assert list(first) + list(rest) == list(whole)
    assert list(found(root, "train[2:4]")) == list(whole)[2:4]
    with pytest.raises(UserError, match="reaches beyond its 10 sequences"):
        tfssl.open_source(f"frames:{root}", "train[:50]")
    one, other, more = (
        tfssl.open_source(f"frames:{root}", s) for s in ("train[:50%]", "train[50%:]", "train[4:]")
    )
    assert not overlap(one, other) and overlap(one, more)
    write_images(["new/0.jpg"])  # which moves no other
    assert [name for name in found(root) if name != "new"] == list(whole)


def test_classes_are_the_folders_above(write_images):
    root = write_images(frames({"cat/a": 2, "cat/b": 3, "dog/a": 2}))
    source = tfssl.open_source(f"frames:{root}")
    labels = [int(e["label"]) for e in source.records().map(source.fetch)]
    expected = ["dog" in name for name in source.names()]
    assert source.class_names == ["cat", "dog"] and labels == expected
    alone = tfssl.open_source("frames:" + write_images(frames({"cat/a": 2, "dog/a": 2}), "alone"))
    assert alone.num_classes is None  # each would be a class of one sequence


def test_what_is_said_of_them(write_images):
    root = write_images([*frames({"a": 5, "b": 1, "c": 3}), "cover.jpg", "c/thumbs/1.jpg"])
    source = tfssl.open_source(f"frames:{root}")
    assert source.notes() == [
        f"frames:{root}: left out: images beside the folders of sequences: cover.jpg, c/0.jpg, "
        "c/1.jpg and 1 more",
        f"frames:{root}: sequences: 3, of length 1 to 5, 1 in the median",
        f"frames:{root}: sequences of one frame: b, c/thumbs",
    ]


def test_videos_are_told_what_to_become(tmp_path):
    (tmp_path / "walk.MP4").write_bytes(b"x")
    remedy = r"ffmpeg -i walk.mp4 -q:v 2 PATH/walk/%06d.jpg$"
    for path in (tmp_path, tmp_path / "walk.MP4"):
        with pytest.raises(UserError, match=remedy):
            tfssl.open_source(f"frames:{path}")
    (tmp_path / "walk.MP4").rename(tmp_path / "walk.txt")
    with pytest.raises(UserError, match="found 1 .txt$"):
        tfssl.open_source(f"frames:{tmp_path}")


def test_frames_are_images_to_all_others(write_images):
    """The same crops as of a list of the same files."""
    source = tfssl.open_source("frames:" + write_images(frames({"a": 5, "b": 4})))
    files = Files("files", "all", source.names())
    ours, theirs = (
        list(pipeline.evaluation_crops(s, 4, 4, 3).as_numpy_iterator()) for s in (source, files)
    )
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one["image"], other["image"])


LENGTHS = [7, 1, 12, 3]


def draw(position, length, seed):
    """Two frames before, and one drawn of all."""
    return tf.stack(
        [position, position - 2, tf.random.stateless_uniform([], seed, 0, length, tf.int64)]
    )


def naive(source, seed, number, index):
    """(positions of a clip, their indices) by counting."""
    numbers = source.sequences().tolist()
    members = [i for i, other in enumerate(numbers) if other == numbers[index]]
    position = members.index(index)
    drawn = tf.random.stateless_uniform([], [seed, number], 0, len(members), tf.int64)
    positions = [position, max(position - 2, 0), int(drawn)]
    return positions, [members[p] for p in positions]


@pytest.mark.parametrize("order", ["plain", "ordered"])
def test_clips_are_frames_of_one_sequence_by_seed_and_number(order):
    source = Sequences(LENGTHS, mixed=order == "ordered")
    pixels, labels = source._frames.numpy(), source._labels.numpy()
    if order == "ordered":
        source = Ordered(
            source, lambda seed: tf.random.stateless_uniform([9], seed, 0, 23, tf.int64), 9
        )
    clips = Clips(source, draw)

    def taken(count, seed=None, **rows):
        records = clips.records(seed=seed, **rows).take(count)
        numbers = [int(r["number"]) for r in records]
        return list(zip(numbers, records.map(clips.fetch).as_numpy_iterator()))

    whole = taken(60, seed=3)
    for seed, examples in ((3, whole), (0, taken(23))):
        assert [number for number, _ in examples] == list(range(len(examples)))
        for number, example in examples:
            positions, indices = naive(source, seed, number, int(example["index"]))
            assert example["positions"].tolist() == positions
            np.testing.assert_array_equal(example["image"], pixels[indices[0]])
            for image, index in zip(example["frames"], indices):
                np.testing.assert_array_equal(image, pixels[index])
            assert example["label"] == labels[int(example["index"])]
    # A run that goes on at example 37, and the second pipeline of two, see what the whole one does.
    for part, expected in (
        (taken(23, seed=3, start=37), whole[37:]),
        (taken(30, seed=3, rows=(4, 2, 4)), [x for x in whole if x[0] % 4 >= 2]),
    ):
        for (n, one), (m, other) in zip(part, expected):
            assert n == m and one["positions"].tolist() == other["positions"].tolist()
            np.testing.assert_array_equal(one["frames"], other["frames"])
    shared = clips.shardable_epoch(3, tf.constant(1, tf.int64)) if order == "plain" else []
    for record in shared:
        positions, _ = naive(source, 3, int(record["number"]), int(record["index"]))
        assert clips.fetch(record)["positions"].numpy().tolist() == positions


def test_an_unreadable_frame_is_named_once_and_the_rows_with_it_are_replaced(write_images, capsys):
    """Of rows whose other frame it is: they get the next row's frames, and are flagged; the frame
    of their own stays good for other rows."""
    root = write_images(frames({"a": 6, "b": 6}))
    source = tfssl.open_source(f"frames:{root}")
    broken = source.names().index(f"{root}/a/3.jpg")
    with open(f"{root}/a/3.jpg", "wb") as file:
        file.write(b"no image")
    clips = Clips(
        source, lambda position, length, seed: tf.stack([position, (position + 1) % length])
    )

    def example(example, seed):
        decoded = [
            tf.reduce_mean(tf.cast(tf.io.decode_image(x), tf.float32)) for x in example["frames"]
        ]
        return {"positions": example["positions"], "means": tf.stack(decoded)}

    batches = pipeline.training_batches(clips, example, 4, seed=1, steps=9).as_numpy_iterator()
    rows = [
        (
            int(b["number"][i]),
            int(b["index"][i]),
            bool(b["replaced"][i]),
            b["positions"][i].tolist(),
        )
        for b in batches
        for i in range(4)
    ]
    asked = [int(r["index"]) for r in clips.records(seed=1).take(36)]
    good = None
    for number, index, replaced, positions in reversed(rows):
        assert broken not in naive_pair(source, index)
        lost = broken in naive_pair(source, asked[number])
        assert replaced == lost
        if lost:
            assert good in ((index, positions), None)
        else:
            assert index == asked[number]
        good = (index, positions)
    counts = collections.Counter(replaced for _, _, replaced, _ in rows)
    assert counts[True] == 6  # two of the twelve rows of each epoch
    assert list(source.unreadable) == [f"{root}/a/3.jpg"]
    assert capsys.readouterr().err.count("skipped unreadable image") == 1


def naive_pair(source, index):
    members = np.flatnonzero(source.sequences() == source.sequences()[index]).tolist()
    return index, members[(members.index(index) + 1) % 6]


def test_sequences_are_spread_evenly_over_a_split(write_images):
    """So that no batch of an evaluation is of one; each part of the split has its share of each."""
    source = tfssl.open_source(
        "frames:" + write_images(frames({"a": 40, "b": 20, "c": 10, "d": 1}))
    )
    numbers = source.sequences()
    for number, length in enumerate(np.bincount(numbers)):
        for end in range(1, 72):
            assert abs((numbers[:end] == number).sum() - length * end / 71) < 3


def test_parts_of_a_source():
    source = Sequences(LENGTHS)
    spread = evenly_spaced(source, 5)  # whose images keep their positions
    example = next(iter(spread_records(Clips(spread, draw))))
    assert example["positions"].tolist() == naive(source, 0, 0, int(example["index"]))[0]
    with pytest.raises(UserError, match="--train_subset chooses single images, .*train.:50%."):
        Clips(nested(source, 5), draw)
    stream = Sequences(LENGTHS)
    stream.random_access = False
    with pytest.raises(UserError, match="read one after the other: take frames:PATH"):
        Clips(stream, draw)


def spread_records(clips):
    return clips.records().map(clips.fetch).as_numpy_iterator()

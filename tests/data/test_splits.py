import pytest
import tensorflow_datasets as tfds

from tfssl.data.splits import cut, resolve
from tfssl.errors import UserError

SIZES = {"train": [10, 20, 7], "test": [5], "none": [0]}


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", [("train", 0, 37)]),
        ("train[:10]", [("train", 0, 10)]),
        ("train[-7:]", [("train", 30, 37)]),
        ("train[:90%]", [("train", 0, 33)]),  # 33.3
        ("train[90%:]", [("train", 33, 37)]),
        ("train[1shard:]", [("train", 10, 37)]),
        ("train[1shard]", [("train", 10, 30)]),
        ("test+train[5:6]", [("test", 0, 5), ("train", 5, 6)]),
        ("test + test", [("test", 0, 5), ("test", 0, 5)]),
        ("test+none", [("test", 0, 5)]),
        ("all", [("train", 0, 37), ("test", 0, 5)]),
    ],
)
def test_ranges(split, expected):
    assert resolve(split, SIZES, "folder:x") == expected


@pytest.mark.parametrize(
    "split",
    ["train[:33%]", "train[33%:66.6%]", "train[-13%:]", "train[4:-4]", "test[60%:]+train[:1%]", "train[-1shard:]"],
)
def test_counts_are_those_of_tfds(split):
    infos = [tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0) for name, lengths in SIZES.items()]
    template = tfds.core.ShardedFileTemplate(dataset_name="x", data_dir="/x", filetype_suffix="tfrecord")
    reference = tfds.core.splits.SplitDict([info.replace(filename_template=template) for info in infos])
    assert sum(stop - start for _, start, stop in resolve(split, SIZES, "x")) == reference[split].num_examples


@pytest.mark.parametrize("percent", [1, 10, 37, 50, 90, 99])
def test_two_sides_of_a_percentage_are_the_whole(percent):
    (left,) = resolve(f"train[:{percent}%]", {"train": [997]}, "x")
    (right,) = resolve(f"train[{percent}%:]", {"train": [997]}, "x")
    assert left[1] == 0 and left[2] == right[1] and right[2] == 997


@pytest.mark.parametrize("split", ["val", "train+val", "val[:10%]", "", "Train"])
def test_unknown_split_names_what_exists(split):
    with pytest.raises(UserError, match=r"folder:x has no split .*train \(37 examples\), test \(5 examples\)") as error:
        resolve(split, SIZES, "folder:x")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"with a slice, such as 'photos\[90%:\]'|no split 'train'"):
        resolve(split, {"photos": [10]}, "folder:x")


@pytest.mark.parametrize(
    "split",
    ["train[", "train[]", "train[::2]", "train[5]", "train[1.5:]", "train[:200%]", "train[:38]", "all[:3]", "train]"],
)
def test_malformed_split_shows_how_to_write_one(split):
    with pytest.raises(UserError, match=r"split .*train\[:90%\]|no split 'train\]'") as error:
        resolve(split, SIZES, "folder:x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["none", "none[:50%]", "train[:0]", "train[20:10]", "test[:1%]"])
def test_empty_split(split):
    with pytest.raises(UserError, match="is empty; it has train"):
        resolve(split, SIZES, "folder:x")


def test_a_name_outside_of_the_grammar():
    assert resolve("my.data", {"my.data": [3]}, "x") == [("my.data", 0, 3)]


def test_cut_takes_what_a_list_slice_takes():
    lengths = [3, 0, 5, 1]
    records = [(file, i) for file, length in enumerate(lengths) for i in range(length)]
    for start in range(10):
        for stop in range(start, 10):
            parts = cut(lengths, start, stop)
            assert [(file, skip + i) for file, skip, take in parts for i in range(take)] == records[start:stop]
            assert all(take for _, _, take in parts)

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfssl.data.sources import splits
from tfssl.data.sources.splits import cut, resolve
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
        ("train[-1shard:]", [("train", 30, 37)]),
        ("train[:-2shard]+test[:1shard]", [("train", 0, 10), ("test", 0, 5)]),
        ("test+train[5:6]", [("test", 0, 5), ("train", 5, 6)]),
        ("test + test", [("test", 0, 5), ("test", 0, 5)]),
        ("test+none", [("test", 0, 5)]),
        ("all", [("train", 0, 37), ("test", 0, 5)]),
    ],
)
def test_ranges(split, expected):
    assert resolve(split, SIZES, "tfrecord:x", shards=True) == expected


def test_ranges_are_those_of_tfds():
    """The grammar is TFDS's, and the parser our own: 3,000 random specs, whole and broken ones,
    some over files."""
    rng = np.random.default_rng(0)
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0)
        for name, lengths in SIZES.items()
    }
    numbers = [
        "",
        "0",
        "1",
        "2",
        "3",
        "-1",
        "-2",
        "5",
        "10",
        "37",
        "38",
        "-37",
        "-38",
        "50",
        "33.3",
        "66.6",
        "-12.5",
        "0.5",
        "1_0",
        "100",
    ]
    numbers += ["101", "1.2.3", "x", "--1"]
    units = ["", "", "%", "%", "shard", "s"]
    accepted = 0
    for _ in range(3000):
        parts = []
        for _ in range(rng.integers(1, 3)):
            ends = [
                rng.choice(numbers) + rng.choice(units) for _ in range(rng.choice([1, 2, 2, 2, 3]))
            ]
            parts.append(
                rng.choice(["train", "test", "none", "all"])
                + rng.choice(["", f"[{':'.join(ends)}]", f"[{':'.join(ends)}]"])
            )
        split = rng.choice(["+", " + "]).join(parts)
        try:
            expected = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
            totals = {name: info.num_examples for name, info in infos.items()}
            expected = [
                (i.splitname, i.from_ or 0, totals[i.splitname] if i.to is None else i.to)
                for i in expected
            ]
        except (ValueError, NotImplementedError):
            expected = None
        try:
            named = [part.strip().partition("[") for part in split.split("+")]
            found = splits._absolute(
                [(name, mark + bounds) for name, mark, bounds in named], SIZES, split, "x"
            )
        except UserError:
            found = None
        assert found == expected, split
        accepted += found is not None
    assert 500 < accepted < 2500


@pytest.mark.parametrize("percent", [1, 10, 37, 50, 90, 99])
def test_two_sides_of_a_percentage_are_the_whole(percent):
    (left,) = resolve(f"train[:{percent}%]", {"train": [997]}, "x")
    (right,) = resolve(f"train[{percent}%:]", {"train": [997]}, "x")
    assert left[1] == 0 and left[2] == right[1] and right[2] == 997


def test_own_validation_split_of_the_2019_study():
    """TF-slim cuts ImageNet's 1,281,167 training images into eight ranges, and each of them into
    128 files."""
    eighths = np.linspace(0, 1_281_167, 9).astype(int)
    bounds = [np.linspace(low, high, 129).astype(int) for low, high in zip(eighths, eighths[1:])]
    sizes = {"train": [int(n) for part in bounds for n in np.diff(part)]}
    assert len(sizes["train"]) == 1024
    (train,), (val,) = (
        resolve(s, sizes, "x", shards=True) for s in ("train[:984shard]", "train[984shard:]")
    )
    assert train == ("train", 0, 1_231_121) and val == (
        "train",
        1_231_121,
        1_281_167,
    )  # as its code counts them
    assert resolve("train[-40shard:]", sizes, "x", shards=True) == [val]


@pytest.mark.parametrize("split", ["train[1shard:]", "train[:5]+test[:1shard]", "train[shard]"])
def test_shards_are_files_of_records(split):
    with pytest.raises(
        UserError,
        match=r"folder:x: shards are the record files of tfrecord: and tfds: .*train\[:90%\]",
    ):
        resolve(split, {"train": [20], "test": [5]}, "folder:x")


@pytest.mark.parametrize(
    "split", ["train[:4shard]", "train[1shard:9shard]", "train[-4shard:]", "train[1.5shard:]"]
)
def test_shards_that_do_not_exist(split):
    with pytest.raises(UserError, match="split 'train.*shard") as error:
        resolve(split, SIZES, "tfrecord:x", shards=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["val", "train+val", "val[:10%]", "", "pictures"])
def test_unknown_split_names_what_exists(split):
    with pytest.raises(
        UserError, match=r"folder:x has no split .*train \(37 examples\), test \(5 examples\)"
    ) as error:
        resolve(split, SIZES, "folder:x")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"with a slice, such as 'photos\[90%:\]'|no split 'train'"):
        resolve(split, {"photos": [10]}, "folder:x")


@pytest.mark.parametrize(
    "split",
    [
        "train[",
        "train[]",
        "train[::2]",
        "train[5]",
        "train[1.5:]",
        "train[:200%]",
        "train[:38]",
        "all[:3]",
        "train]",
    ],
)
def test_malformed_split_shows_how_to_write_one(split):
    with pytest.raises(UserError, match=r"split .*train\[:90%\]|no split 'train\]'") as error:
        resolve(split, SIZES, "folder:x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("slice", ["[:0.5]", "[0.5:0.9]", "[:1.2.3%]"])
def test_fractions_are_told_what_is_taken(slice):
    with pytest.raises(UserError) as error:
        resolve(f"train{slice}", SIZES, "folder:x", unit="sequences")
    assert f"{slice} takes whole numbers of sequences, or percentages such as 50%; " in str(
        error.value
    )


@pytest.mark.parametrize("split", ["none", "none[:50%]", "train[:0]", "train[20:10]", "test[:1%]"])
def test_empty_split(split):
    with pytest.raises(UserError, match="is empty; it has train"):
        resolve(split, SIZES, "folder:x")


def test_a_name_outside_of_the_grammar():
    assert resolve("my.data", {"my.data": [3]}, "x") == [("my.data", 0, 3)]


def test_a_name_stands_for_the_one_split_of_its_role():
    sizes = {"Training": [8], "valid": [4], "my-tests": [2]}
    assert resolve("train", sizes, "x") == resolve("TRAINING", sizes, "x") == [("Training", 0, 8)]
    assert resolve("validation[:50%]+test", sizes, "x") == [("valid", 0, 2), ("my-tests", 0, 2)]
    assert resolve("dev", sizes, "x") == [("valid", 0, 4)]
    assert resolve("my-tests[1:]+train[:25%]", sizes, "x") == [
        ("my-tests", 1, 2),
        ("Training", 0, 2),
    ]
    assert resolve("all", sizes, "x") == [(name, 0, size) for name, (size,) in sizes.items()]
    assert resolve("train", {"train": [1], "Train": [2]}, "x") == [
        ("train", 0, 1)
    ]  # what is written so comes first
    with pytest.raises(
        UserError, match="could be train .1 examples. or Train .2 examples.: name one"
    ):
        resolve("TRAIN", {"train": [1], "Train": [2]}, "x")


@pytest.mark.parametrize("lone", ["test", "Testing", "val", "eval"])
def test_the_hint_never_advises_to_train_on_what_is_measured(lone):
    with pytest.raises(UserError, match=f"no split 'train'; it has {lone} .10 examples.$"):
        resolve("train", {lone: [10]}, "folder:x")


def test_cut_takes_what_a_list_slice_takes():
    lengths = [3, 0, 5, 1]
    records = [(file, i) for file, length in enumerate(lengths) for i in range(length)]
    for start in range(10):
        for stop in range(start, 10):
            parts = cut(lengths, start, stop)
            assert [(file, skip + i) for file, skip, take in parts for i in range(take)] == records[
                start:stop
            ]
            assert all(take for _, _, take in parts)

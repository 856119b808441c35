"""Which labels a classifier learns from: a balanced part, or a list of names."""

import os
import shutil

import numpy as np
import pytest

import tfssl
from tfssl.classifiers import labels
from tfssl.data.sources.subset import LabelledAt, Subset
from tfssl.errors import UserError


@pytest.fixture
def source(photos):
    return tfssl.open_source(f"folder:{photos}")


def labels_at(source, index):
    of = {int(r["index"]): int(source.fetch(r)["label"]) for r in source.records()}
    return [of[int(i)] for i in index]


def test_a_part_is_balanced_seeded_and_nested(source):
    few, more = labels.choose(source, "12", seed=3), labels.choose(source, "50%", seed=3)
    assert np.bincount(labels_at(source, few)).tolist() == [6, 6]
    assert np.bincount(labels_at(source, more)).tolist() == [12, 12]
    assert set(few) < set(more)
    assert set(few) != set(labels.choose(source, 12, seed=4))
    assert labels.choose(source) is None


def test_a_folders_files_are_not_read_for_their_labels(photos, tmp_path):
    """Of a million there is no time to."""
    shutil.copytree(photos, tmp_path / "photos")
    source = tfssl.open_source(f"folder:{tmp_path / 'photos'}")
    for i in range(1, 48):  # one is probed
        os.remove(source.name(i))
    assert len(labels.choose(source, 40)) == 40


def test_a_list_names_images_with_and_without_ending(source, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("003.jpg\n010\n\nwarm/011.JPG\n", "utf-8-sig")  # with a byte-order mark
    found = [source.name(int(i)) for i in labels.choose(source, train_list=str(path))]
    assert sorted(name.split("/")[-2:] for name in found) == [
        ["cold", "010.jpg"],
        ["warm", "003.jpg"],
        ["warm", "011.jpg"],
    ]


def test_names_that_match_nothing_are_counted(source, tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("003.jpg\nn01440764_10026.JPEG\nn01440764_10027.JPEG\n")
    assert len(labels.choose(source, train_list=str(path))) == 1
    assert "2 of its 3 names" in caplog.text and "n01440764_10026.JPEG" in caplog.text
    path.write_text("n01440764_10026.JPEG\n")
    with pytest.raises(
        UserError, match="none of its 1 names .* for example 'n01440764_10026.JPEG'"
    ):
        labels.choose(source, train_list=str(path))
    with pytest.raises(UserError, match="cannot be read"):
        labels.choose(source, train_list=str(tmp_path / "missing.txt"))


def test_a_name_of_two_images_is_refused():
    names = ["/data/cat/001.png", "/data/dog/001.png", "/data/dog/2.5.png"]
    with pytest.raises(UserError, match="/data/cat/001.png and of /data/dog/001.png"):
        labels.listed(names, ["001.png"])
    rows, unknown = labels.listed(names, ["dog/001", "2.5", "dog/003"])
    assert rows.tolist() == [1, 2] and unknown == ["dog/003"]


@pytest.mark.parametrize("seed", [None, 5])
def test_labels_elsewhere_are_hidden(source, seed):
    """All images come, in the source's own order; the labels of the chosen alone."""
    chosen = np.array([1, 4, 7, 30])
    hidden = LabelledAt(source, chosen)
    seen = [(int(r["number"]), int(r["index"])) for r in hidden.records(seed).take(60)]
    assert seen == [(int(r["number"]), int(r["index"])) for r in source.records(seed).take(60)]
    of = {int(r["index"]): int(hidden.fetch(r)["label"]) for r in hidden.records()}
    assert len(of) == 48 and {i for i, label in of.items() if label >= 0} == set(chosen)
    assert [of[i] for i in chosen] == labels_at(source, chosen)


def test_marked_sources_can_be_scanned(source):
    """What --dry_run does."""
    index = np.array([0, 3, 40, 47])
    per_class = np.bincount(labels_at(source, index), minlength=2)
    some, hidden = Subset(source, index).scan(), LabelledAt(source, index).scan()
    assert (
        some.images == 4
        and sum(some.sizes.values()) == 4
        and some.unlabelled == 0
        and not some.unreadable
    )
    assert hidden.images == 48 and sum(hidden.sizes.values()) == 48 and hidden.unlabelled == 44
    assert some.per_class == hidden.per_class == dict(zip(("cold", "warm"), per_class))

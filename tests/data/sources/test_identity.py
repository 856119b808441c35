"""What counts as the same data: for a run that goes on, and for a cache."""

import os
import re
import shutil
import threading

import numpy as np
import pytest

import tfssl
from tfssl.data import gaps
from tfssl.data.sources import identity
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.subset import LabelledAt, Subset, nested
from tfssl.errors import UserError


@pytest.fixture
def photos(write_images):
    return write_images([f"{c}/{i}.png" for c in ("cold", "warm") for i in range(5)])


def of(path, split="train"):
    return identity.of(tfssl.open_source(f"folder:{path}", split))


def copied(photos, tmp_path):
    return shutil.copytree(
        photos, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile
    )  # with the time of now


def test_a_copy_is_the_same_data_wherever_it_lies(photos, tmp_path):
    """Another folder, other times, a folder around it, an archive of it, an address with a
    scheme."""
    here = of(photos)
    copy = copied(photos, tmp_path)
    assert identity.differences(here, of(copy)) == [] and here != of(copy)
    assert identity.differences(here, of(copy.parent)) == []
    assert identity.differences(here, of(f"file://{copy}")) == []
    assert (
        identity.differences(here, of(shutil.make_archive(tmp_path / "photos", "zip", photos)))
        == []
    )
    assert identity.text(here) == identity.text(of(copy))
    assert of(photos) == here  # asked again, nothing has changed


CHANGES = {
    "an image more": (
        lambda p: shutil.copy(p / "cold/1.png", p / "cold/9.png"),
        "10 images then, 11 now",
    ),
    "an image less": (lambda p: os.remove(p / "warm/4.png"), "10 images then, 9 now"),
    "a class renamed": (
        lambda p: (p / "cold").rename(p / "zold"),
        r"other classes \(gone: cold; new: zold\)",
    ),
    "a class more": (
        lambda p: shutil.copytree(p / "cold", p / "mild"),
        "10 images then, 15 now; other .*new: mild",
    ),
    "an image renamed": (lambda p: (p / "cold/1.png").rename(p / "cold/one.png"), "other files"),
    "another label": (lambda p: (p / "cold/1.png").rename(p / "warm/1b.png"), "other files"),
    "other contents": (
        lambda p: (p / "cold/1.png").write_bytes((p / "cold/2.png").read_bytes() + b"\0"),
        "other sizes",
    ),
    "a broken link": (
        lambda p: (os.remove(p / "cold/1.png"), os.symlink("nowhere", p / "cold/1.png")),
        "other sizes",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_told_by_name(photos, tmp_path, change):
    apply, expected = CHANGES[change]
    copy = copied(photos, tmp_path)
    before = of(photos)
    apply(copy)
    told = "; ".join(identity.differences(before, of(copy)))
    assert re.search(expected, told), told


def test_classes_that_change_places_are_told_with_their_numbers(photos, tmp_path):
    copy = copied(photos, tmp_path)
    (copy / "cold").rename(copy / "zold")
    assert identity.renumbered(of(photos), of(copy)) == [(0, "cold", "warm"), (1, "warm", "zold")]


def test_a_file_that_was_written_again_is_new_to_a_cache_and_told_to_a_run(photos):
    """As many bytes, and the time of its last change set back: what the disk's own entry says is
    left."""
    before = of(photos)
    path = f"{photos}/cold/3.png"
    stat, content = os.stat(path), bytearray(open(path, "rb").read())
    content[-20] ^= 1
    with open(path, "wb") as f:
        f.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = of(photos)
    assert identity.key(before) != identity.key(after)
    assert identity.differences(before, after) == [] and identity.same_place_other_times(
        before, after
    )


def test_parts_of_a_split_are_other_data(photos):
    source = tfssl.open_source(f"folder:{photos}")
    whole = identity.of(source)
    for other in (
        tfssl.open_source(f"folder:{photos}", "train[:80%]"),
        nested(source, 5),
        Subset(source, np.arange(10)),
        LabelledAt(source, [1, 2]),
    ):
        assert identity.differences(whole, identity.of(other))
    one, two = (identity.of(nested(source, 5, seed)) for seed in (0, 1))
    assert identity.differences(one, two) == [
        "the same files, of which others are chosen, or which are read in another way"
    ]
    assert identity.of(nested(source, 5)) == one


def test_records_are_known_by_their_files_and_keys(write_records, tmp_path):
    folder = write_records({"train-00000-of-00002": [0, 1] * 3, "train-00001-of-00002": [1, 0] * 3})
    copy = shutil.copytree(folder, tmp_path / "copy")

    def open_(path, split="train", **keys):
        return identity.of(tfssl.open_source(f"tfrecord:{path}", split, **keys))

    here = open_(folder)
    assert identity.differences(here, open_(copy)) == []
    assert identity.differences(here, open_(folder, "train[:6]")) == ["12 images then, 6 now"]
    assert identity.differences(open_(folder, "train[:6]"), open_(folder, "train[6:]"))
    assert identity.differences(here, open_(folder, label_key="other"))
    os.utime(f"{folder}/train-00001-of-00002")
    assert identity.key(open_(folder)) != identity.key(here)


def test_glyphs_are_known_by_their_pixels():
    one, two = (identity.of(tfssl.open_source("glyphs:40", image_size=size)) for size in (16, 20))
    assert one["contents"] != two["contents"] and one["names"] == two["names"]
    assert identity.of(tfssl.open_source("glyphs:40", image_size=16)) == one


def test_every_kind_says_what_it_is_made_of(write_images, tmp_path):
    """Masks are a part of the data: another mask, other data."""
    root = write_images(
        ["train/a.png", "train/b.png", "trainannot/a.png", "trainannot/b.png"], "masks"
    )
    before = identity.of(tfssl.open_source(f"masks:{root}"))
    with open(f"{root}/trainannot/b.png", "ab") as f:
        f.write(b"\0")
    assert (
        "other sizes"
        in identity.differences(before, identity.of(tfssl.open_source(f"masks:{root}")))[0]
    )


def test_a_source_that_does_not_say_is_not_cached():
    class Own(IndexedSource):
        def name(self, index):
            return f"image {index}"

    assert identity.key(identity.of(Own("own", "train", 3))) is None
    assert (
        identity.differences(
            identity.of(Own("own", "train", 3)), identity.of(Own("own", "train", 3))
        )
        == []
    )


def test_the_sample_compares_beginning_middle_and_end_of_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "PIECE", 8)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes(100))
    noticed = []
    for i in range(100):
        other.write_bytes(bytes(i) + b"x" + bytes(99 - i))
        noticed.append(identity.sampled([str(path)]) != identity.sampled([str(other)]))
    assert [i for i, seen in enumerate(noticed) if seen] == [
        *range(8),
        *range(46, 54),
        *range(92, 100),
    ]
    assert identity.sampled([str(path), str(tmp_path / "absent")]) != identity.sampled([str(path)])


def test_the_sample_is_spread_over_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "SAMPLE", 3)
    paths = [tmp_path / str(i) for i in range(9)]
    for path in paths:
        path.write_bytes(b"a")
    before, noticed = identity.sampled(list(map(str, paths))), []
    for path in paths:
        path.write_bytes(b"b")
        noticed.append(identity.sampled(list(map(str, paths))) != before)
        path.write_bytes(b"a")
    assert [i for i, seen in enumerate(noticed) if seen] == [0, 4, 8]


def test_files_that_are_all_away_are_no_other_data(photos, monkeypatch):
    """Before, all of them counted as missing: another identity, by which a run was refused."""
    source = tfssl.open_source(f"folder:{photos}")
    before = identity.of(source, sample=True)
    os.rename(photos, f"{photos}.gone")
    threading.Timer(0.3, os.rename, (f"{photos}.gone", photos)).start()
    after = identity.of(source, sample=True)
    assert identity.differences(before, after) == [] and identity.text(before) == identity.text(
        after
    )
    monkeypatch.setattr(gaps, "PATIENCE", 0.1)
    os.rename(photos, f"{photos}.gone")
    with pytest.raises(
        UserError, match="png cannot be read: No such file or directory; it was tried for 0.1 s"
    ):
        identity.of(source)

"""Cached features are right, or absent."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tfssl.downstream.features import cache
from tfssl.downstream.features.cache import FeatureCache
from tfssl.errors import UserError

ROWS = {"labels": np.array([1, 0, 1]), "index": np.array([0, 1, 3]), "dropped": np.array(["c.png"])}


def keep(folder, names=("a", "b"), rows=ROWS, value=3.0, key=1):
    kept = FeatureCache(str(folder), {"key": key})
    arrays = {name: kept.create(name, (4, 5), "float32") for name in names}
    for i, array in enumerate(arrays.values()):
        array[:3] = value + i
    kept.commit(arrays, rows)
    kept.discard()
    return kept


def file(kept, name):
    return os.path.join(kept.folder, name)


def test_what_was_committed_is_there(tmp_path):
    keep(tmp_path)
    rows, arrays = FeatureCache(str(tmp_path), {"key": 1}).read(["a", "b", "c"])
    assert arrays.keys() == {"a", "b"} and arrays["b"].shape == (3, 5) and (arrays["b"] == 4).all()
    assert rows["dropped"].tolist() == ["c.png"] and rows["index"].tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0] = 1
    assert FeatureCache(str(tmp_path), {"key": 2}).read(["a"]) == ({}, {})


DAMAGE = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "zeroed behind its header": lambda content: content[:128] + bytes(len(content) - 128),
    "zeroed": lambda content: bytes(len(content)),
    "another header": lambda content: b"\0" + content[1:],
    "one bit": lambda content: content[:-30] + bytes([content[-30] ^ 4]) + content[-29:],
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("name", ["a.npy", "rows.npz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_is_absent_and_said_in_one_line(tmp_path, caplog, damage, name):
    kept = keep(tmp_path)
    with open(file(kept, name), "r+b") as f:
        content = f.read()
        f.seek(0)
        f.truncate()
        f.write(DAMAGE[damage](content))
    with caplog.at_level("WARNING", logger="absl"):
        rows, arrays = kept.read(["a", "b"])
    if name == "rows.npz" and damage == "longer":  # zip files may have something behind
        assert rows is not None
        return
    assert "a" not in arrays and (("b" in arrays) == (name == "a.npy"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "damaged" in line and name in line and "\n" not in line
    keep(tmp_path, value=7.0)
    assert (kept.read(["a"])[1]["a"] == 7).all()


def test_other_rows_leave_nothing_of_an_earlier_pass(tmp_path):
    kept = keep(tmp_path)
    keep(tmp_path, ["b"], {**ROWS, "labels": np.array([0, 0, 0])}, value=5.0)
    rows, arrays = kept.read(["a", "b"])
    assert (
        arrays.keys() == {"b"}
        and not os.path.exists(file(kept, "a.npy"))
        and not rows["labels"].any()
    )
    keep(tmp_path, ["c"], rows)
    assert kept.read(["b", "c"])[1].keys() == {"b", "c"}


def test_a_kill_between_arrays_and_record_leaves_no_new_arrays_beside_old_rows(
    tmp_path, monkeypatch
):
    kept = keep(tmp_path)
    real = os.replace

    def killed(source, target):
        real(source, target)
        if target.endswith(".npy"):
            raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, ["a"], {**ROWS, "labels": np.array([9, 9, 9])})
    assert kept.read(["a"]) == ({}, {})


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = keep(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"cannot be cached in .*No space left.*make room.*--nocache"
    ):
        keep(tmp_path, ["c"])
    assert sorted(os.listdir(kept.folder)) == ["a.npy", "b.npy", "key.json", "rows.npz"]


def test_the_room_of_an_array_is_claimed_before_it_is_written(tmp_path):
    kept = FeatureCache(str(tmp_path), {})
    kept.create("a", (1 << 18, 4), "float32")
    (path,) = (file(kept, name) for name in os.listdir(kept.folder) if name.endswith(".partial"))
    assert os.stat(path).st_blocks * 512 >= 4 << 20  # a sparse file has none
    kept.discard()


def test_leftovers_of_dead_processes_are_swept_and_those_of_the_living_stay(tmp_path):
    code = (
        "import sys; from tfssl.downstream.features.cache import FeatureCache; import os\n"
        "c = FeatureCache(sys.argv[1], {'key': 1}); c.create('a', (4, 5), 'float32'); "
        "print('made', flush=True)\n"
        "sys.stdin.read(); os._exit(9)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "made\n"
    kept = FeatureCache(str(tmp_path), {"key": 2})

    def partial():
        return [
            name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".partial")
        ]

    assert len(partial()) == 1
    other.communicate()
    FeatureCache(str(tmp_path), {"key": 2})
    assert partial() == [] and os.path.isdir(kept.folder)


def test_prune_removes_what_nobody_can_use_and_says_why(tmp_path):
    used, data = {"tfssl": "1", "tensorflow": "2"}, {"names": "x"}
    of = {"dataset": "folder:photos", "split": "train"}
    keys = {
        "current": {**used, "data": data},
        "of tensorflow 1": {**used, "tensorflow": "1", "data": data},
        "folder:photos train has changed": {**used, "data": {"names": "y"}},
    }
    folders = {}
    for reason, key in keys.items():
        kept = FeatureCache(str(tmp_path), key, of)
        kept.commit({"a": kept.create("a", (4, 5), "float32")}, ROWS)
        kept.discard()
        folders[kept.folder] = reason
    damaged = FeatureCache(
        str(tmp_path), {**used, "data": 3}, {"dataset": "folder:other", "split": "train"}
    ).folder
    with open(os.path.join(damaged, "key.json"), "w") as f:
        json.dump([1], f)
    folders[damaged] = "of another form, or damaged"
    begun = FeatureCache(
        str(tmp_path), {**used, "data": 4}, {"dataset": "folder:other", "split": "train"}
    ).folder
    (tmp_path / "own notes").mkdir()
    removed = cache.prune(str(tmp_path), used, [("folder:photos", "train", data)])
    assert {path: reason for path, reason, _ in removed} == {
        p: r for p, r in folders.items() if r != "current"
    }
    assert all(size > 0 for *_, size in removed)
    assert (
        os.path.isdir(begun) and (tmp_path / "own notes").is_dir()
    )  # younger than a day; not ours
    os.utime(begun, (0, 0))
    assert [reason for _, reason, _ in cache.prune(str(tmp_path), used)] == ["not finished"]


def begin(folder, rows_kept, monkeypatch, names=("a", "b"), key=1):
    """A pass that was stopped after some rows were kept, of values that count up."""
    monkeypatch.setattr(cache, "_SECONDS", 0)
    kept = FeatureCache(str(folder), {"key": key})
    arrays = {name: kept.create(name, (9, 5), "float32") for name in names}
    for array in arrays.values():
        array[:] = np.arange(45).reshape(9, 5)
    for count in rows_kept:
        rows = {"labels": np.arange(count) % 2, "index": np.arange(count) * 2}
        kept.keep(arrays, count, lambda rows=rows: rows)
    kept.discard()
    return kept


def test_a_pass_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    begin(tmp_path, (2, 5), monkeypatch)
    kept = FeatureCache(str(tmp_path), {"key": 1})
    assert kept.read(["a", "b"]) == ({}, {})  # nothing is valid yet
    assert kept.resume(["a"]) == ({}, {})  # of other endpoints
    assert FeatureCache(str(tmp_path), {"key": 2}).resume(["a", "b"]) == ({}, {})
    rows, arrays = kept.resume(["a", "b"])
    assert rows["index"].tolist() == [0, 2, 4, 6, 8] and rows["labels"].tolist() == [0, 1, 0, 1, 0]
    assert (arrays["b"][:5] == np.arange(25).reshape(5, 5)).all()
    assert FeatureCache(str(tmp_path), {"key": 1}).resume(["a", "b"]) == ({}, {})  # it is in use
    for array in arrays.values():
        array[5:7] = 7
    whole = {"labels": np.zeros(7, int), "index": np.arange(7), "dropped": np.array([], str)}
    kept.commit(arrays, whole)
    kept.discard()
    found = kept.read(["a", "b"])[1]
    assert found["a"].shape == (7, 5) and (found["a"][5:] == 7).all() and found["b"][4, 4] == 24
    assert sorted(os.listdir(kept.folder)) == ["a.npy", "b.npy", "key.json", "rows.npz"]


def test_of_a_damaged_pass_nothing_is_used(tmp_path, monkeypatch, caplog):
    kept = begin(tmp_path, (5,), monkeypatch)
    (path,) = (file(kept, name) for name in os.listdir(kept.folder) if name.startswith("b.npy"))
    with open(path, "r+b") as f:
        f.seek(128 + 4 * 3)
        f.write(b"\xff")
    with caplog.at_level("WARNING", logger="absl"):
        assert kept.resume(["a", "b"]) == ({}, {})
    assert "damaged (a checksum is wrong): computed again" in caplog.text
    assert os.listdir(kept.folder) == ["key.json"]


def test_a_pass_waits_for_a_week(tmp_path, monkeypatch):
    kept = begin(tmp_path, (5,), monkeypatch)
    cache.sweep(str(tmp_path))
    names = os.listdir(kept.folder)
    assert len(names) == 4
    for name in names:
        os.utime(file(kept, name), (0, 0))
    cache.sweep(str(tmp_path))
    assert os.listdir(kept.folder) == ["key.json"]


PASS = """
import sys
import numpy as np
from tfssl.downstream.features import cache
cache._SECONDS = 0
kept = cache.FeatureCache(sys.argv[1], {"key": 1})
rows, arrays = kept.resume(["a", "b"])
done = len(rows["index"]) if rows else 0
arrays = arrays or {name: kept.create(name, (400, 64), "float32") for name in "ab"}
for low in range(done, 400, 4):
    for array in arrays.values():
        array[low : low + 4] = np.arange(low, low + 4)[:, None]
    rows = {"labels": np.arange(low + 4), "index": np.arange(low + 4)}
    kept.keep(arrays, low + 4, lambda: rows)
    print(low, flush=True)
kept.commit(arrays, {**rows, "dropped": np.array([], str)})
"""


def test_killed_at_twenty_moments_it_is_the_same_array(tmp_path):
    draws, begun_at = np.random.default_rng(0), []
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", PASS, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        begun_at.append(int(process.stdout.readline()))
        for _ in range(draws.integers(0, 5)):
            process.stdout.readline()
        process.kill()  # wherever it is by now: it did not wait
        process.communicate()
    assert begun_at == sorted(begun_at) and len(set(begun_at)) == 20  # each went on
    assert subprocess.run([sys.executable, "-c", PASS, str(tmp_path)], check=False).returncode == 0
    rows, arrays = FeatureCache(str(tmp_path), {"key": 1}).read(["a", "b"])
    for name in "ab":
        np.testing.assert_array_equal(arrays[name], np.repeat(np.arange(400)[:, None], 64, 1))
    assert rows["index"].tolist() == rows["labels"].tolist() == list(range(400))

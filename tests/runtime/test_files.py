"""Files are complete or absent, whatever happens while they are written."""

import os
import threading

import pytest

from tfssl.errors import UserError
from tfssl.runtime import files


def half(file):
    file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_write_that_fails_leaves_what_was_there(scheme, tmp_path):
    path = f"{scheme}{tmp_path}/folder/results.json"
    with pytest.raises(OSError, match="No space left"):
        files.write_file(path, half)
    assert not list(tmp_path.rglob("*.*"))
    for content, expected in (
        ("é\n", b"\xc3\xa9\n"),
        (b"\x00", b"\x00"),
        (lambda f: f.write(b"by parts"), b"by parts"),
    ):
        files.write_file(path, content)
        with pytest.raises(OSError, match="No space left"):
            files.write_file(path, half)
        assert (tmp_path / "folder" / "results.json").read_bytes() == expected
        assert os.listdir(tmp_path / "folder") == ["results.json"]


def test_an_object_store_gets_the_whole_under_its_name(tmp_path, monkeypatch):
    """A rename is a copy there."""
    import tensorflow as tf

    monkeypatch.setattr(files, "OBJECT_STORES", ("file://",))
    monkeypatch.setattr(tf.io.gfile, "rename", None)
    files.write_file(f"file://{tmp_path}/a", b"whole")
    with pytest.raises(OSError, match="No space left"):
        files.write_file(f"file://{tmp_path}/a", half)
    assert (tmp_path / "a").read_bytes() == b"whole" and os.listdir(tmp_path) == ["a"]


def test_content_is_on_the_disk_before_its_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append((a, b)), replace(a, b)))
    path = str(tmp_path / "a")
    files.write_file(path, b"1")
    content, renaming, names = done
    assert renaming == (content, path) and content != path and names == str(tmp_path)


def test_links_are_followed_and_pipes_stay_pipes(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_file(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"1"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_file(tmp_path / "pipe", b"2")
    reader.join(10)
    assert read == [b"2"] and (tmp_path / "pipe").is_fifo()


def test_the_leftovers_of_killed_writers_are_swept(tmp_path):
    mine = ["flags.flags", "a.tmp", "12-notes.tmp"]
    for name in (*mine, os.path.basename(files.temporary("flags.flags"))):
        (tmp_path / name).touch()
    files.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(mine)


def test_places_that_cannot_be_written_are_found_and_no_folder_is_made(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/no/such", f"file://{tmp_path}/file/run"):
        with pytest.raises(UserError, match="--workdir=.* cannot be written"):
            files.check_writable(str(folder), "--workdir")
    files.check_writable(str(tmp_path / "a" / "b"), "--workdir")
    assert os.listdir(tmp_path) == ["file"]

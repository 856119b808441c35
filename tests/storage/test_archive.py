import io
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile

import pytest
import runs

import tfssl
from tfssl.data.sources.folder import unlabelled
from tfssl.errors import UserError
from tfssl.storage import archive, locks

PATHS = ["pets/train/cat/1.jpg", "pets/train/dog/2.jpg", "pets/test/cat/3.jpg"]


@pytest.fixture
def pack(tmp_path, encode):
    """Function (archive's name, {path: bytes}) -> its path."""

    def pack(name, files=None):
        files = files or {path: encode(i, ".jpg") for i, path in enumerate(PATHS)}
        path = str(tmp_path / name)
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as file:
                for member, content in files.items():
                    file.writestr(member, content)
        else:
            with tarfile.open(path, "w:gz" if name.lower().endswith("gz") else "w") as archive:
                for member, content in files.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return path

    return pack


def test_images_of_an_archive_by_name(pack, tmp_path):
    """What predictions are made of: named as they are in the archive."""
    source = unlabelled(pack("p.zip"))
    names = [f"{tmp_path}/p.zip/{path}" for path in sorted(PATHS)]
    assert source.names() == names == [source.name(i) for i in range(3)]
    assert [source.name_in_graph(record).numpy().decode() for record in source.records()] == names
    source.check_readable()


@pytest.mark.parametrize("name", ["p.tar", "p.tar.gz", "p.TGZ", "p.zip"])
def test_an_archive_is_read_like_its_folder(pack, encode, cache, name):
    spec = "folder:" + pack(name)
    source = tfssl.open_source(spec)
    assert (source.num_examples, source.class_names) == (2, ["cat", "dog"])
    test = tfssl.open_source(spec, "test")
    assert next(test.records().map(test.fetch).as_numpy_iterator())["image"] == encode(2, ".jpg")
    assert test.name(0).startswith(str(cache))


def test_unpacked_once_and_again_when_it_changes(pack, encode, tmp_path):
    path = pack("p.tar")
    file = tfssl.open_source("folder:" + path, data_dir=str(tmp_path / "mine")).name(0)
    assert file.startswith(str(tmp_path / "mine"))
    before = os.stat(file).st_mtime_ns
    assert tfssl.open_source("folder:" + path, data_dir=str(tmp_path / "mine")).name(0) == file
    assert os.stat(file).st_mtime_ns == before
    pack("p.tar", {"a.jpg": encode(9, ".jpg")})
    assert tfssl.open_source("folder:" + path, data_dir=str(tmp_path / "mine")).num_examples == 1


def test_nothing_half_unpacked_is_used(pack, tmp_path, cache):
    path = pack("p.tar.gz")
    with open(path, "rb") as file:
        content = file.read()
    (tmp_path / "p.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot unpack '.*p.tar.gz'"):
        tfssl.open_source("folder:" + path)
    assert os.listdir(cache / "archives") == []


@pytest.mark.parametrize("name", ["evil.tar", "evil.zip"])
@pytest.mark.parametrize(
    "member", ["../../outside.jpg", "/tmp/tfssl-outside.jpg", "a/../../outside.jpg"]
)
def test_paths_that_lead_outside_are_refused(pack, encode, tmp_path, cache, name, member):
    path = pack(name, {"good.jpg": encode(0, ".jpg"), member: encode(1, ".jpg")})
    with pytest.raises(UserError, match="not safe to unpack"):
        tfssl.open_source("folder:" + path)
    assert not os.path.exists("/tmp/tfssl-outside.jpg") and not list(tmp_path.rglob("outside.jpg"))
    assert os.listdir(cache / "archives") == []


def test_links_cannot_lead_outside(tmp_path, encode):
    """A symbolic link to a folder outside, and a file "below" it: the file stays inside."""
    (tmp_path / "target").mkdir()
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "target")
        archive.addfile(link)
        info = tarfile.TarInfo("link/1.jpg")
        info.size = len(encode(0, ".jpg"))
        archive.addfile(info, io.BytesIO(encode(0, ".jpg")))
    source = tfssl.open_source(f"folder:{tmp_path}/p.tar")
    assert source.num_examples == 1 and os.listdir(tmp_path / "target") == []


def test_a_hard_link_to_a_folder_is_refused_in_one_line(tmp_path, encode):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a"
        archive.addfile(link)
    with pytest.raises(UserError, match="it holds 'b.jpg', a link to what is no file"):
        tfssl.open_source(f"folder:{tmp_path}/p.tar")


@pytest.mark.parametrize("name", ["p.tar", "p.zip", "p.tgz"])
def test_something_else_under_the_name_of_an_archive(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no archive" * 100)
    with pytest.raises(UserError, match="cannot unpack"):
        tfssl.open_source(f"folder:{tmp_path / name}")
    with pytest.raises(UserError, match="no such archive"):
        tfssl.open_source(f"folder:{tmp_path}/absent.tar")


def test_nowhere_to_unpack(pack, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot unpack.*TFSSL_CACHE"):
        tfssl.open_source("folder:" + pack("p.tar"))


def sparse_tar(path):
    """As GNU tar writes one: 10 kB that become 64 MB."""
    hole = path.parent / "hole.jpg"
    with open(hole, "wb") as f:
        f.truncate(64 << 20)
    done = subprocess.run(
        ["tar", "--sparse", "-cf", path, "-C", path.parent, "hole.jpg"],
        check=False,
        stderr=subprocess.PIPE,
    )
    hole.unlink()
    if done.returncode:
        pytest.skip(f"no GNU tar: {done.stderr.decode()}")


def pax_tar(name):
    def write(path):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("x.jpg")
            info.pax_headers = {"path": name}
            archive.addfile(info)

    return write


def latin_tar(path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("caf\xe9.jpg"))


@pytest.mark.parametrize(
    "write, told",
    [
        (sparse_tar, "sparse"),
        (pax_tar("a\0b.jpg"), "not text in UTF-8"),
        (latin_tar, "not text in UTF-8"),
    ],
    ids=["sparse", "NUL", "Latin-1"],
)
def test_what_no_archive_of_images_holds_is_refused_in_one_line(write, told, tmp_path, cache):
    path = tmp_path / "p.tar"
    write(path)
    with pytest.raises(UserError, match=told) as error:
        tfssl.open_source(f"folder:{path}")
    assert (
        "\n" not in str(error.value)
        and "p.tar" in str(error.value)
        and os.listdir(cache / "archives") == []
    )


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_what_grows_beyond_measure_is_refused_before_the_disk_is_full(
    name, pack, cache, monkeypatch
):
    """Deflate packs zeros at 1 : 1000; a limit of 1 MB stands for the 1 GB of the product."""
    bomb = pack(name, {"a.jpg": bytes(5 << 20)})
    if name.endswith("zip"):  # `pack` only stores
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.jpg", bytes(5 << 20))
    assert os.path.getsize(bomb) < 8000 and archive.RATIO == 200 and archive.LIMIT == 1 << 30
    os.path.isdir(archive.unpack(bomb))  # small things may be as empty as they like
    monkeypatch.setattr(archive, "LIMIT", 1 << 20)
    os.utime(bomb, ns=(1, 1))
    with pytest.raises(UserError, match="over 200 times as many.*unpack it yourself"):
        archive.unpack(bomb)
    assert len(os.listdir(cache / "archives")) == 1


def test_room_is_looked_for_first(pack, cache, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="No space left on device.*make room"):
        archive.unpack(pack("p.tar"))
    assert os.listdir(cache / "archives") == []


def _unpack_for_ever(path, data_dir):
    archive.Extraction.write = lambda *_: time.sleep(600)
    archive.unpack(path, data_dir)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(
    number, pack, tmp_path, caplog
):
    folder, path = tmp_path / "mine" / "archives", pack("p.tar")
    other = runs.PROCESSES.Process(target=_unpack_for_ever, args=(path, str(tmp_path / "mine")))
    other.start()
    try:
        begun = time.monotonic()
        while not list(folder.glob("*.tmp")):
            assert time.monotonic() - begun < 60
            time.sleep(0.02)
        archive.unpack(pack("q.tar"), str(tmp_path / "mine"))
        assert len(list(folder.glob("*.tmp"))) == 1
    finally:
        os.kill(other.pid, number)
        other.join(60)
    archive.unpack(str(tmp_path / "q.tar"), str(tmp_path / "mine"))
    assert not [path for path in folder.iterdir() if path.suffix in (".tmp", ".lock")]
    assert sorted(
        p.name for p in pathlib.Path(archive.unpack(path, str(tmp_path / "mine"))).rglob("*.jpg")
    ) == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]


def test_who_comes_second_waits_for_the_first(pack, tmp_path, monkeypatch, caplog):
    path, asked = pack("p.tar"), []
    real = locks.hold

    def busy_once(*arguments):
        asked.append(arguments)
        if len(asked) == 1:
            raise locks.Busy("the unpacking of p.tar is in use by process 1")
        return real(*arguments)

    monkeypatch.setattr(locks, "hold", busy_once)
    assert (
        os.path.isdir(archive.unpack(path, str(tmp_path)))
        and len(asked) == 2
        and "by process 1" in caplog.text
    )

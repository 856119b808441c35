import io
import os
import tarfile
import zipfile

import pytest

import tfssl
from tfssl.data.folder import unlabelled
from tfssl.errors import UserError

PATHS = ["pets/train/cat/1.jpg", "pets/train/dog/2.jpg", "pets/test/cat/3.jpg"]


@pytest.fixture
def pack(tmp_path, encode):
    """Function (archive's name, {path: bytes}) -> its path."""

    def pack(name, files=None):
        files = files or {path: encode(i, ".jpg") for i, path in enumerate(PATHS)}
        path = str(tmp_path / name)
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                for member, content in files.items():
                    archive.writestr(member, content)
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
    source.probe()


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
@pytest.mark.parametrize("member", ["../../outside.jpg", "/tmp/tfssl-outside.jpg", "a/../../outside.jpg"])
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

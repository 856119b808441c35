"""On a disk that is full each command ends in one line and leaves nothing behind; when there is
room, the same command goes on."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from encoders import encoder, save_encoder
from runs import command

from tfssl import export
from tfssl.runtime import failures
from tfssl.storage import archive, files


class Disk:
    """A file system of 4 MB."""

    def __init__(self, folder):
        self.folder, self._ballast = folder, folder / "ballast"

    def fill(self, left=0):
        """Leave so many bytes."""
        self.empty()
        free = shutil.disk_usage(self.folder).free
        self._ballast.write_bytes(bytes(max(0, free - left)))

    def empty(self):
        self._ballast.unlink(missing_ok=True)

    def content(self):
        found = [
            path for path in self.folder.rglob("*") if path.is_file() and path != self._ballast
        ]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in found}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def refused(name, *arguments, **settings):
    done = command(name, *arguments, **settings)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search("No space left|the disk is full", done.stderr.splitlines()[-1]), done.stderr
    return done


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("modules") / "encoder")


def test_evaluation(disk, module, photos):
    workdir = disk.folder / "eval"
    arguments = (
        f"--module={module}", f"--dataset=folder:{photos}", "--train_split=train[:70%]", "--test_split=train[70%:]", "--protocol=knn",
        f"--workdir={workdir}", "--endpoints=pre_logits,pixels",
    )  # fmt: skip
    cached = () if hasattr(files, "claim") else ("--nocache",)
    disk.fill(12_000)  # for the lock and the first results, but not for the report
    refused("evaluate", *arguments, *cached)
    left = disk.content()
    assert not [
        name for name in left if name.endswith((".tmp", ".partial", "lock", ".png", ".html"))
    ], left
    if "eval/results.json" in left:
        assert json.loads((workdir / "results.json").read_text())["finished"] is False
    disk.fill()
    refused("evaluate", *arguments, "--nocache")
    assert {name: size for name, size in disk.content().items() if name != "eval/.tfssl"} == {
        name: size for name, size in left.items() if name != "eval/.tfssl"
    }
    disk.empty()
    done = command("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "results.json").read_text())["finished"] and (
        workdir / "report.html"
    ).read_text().endswith("</html>\n")


def test_fine_tuning_and_prediction(disk, module, photos):
    workdir, table = disk.folder / "ft", disk.folder / "table.csv"
    arguments = (
        f"--module={module}", f"--dataset=folder:{photos}", "--train_split=train[:75%]", "--test_split=train[75%:]", "--batch_size=8",
        "--train_steps=2", "--checkpoint_steps=1", f"--workdir={workdir}",
    )  # fmt: skip
    assert command("finetune", *arguments, "--test_split=").returncode == 0
    classifier = workdir / "classifier" / "2"
    size = sum(path.stat().st_size for path in classifier.rglob("*") if path.is_file())
    shutil.rmtree(classifier.parent)
    disk.fill(size // 2)
    refused("finetune", *arguments, "--test_split=train[75%:]")
    assert not [
        name for name in disk.content() if "classifier" in name or name.endswith((".tmp", "lock"))
    ], disk.content()
    disk.empty()
    done = command("finetune", *arguments)
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr
    assert json.loads((workdir / "results.json").read_text())["test_examples"] == 12

    predict = (f"--module={classifier}", f"--images={photos}", f"--output={table}")
    table.write_text("of before")
    disk.fill()
    refused("predict", *predict)
    assert table.read_text() == "of before" and not [
        n for n in disk.content() if n.endswith((".tmp", ".unfinished"))
    ]
    disk.empty()
    assert (
        command("predict", *predict).returncode == 0 and len(table.read_text().splitlines()) == 49
    )


def test_export(disk):
    task, path = encoder(), disk.folder / "m"

    def full(left):
        disk.fill(left)
        with pytest.raises(files.errors()) as error:
            export.save(task, path, tarball=True)
        assert "the disk is full" in failures.explain(error.value)
        disk.empty()

    full(60_000)
    assert disk.content() == {} and os.listdir(disk.folder) == []
    export.save(task, path)
    module = disk.content()
    full(8_000)
    assert disk.content() == module
    export.save(task, path, tarball=True)
    assert sorted(os.listdir(disk.folder)) == ["m", "m.tar.gz"]


def test_unpacking(disk, tmp_path):
    """What does not fit by its size is refused at the start; what grows, where it ends."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, [600, 600, 3], np.uint8)
        (tmp_path / "photos" / f"{i}.png").write_bytes(
            tf.io.encode_png(noise).numpy()
        )  # 1.1 MB each
    (tmp_path / "photos" / "6.bmp").write_bytes(bytes(1 << 20))
    for ending, form in ((".tar", "tar"), (".tar.gz", "gztar"), (".zip", "zip")):
        shutil.make_archive(str(tmp_path / "p"), form, tmp_path, "photos")
        with pytest.raises(archive.UserError, match="No space left.*make room"):
            archive.unpack(str(tmp_path / f"p{ending}"), str(disk.folder))
        assert disk.content() == {}
    for i in range(2, 6):
        (tmp_path / "photos" / f"{i}.png").unlink()
    shutil.make_archive(str(tmp_path / "p"), "gztar", tmp_path, "photos")
    disk.fill(os.path.getsize(tmp_path / "p.tar.gz") + 100_000)
    with pytest.raises(archive.UserError, match="No space left"):
        archive.unpack(str(tmp_path / "p.tar.gz"), str(disk.folder))
    assert disk.content() == {}
    disk.empty()
    assert (
        len(
            os.listdir(
                os.path.join(archive.unpack(str(tmp_path / "p.tar.gz"), str(disk.folder)), "photos")
            )
        )
        == 3
    )

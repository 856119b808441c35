"""Every flag that is a path takes ~ for the user's home, and the characters of patterns in a
folder's name for what they are."""

import csv
import json
import os
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from runs import TINY, command

import tfssl
from tfssl.config import data_flags
from tfssl.pretext.parts import ab_bins

FOLDER = "run[1]{a}*"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's home, whose name is a pattern that a folder beside it matches."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    (tmp_path / "run1{a}x").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_homes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    values = flags.FlagValues()
    for name in ("workdir", "teacher", "dataset"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_list("module", None, "", flag_values=values)
    flags.DEFINE_integer("images", 3, "", flag_values=values)  # a path in another command
    data_flags.expand_homes(values)
    data_flags.expand_homes(values)
    for given, expected in {
        "~/runs/a": "/home/someone/runs/a",
        "runs/~": "runs/~",
        "gs://b/~": "gs://b/~",
    }.items():
        values(["prog", f"--workdir={given}", "--teacher", given])
        assert values.workdir == values.teacher == expected
    values(
        [
            "prog",
            "--module=~/a,b=~/c,runs/lr=~,https://a/b=~/c",
            "--images=5",
            "--dataset=folder:~/x",
        ]
    )
    home = "/home/someone"
    assert values.module == [f"{home}/a", f"b={home}/c", "runs/lr=~", "https://a/b=~/c"]
    assert values.images == 5 and values.dataset == "folder:~/x"  # open_source's own affair


def encoded(number, size=20):
    rng = np.random.default_rng(number)
    return tf.io.encode_png(rng.integers(0, 256, [size, size, 3], np.uint8)).numpy()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_every_kind_of_source(home, monkeypatch):
    monkeypatch.setenv("TFSSL_CACHE", str(home / "cache"))
    gray = tf.io.encode_png(np.zeros([20, 20, 1], np.uint8)).numpy()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    annotation = f"<a><size><width>20</width><height>20</height></size><object><name>cat</name>{box}</object></a>"
    for i in range(2):
        write(home / f"photos/train/{'ab'[i]}/{i}.png", encoded(i))
        write(home / f"voc/JPEGImages/{i}.jpg", encoded(i))
        write(home / f"voc/Annotations/{i}.xml", annotation)
        write(home / f"voc/SegmentationClass/{i}.png", gray)
        write(home / f"surfaces/train/{i}.png", encoded(i))
        write(home / f"surfaces/trainnormals/{i}.png", encoded(i))
    write(home / "voc/ImageSets/Main/cat_train.txt", "0 1\n1 -1\n")
    write(home / "voc/ImageSets/Main/train.txt", "0\n1\n")
    write(home / "voc/ImageSets/Segmentation/train.txt", "0\n1\n")
    with tarfile.open(home / "photos.tar", "w") as tar:
        tar.add(home / "photos", arcname="photos")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "odd[2].tfrecord"):
        with tf.io.TFRecordWriter(str(home / name)) as writer:
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(0)]))
            }
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
            )
    # Where a folder's name is a pattern, TensorFlow's own glob finds nothing.
    assert tf.io.gfile.glob(f"{home}/train-*") == []
    for spec, count in {
        "folder:~/photos": 2, "folder:~/photos.tar": 2, "voc:~/voc": 2, "voc:~": 2, "boxes:~/voc": 2, "masks:~/voc": 2, "frames:~/photos": 2,
        "normals:~/surfaces": 2, "tfrecord:~/train-*": 2, "tfrecord:~/odd[2].tfrecord": 1, "tfrecord:~": 3,
    }.items():  # fmt: skip
        source = tfssl.open_source(spec)
        assert source.num_examples == count, spec
        assert len(list(source.records().map(source.fetch))) == count, spec


def test_every_command(home, tmp_path, photos):
    (home / "photos").symlink_to(photos)
    data = ("--dataset=folder:~/photos", "--data_dir=~/data")
    tiny = [flag for flag in TINY if "_steps" not in flag] + [
        "--train_steps=2",
        "--checkpoint_steps=2",
    ]
    halves = ("--train_split=train[:50%]", "--test_split=train[50%:]")
    ab_bins.of_gamut().save(str(home / "bins.npz"))
    write(
        home / "list.txt", "".join(f"{path.name}\n" for path in sorted(photos.rglob("*.jpg"))[:16])
    )
    module, classifier = "~/run/module/2", "~/ft/classifier/1"
    commands = [
        ("train", *data, *tiny, "--workdir=~/run", "--task=colorization", "--bins=~/bins.npz"),
        ("export", "--workdir=~/run", "--tarball"),
        (
            "evaluate", f"--module=a={module},b={module}.tar.gz", *data, *halves, "--protocol=knn", "--endpoints=pre_logits",
            "--workdir=~/eval",
        ),
        (
            "finetune", f"--module={module}", *data, *halves, "--workdir=~/ft", "--batch_size=8", "--train_steps=1",
            "--train_list=~/list.txt", "--learning_rate=0",
        ),
        ("predict", f"--module={classifier}", "--images=~/photos", "--output=~/out/table.csv"),
    ]  # fmt: skip
    for name, *arguments in commands:
        done = command(name, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
    results = json.loads((home / "eval" / "results.json").read_text())["results"]
    assert results[0]["value"] == results[1]["value"]  # the folder and the tarball are one module
    with open(home / "out" / "table.csv", newline="", encoding="utf-8") as f:
        assert len(list(csv.reader(f))) == 1 + 48
    assert not (tmp_path / "~").exists() and os.listdir(tmp_path / "run1{a}x") == []
    assert sorted(os.listdir(tmp_path)) == ["run1{a}x", FOLDER]

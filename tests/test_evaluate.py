"""`tfssl-eval` as a user runs it: a process with flags, a table, files, and errors of one line."""

import atexit
import base64
import ctypes
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_modules
from absl import flags

import tfssl
from tfssl import downstream
from tfssl.config.configs import TrainConfig
from tfssl.data.overlap import overlap as shared
from tfssl.downstream.report.record import Record
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.export import untrained
from tfssl.hub import handles
from tfssl.storage import locks
from tfssl.training.registered import registered


@pytest.fixture(scope="module")
def modules_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "ours").mkdir()
    tiny_modules.save_ours(folder / "ours")
    tiny_modules.pack(tiny_modules.save_signature(folder / "foreign"), folder / "theirs.tar.gz")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """60 training and 30 test pictures, in three classes that differ in brightness; one training
    file is damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 20), ("test", 10)):
        for c, name in enumerate(("bright", "dark", "dim")):
            for i in range(per_class):
                path = folder / split / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(
                    rng.normal((200, 60, 120)[c], 40, [20, 20, 3]) + rng.normal(0, 30), 0, 255
                )
                path.write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
    (folder / "train" / "dim" / "07.png").write_bytes(b"\x89PNG damaged")
    return folder


@pytest.fixture(scope="module")
def evaluation(tfssl_command, modules_dir, images, tmp_path_factory):
    """One whole evaluation: (workdir, the command's arguments, finished process)."""
    workdir = tmp_path_factory.mktemp("eval")
    arguments = [
        f"--module={modules_dir}/ours/1,other={modules_dir}/theirs.tar.gz",
        f"--dataset=folder:{images}",
        "--protocol=logistic,knn",
        "--train_labels=12,all",
        "--knn_k=5",
        f"--workdir={workdir}",
    ]
    return workdir, arguments, tfssl_command("evaluate", *arguments)


def test_table_names_all_rows_and_columns(evaluation, images):
    _, _, process = evaluation
    assert process.returncode == 0, process.stderr
    table = process.stdout[process.stdout.index("module  ") :].splitlines()
    assert table[0].split() == [
        "module",
        "endpoint",
        "logistic@12",
        "logistic@59",
        "knn@12",
        "knn@59",
    ]
    assert (
        table[-2]
        == f"chosen on val_fraction 0.2 of folder:{images} train; reported on folder:{images} test"
    )
    rows = [
        line[: line.index(".")].split()[:-1] for line in table[2:-3] if re.search(r"\d\.\d", line)
    ]
    assert rows == [
        ["ours", "stem"], ["block"], ["pre_logits"], ["other", "default"], ["net/block"], ["pixels"], ["chance"], ["majority", "class"],
    ]  # fmt: skip
    assert table.count("") == 2
    chance = next(line for line in table if line.startswith("chance"))
    assert chance.split()[1:] == ["33.3"] * 4
    assert (
        sum(line.count("*") for line in table[2:-3]) == 2 * 4
    )  # a chosen endpoint per module and column


def test_damaged_image_is_named(evaluation):
    workdir, _, process = evaluation
    (warning,) = [
        line for line in process.stderr.splitlines() if "could not be read" in line
    ]  # once, not for each module
    assert "1 of 60 images" in warning and "dim/07.png" in warning
    facts = json.loads((workdir / "results.json").read_text())["modules"]["ours"]
    assert [os.path.basename(name) for name in facts["unreadable"]["train"]] == ["07.png"]


def test_results_say_of_which_images_they_are_and_none_of_earlier_ones_stay(
    tfssl_command, modules_dir, images, tmp_path
):
    """The second evaluation, after test images were written anew, is that of an empty folder, and
    says what it replaces."""
    photos, out, module = (
        shutil.copytree(images, tmp_path / "photos"),
        tmp_path / "out",
        f"{modules_dir}/ours/1",
    )
    flags = (
        f"--module={module}",
        f"--dataset=folder:{photos}",
        "--protocol=knn",
        "--endpoints=stem",
        "--val_fraction=0",
    )

    def evaluated():
        done = tfssl_command("evaluate", *flags, f"--workdir={out}")
        assert done.returncode == 0, done.stderr
        return json.loads((out / "results.json").read_text()), done.stdout

    before, said = evaluated()
    assert "is about other images" not in said
    sizes = {
        part: (its["num_examples"], its["num_classes"]) for part, its in before["data"].items()
    }
    assert sizes == {"train": (60, 3), "test": (30, 3)}
    assert all(
        its["digest"] in (out / "report.html").read_text() for its in before["data"].values()
    )
    for name in ("dark", "dim"):
        for path in (photos / "test" / name).iterdir():
            shutil.copyfile(photos / "test" / "bright" / path.name, path)
    after, said = evaluated()
    assert after["data"]["train"] == before["data"]["train"]
    assert after["data"]["test"]["digest"] != before["data"]["test"]["digest"]
    parts = [
        downstream.extract(module, tfssl.open_source(f"folder:{photos}", split), ["stem"])
        for split in sizes
    ]
    (fresh,) = downstream.run("knn", *parts, val_fraction=0)
    assert [r["value"] for r in after["results"]] == pytest.approx([fresh["value"]])
    assert (
        fresh["value"] <= 0.4 < before["results"][0]["value"]
    )  # all are bright now, whatever their labels
    (line,) = [line for line in said.splitlines() if "is about other images" in line]
    assert (
        "(test)" in line
        and "is replaced" in line
        and "results.png" in line
        and "report.html" in line
    )


def test_results_are_those_of_the_library(evaluation, modules_dir, images):
    workdir, arguments, _ = evaluation
    record = json.loads((workdir / "results.json").read_text())
    train, test = (
        downstream.extract(
            str(modules_dir / "ours" / "1"),
            tfssl.open_source(f"folder:{images}", split),
            ["block", "pixels"],
        )
        for split in ("train", "test")
    )
    for protocol, settings in (("logistic", {}), ("knn", {"k": 5})):
        for expected in downstream.run(protocol, train, test, train_labels=12, **settings):
            (found,) = [
                r for r in record["results"]
                if (r["module"], r["protocol"], r["endpoint"], r["train_labels"]) == ("ours", protocol, expected["endpoint"], 12)
            ]  # fmt: skip
            assert found["value"] == pytest.approx(expected["value"], abs=0.04)
            assert found["val_value"] == pytest.approx(
                expected["val_value"], abs=0.34
            )  # of three images
            assert {"metric", "features", "seconds"} <= set(found)
    assert record["command"][1:] == arguments
    assert record["flags"]["knn_k"] == 5 and record["versions"]["tensorflow"] == tf.__version__
    assert record["baselines"] == {
        "chance": pytest.approx(1 / 3),
        "majority class": pytest.approx(1 / 3),
    }
    assert record["modules"]["other"]["image_size"] == 16
    # Brightness is easy: whoever sees it is far above chance.
    best = max(
        r["value"] for r in record["results"] if r["module"] == "ours" and r["train_labels"] == 59
    )
    assert best > 0.6


def test_plot(evaluation):
    assert tf.io.decode_png((evaluation[0] / "results.png").read_bytes()).shape[0] > 400


def test_classifiers_that_learn_by_sgd(tfssl_command, modules_dir, images, tmp_path):
    process = tfssl_command(
        "evaluate",
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--train_split=train[:70%]",
        "--val_split=train[70%:]",
        "--protocol=linear_sgd,mlp,knn",
        "--endpoints=pre_logits,pixels",
        "--sgd_epochs=6",
        "--sgd_decay_epochs=4,5",
        "--sgd_batch_size=16",
        "--mlp_epochs=4",
        "--mlp_decay_epochs=2,3",
        "--mlp_hidden=20",
        "--mlp_l2=1e-4",
        "--epoch=best",
        f"--workdir={tmp_path}",
    )
    assert process.returncode == 0, process.stderr
    assert (
        f"chosen on folder:{images} train[70%:]; reported on folder:{images} test"
        in process.stdout.splitlines()
    )
    record = json.loads((tmp_path / "results.json").read_text())
    assert (record["chosen_on"], record["reported_on"]) == (
        f"folder:{images} train[70%:]",
        f"folder:{images} test",
    )
    found = {(r["protocol"], r["endpoint"]): r for r in record["results"]}
    assert len(found) == len(record["results"]) == 6
    for (protocol, _), r in found.items():
        if protocol != "knn":
            assert [point[0] for point in r["curve"]] == list(range(1, r["epochs"] + 1))
            best = max(point[1] for point in r["curve"])
            assert r["val_value"] == best and [r["epoch"], best, r["value"]] in r["curve"]
    assert (
        found["linear_sgd", "pixels"]["augment"]
        and found["linear_sgd", "pixels"]["batch_size"] == 16
    )
    assert tf.io.decode_png((tmp_path / "results_curve.png").read_bytes()).shape[0] > 400
    written = [
        f"{tmp_path}/{name}"
        for name in ("results.json", "results.png", "results_curve.png", "report.html")
    ]
    assert f"written: {', '.join(written)}" in process.stdout.splitlines()


def test_linear_classifiers_of_goyal_et_al(tfssl_command, modules_dir, images, tmp_path):
    command = [
        "evaluate", f"--module={modules_dir}/ours/1", "--flagfile=tfssl:goyal/eval_linear_sgd.flags", f"--dataset=folder:{images}",
        "--test_split=test", "--label_offset=0", "--image_size=16", "--resize=18", "--sgd_batch_size=16", "--sgd_epochs=3",
        "--sgd_decay_epochs=2", f"--workdir={tmp_path}",
    ]  # fmt: skip
    process = tfssl_command(*command)
    assert process.returncode == 0, process.stderr
    first = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [r["endpoint"] for r in first] == ["stem", "block", "pre_logits", "pixels"]
    for r in first:
        settings = {
            "crops": "resized_flip",
            "batch_norm": "fixed",
            "init_std": 0.01,
            "nesterov": True,
            "weight_decay": 1e-4,
        }
        assert (
            {key: r[key] for key in settings} == settings
            and r["val_value"] is None
            and len(r["curve"]) == 3
        )
    (tmp_path / "results.json").unlink()
    (state,) = (tmp_path / "heads").iterdir()
    written = state.stat().st_mtime_ns
    assert tfssl_command(*command).returncode == 0
    again = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [r["curve"] for r in again] == [r["curve"] for r in first]
    assert state.stat().st_mtime_ns == written  # nothing was learned again


def test_svms_and_few_images(tfssl_command, modules_dir, images, tmp_path):
    process = tfssl_command(
        "evaluate",
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--protocol=svm,low_shot,few_shot,knn",
        "--endpoints=pre_logits,pixels",
        "--svm_costs=1,10,100",
        "--low_shot_k=1,4",
        "--low_shot_samples=2",
        "--few_shot_k=5",
        "--few_shot_episodes=12",
        f"--workdir={tmp_path}",
    )
    assert process.returncode == 0, process.stderr
    table = process.stdout[process.stdout.index("module  ") :].splitlines()
    assert table[0].split()[2:] == [
        "svm@59",
        "low_shot@k=1",
        "low_shot@k=4",
        "few_shot@k=5",
        "knn@59",
    ]
    (chance,) = (line for line in table if line.startswith("chance"))
    assert chance.split()[1:] == ["33.3"] * 5
    (majority,) = (line for line in table if line.startswith("majority"))
    assert majority.split() == [
        "majority",
        "class",
        "33.3",
    ]  # of accuracies among all classes alone
    assert any("(svm, low_shot: mean average precision) in %" in line for line in table)
    record = json.loads((tmp_path / "results.json").read_text())
    found = {(r["protocol"], r.get("shots"), r["endpoint"]): r for r in record["results"]}
    assert len(found) == len(record["results"]) == 10
    svm, low, few = (
        found[key]
        for key in (
            ("svm", None, "pre_logits"),
            ("low_shot", 4, "pre_logits"),
            ("few_shot", 5, "pixels"),
        )
    )
    assert svm["chosen_on"] == f"3 folds of folder:{images} train" and svm["accuracy"] > 0.5
    assert (
        low["chosen_on"] == f"folder:{images} train outside of each sample" and low["samples"] == 2
    )
    assert (few["ways"], few["episodes"]) == (3, 12)
    assert tf.io.decode_png((tmp_path / "results.png").read_bytes()).shape[0] > 1000


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Pascal VOC's layout: bright pictures, red ones, and those that are both."""
    folder, rng = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for split, count in (("trainval", 60), ("test", 40)):
        names, marks = (
            [f"{split}{i:03}" for i in range(count)],
            rng.choice([-1, 1, 1, 0], [count, 2]),
        )
        for name, (bright, red) in zip(names, marks):
            pixels = rng.normal(90, 30, [20, 20, 3]) + 70 * (bright == 1) + [60 * (red == 1), 0, 0]
            encoded = tf.io.encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8)).numpy()
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(encoded)
        for column, of_class in enumerate(("bright", "red")):
            lines = [f"{name} {mark}\n" for name, mark in zip(names, marks[:, column])]
            (lists / f"{of_class}_{split}.txt").write_text("".join(lines))
    return folder


def test_images_of_several_classes(tfssl_command, modules_dir, voc, tmp_path):
    process = tfssl_command(
        "evaluate",
        f"--module={modules_dir}/ours/1",
        f"--dataset=voc:{voc}",
        "--train_split=trainval",
        "--protocol=svm,low_shot",
        "--endpoints=pixels",
        "--low_shot_k=1,4",
        "--low_shot_choose=test",
        f"--workdir={tmp_path}",
    )
    assert process.returncode == 0, process.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    svm, *low = record["results"]
    assert sorted(svm["per_class"]) == ["bright", "red"] and svm["value"] > svm["chance"] + 0.2
    assert [r["chosen_on"] for r in low] == [f"voc:{voc} test (optimistic)"] * 2
    assert (
        record["baselines"] == {}
        and "chance" in process.stdout
        and "majority" not in process.stdout
    )


def test_own_splits_of_records_do_not_overlap(tmp_path):
    from tfssl.data import open_source

    for shard in range(4):
        with tf.io.TFRecordWriter(str(tmp_path / f"train-{shard:05}-of-00004")) as writer:
            for _ in range(3):
                encoded = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"an image"]))
                features = tf.train.Features(feature={"image/encoded": encoded})
                writer.write(tf.train.Example(features=features).SerializeToString())

    def overlap(*splits):
        return shared(*(open_source(f"tfrecord:{tmp_path}", split) for split in splits))

    assert not overlap("train[:3shard]", "train[3shard:]")
    assert (
        overlap("train[:3shard]", "train[2shard:]")
        and overlap("train[:10]", "train[3shard:]")
        and overlap("train", "all")
    )


def test_again_from_the_cache(evaluation, tfssl_command, tmp_path):
    workdir, arguments, process = evaluation
    shutil.copytree(workdir, tmp_path / "again")
    flags = ("--protocol=knn", f"--workdir={tmp_path}/again", "--cache=verify", "--prune")
    again = tfssl_command("evaluate", *arguments, *flags)
    assert (
        again.returncode == 0
        and again.stdout.count("from the cache, verified") == 2
        and "pruned: 0 sets of features" in again.stdout
        and process.stdout.count("from the cache") == 0
    )
    old, new = (
        json.loads((folder / "results.json").read_text())["results"]
        for folder in (workdir, tmp_path / "again")
    )
    assert [{**r, "seconds": 0} for r in new] == [
        {**r, "seconds": 0} for r in old if r["protocol"] == "knn"
    ]


def mount(folder, size):
    """A file system of its own in a folder, which this process alone sees, and which goes with
    it."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x20000, 0x40000 | 0x4000
    if libc.unshare(new_mounts) or libc.mount(b"none", b"/", None, private, None):
        os._exit(99)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        os._exit(99)
    atexit.register(lambda: print("left:", sorted(path.name for path in folder.rglob("*.*"))))


def test_a_full_disk_is_one_line_and_leaves_nothing(modules_dir, images, tmp_path):
    """A real one: a file system of 256 kB, of which the features of one endpoint take half."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("file systems of one's own are not permitted here (unshare -m)")
    flags = (
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--protocol=knn",
        f"--workdir={tmp_path}",
    )

    done = runs.command("evaluate", *flags, first=functools.partial(mount, tmp_path, "256k"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "features cannot be cached in" in done.stderr and "No space left" in done.stderr
    assert "left: ['.tfssl', 'key.json']" in done.stdout


def test_help_is_quick_and_complete():
    start = time.time()
    process = runs.anew("evaluate", "--help")
    assert process.returncode == 0 and time.time() - start < 5
    for flag in (
        "module",
        "protocol",
        "endpoints",
        "train_labels",
        "l2",
        "knn_k",
        "workdir",
        "label_offset",
        "val_split",
        "sgd_epochs",
        "mlp_l2",
        "svm_costs",
        "low_shot_choose",
        "few_shot_ways",
    ):
        assert f"--{flag}" in process.stdout
    assert "2019 study: 800" in process.stdout and "100 / (features * classes)" in process.stdout
    script = (
        "import sys, tfssl.evaluate as e; e.define_flags(); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--module is missing"),
        (["--module=nowhere", "--dataset=nowhere"], "nowhere"),
        (
            ["--module=m", "--protocol=svc"],
            "--protocol=svc: there is logistic, knn, linear_sgd, mlp, svm, low_shot, few_shot, unsupervised, "
            "segmentation, detection, fcos, surface_normals",
        ),
        (
            ["--module=m", "--protocol=nowhere.mine:Mine"],
            "no module 'nowhere.mine': is it installed",
        ),
        (["--module=m", "--protocol=features"], "--workdir is missing"),
        (["--module=m", "--test_split="], "--test_split is empty"),
        (["--module=m", "--pool=min"], "--pool=min.*adaptive_max"),
        (["--module=m", "--knn_k=0"], "--knn_k=0"),
        (
            ["--module=m", "--protocol=knn", "--budget_minutes=3"],
            "--budget_minutes=3 is of --protocol=all",
        ),
        (["--module=m", "--epoch=first"], "--epoch=first.*best"),
        (["--module=m", "--cache=often"], "--cache=often: choose one of true, false, verify"),
        (["--prune"], "--prune removes features from a local --workdir"),
        (["--module=m", "--strategy=miror"], "--strategy=miror: choose one of auto, default"),
        (["--module=m", "--precision=int8"], "--precision=int8: choose one of auto, float32"),
        (["--modul=m"], "modul"),
        (["--module=m", "stray"], "'stray'"),
    ],
)
def test_errors_are_one_line(tfssl_command, arguments, message):
    process = tfssl_command("evaluate", *arguments)
    assert process.returncode == 1 and process.stdout == "" and "Traceback" not in process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("tfssl-eval: ")]
    assert re.search(message, line)


# A process for each would take seconds: one reads command lines, and prints what each ends in.
DRIVER = """
import sys
from absl import flags
from tfssl import evaluate
from tfssl.errors import UserError
from tfssl.export import untrained
from tfssl.runtime import cli
evaluate.define_flags()
for line in sys.stdin.read().splitlines():
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(cli.expand_flagfiles(["tfssl-eval", *line.split("\\t")]))
    try:
        evaluate.main([])
        print("UserError: none")
    except UserError as e:
        print("UserError:", e)
"""


def test_errors_come_before_any_work(modules_dir, images, voc, tmp_path):
    unlabelled = tmp_path / "flat"
    unlabelled.mkdir()
    for name in ("a", "b"):
        (unlabelled / f"{name}.png").write_bytes(
            tf.io.encode_png(np.zeros([20, 20, 3], np.uint8)).numpy()
        )
    ours, data = f"--module={modules_dir}/ours/1", f"--dataset=folder:{images}"
    cases = [
        (
            [ours, data, "--endpoints=block9"],
            ["no endpoint block9", "stem, block, pre_logits, pixels"],
        ),
        ([ours, data, "--test_split=tset"], ["'tset'", "train"]),
        ([ours, "--dataset=imagenet"], ["'imagenet'", "tfds:"]),
        (
            [
                ours,
                f"--dataset=folder:{unlabelled}",
                "--train_split=train[:1]",
                "--test_split=train[1:]",
            ],
            ["train[:1]) has no labels"],
        ),
        ([ours, data, "--test_split=train"], ["both train"]),
        ([ours, data, "--val_split=test"], ["--test_split and --val_split are both test"]),
        (
            [ours, data, "--val_split=train[50%:]"],
            ["--train_split and --val_split share images (train, train[50%:])"],
        ),
        (
            [ours, "--train_split=train[:60%]", "--test_split=train[50%:]"],
            ["--train_split and --test_split share images"],
        ),
        ([ours, data, "--val_split=val"], ["no split 'val'"]),
        ([ours, data, "--train_split=train[:1shard]"], ["shards are the record files"]),
        ([ours, data, "--l2=strong"], ["l2='strong'", "published"]),
        (
            [ours, data, "--val_fraction=0"],
            ["--l2=select and --val_fraction=0: nothing to choose on"],
        ),
        ([ours, data, "--protocol=svm", "--svm_costs=cheap"], ["costs='cheap'", "vissl, goyal"]),
        (
            [ours, data, "--protocol=low_shot", "--low_shot_k=one"],
            ["--low_shot_k=one: give integers"],
        ),
        ([ours, data, "--protocol=few_shot", "--few_shot_ways=1"], ["ways=1"]),
        (
            [ours, data, "--protocol=few_shot", "--val_fraction=0"],
            ["--few_shot_ridges=0.0001,", "and --val_fraction=0"],
        ),
        # What the labels do not permit is refused before images pass through the module.
        (
            [ours, data, "--protocol=knn,logistic,few_shot", "--few_shot_k=5,19"],
            [
                "--protocol=few_shot: shots=5,19: class bright has 16 images to learn from in "
                "folder:"
            ],
        ),
        (
            [ours, data, "--protocol=knn,low_shot", "--low_shot_k=1,21"],
            ["--protocol=low_shot: shots=1,21: class bright has 20 images"],
        ),
        (
            [ours, data, "--protocol=few_shot", "--few_shot_k=5", "--train_labels=12"],
            ["class bright has 3 images"],
        ),
        (
            [ours, "--dataset=glyphs", "--train_split=train[:1]", "--protocol=knn"],
            [
                "--protocol=knn: glyphs train[:1]: all 1 images to learn from are of one class, A: "
                "nothing to tell apart"
            ],
        ),
        (
            [ours, data, "--protocol=mlp", "--mlp_decay_epochs=60,200"],
            ["mlp: decay_epochs=60,200", "within the 180"],
        ),
        (
            [ours, data, "--protocol=linear_sgd", "--sgd_decay_epochs=a"],
            ["--sgd_decay_epochs=a: give numbers"],
        ),
        ([ours, data, "--train_labels=1000"], ["train_labels=1000", "60"]),
        ([ours, data, "--train_labels=2"], ["2 labels", "3 classes"]),
        (
            [ours, data, "--protocol=knn,segmentation"],
            ["--protocol=segmentation: --dataset=folder:", "has no masks"],
        ),
        ([ours, data, "--image_size=32", "--resize=20"], ["resize=20", "image_size=32"]),
        (
            [f"--module={modules_dir}/theirs.tar.gz", data, "--image_size=32"],
            ["does not take 32x32"],
        ),
        ([f"--module={modules_dir}/ours", data], ["no saved_model.pb", "ours/1"]),
        (
            [ours, f"--dataset=voc:{voc}", "--train_split=trainval", "--protocol=svm,knn"],
            ["--protocol=knn: an image of voc:", "only svm and low_shot take"],
        ),
        (
            [
                ours,
                f"--dataset=voc:{voc}",
                "--train_split=trainval",
                "--test_split=trainval[50%:]",
                "--protocol=svm",
            ],
            ["--train_split and --test_split share images"],
        ),
        (
            [ours, "--flagfile=tfssl:goyal/eval_svm.flags"],
            ["voc:VOCdevkit/VOC2007: no folder ImageSets/Main"],
        ),
        (
            [ours, "--flagfile=tfssl:goyal/eval_low_shot.flags"],
            ["voc:VOCdevkit/VOC2007: no folder ImageSets/Main"],
        ),
        (
            [ours, "--flagfile=tfssl:goyal/eval_linear_sgd.flags"],
            ["tfrecord:imagenet/*-of-*: no TFRecord files"],
        ),
        (
            [ours, "--flagfile=tfssl:goyal/eval_linear_sgd_places205.flags"],
            ["tfrecord:places205/*-of-*: no TFRecord files"],
        ),
        # The study's flags are all sound: what fails is the data.
        *(
            (
                [ours, f"--flagfile=tfssl:revisiting/{os.path.basename(file)}"],
                ["tfrecord:imagenet/*-of-*: no TFRecord files"],
            )
            for file in sorted(
                glob.glob(
                    os.path.join(
                        os.path.dirname(__file__), "..", "flags", "revisiting", "eval_*.flags"
                    )
                )
            )
        ),
    ]
    assert len(cases) > 20
    # A workdir that cannot be written is found before the module is looked for; one that is in use,
    # before images pass through it.
    cases.append(
        (
            ["--module=nowhere", "--workdir=/proc/no/such"],
            ["--workdir=/proc/no/such cannot be written"],
        )
    )
    cases.append(
        ([ours, data, f"--workdir={tmp_path}/busy"], ["busy' is in use by process", "--steal_lock"])
    )
    lines = "\n".join("\t".join(arguments) for arguments, _ in cases)
    with locks.workdir_lock(str(tmp_path / "busy")):
        process = subprocess.run(
            [sys.executable, "-c", DRIVER], input=lines, capture_output=True, text=True, check=False
        )
    assert os.listdir(tmp_path / "busy") == []
    errors = process.stdout.splitlines()
    assert len(errors) == len(cases), (
        process.stdout + process.stderr
    )  # and nothing was begun: no other line
    for error, (_, parts) in zip(errors, cases):
        assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    "values, expected",
    [
        (["runs/rot/module/1000"], {"rot": "runs/rot/module/1000"}),
        (["modules/photos/1/", "b.tar.gz"], {"photos": "modules/photos/1/", "b": "b.tar.gz"}),
        (["x=a/1", "a/1"], {"x": "a/1", "a": "a/1"}),
        (["u/a/1", "v/a/1"], {"u/a/1": "u/a/1", "v/a/1": "v/a/1"}),
        (["lr=0.1", "wd=0/module/4"], {"lr": "0.1", "wd": "0/module/4"}),  # there is no such folder
        (["https://h/m/1?f=2"], {"1?f=2": "https://h/m/1?f=2"}),
        (["r1.5=https://h/m?f=2"], {"r1.5": "https://h/m?f=2"}),
    ],
)
def test_names_of_modules(values, expected):
    assert handles.named(values) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("lr=0.1/module/4", {"lr=0.1": "lr=0.1/module/4"}),  # hydra's habit
        ("lr=0.1,wd=0/module/4", {"lr=0.1,wd=0": "lr=0.1,wd=0/module/4"}),
        (
            "mine=lr=0.1,wd=0/module/4,lr=0.1/module/4",
            {"mine": "lr=0.1,wd=0/module/4", "lr=0.1": "lr=0.1/module/4"},
        ),
        ("lr=0.1/module/4,x=a,b,a", {"lr=0.1": "lr=0.1/module/4", "x": "a,b", "a": "a"}),
        ('"x=a,b",a', {"x": "a,b", "a": "a"}),
        ("a,b", {"a,b": "a,b"}),  # what exists as a whole goes first
        ('y=a,"c,d"', {"y": "a", "c,d": "c,d"}),  # quoted: one handle, though it does not exist
    ],
)
def test_folders_named_by_their_settings(tmp_path, monkeypatch, text, expected):
    for folder in ("lr=0.1/module/4", "lr=0.1,wd=0/module/4", "a", "b", "a,b"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    values = (
        flags.DEFINE_list("module", None, "", flags.FlagValues())
        ._flagvalues["module"]
        .parser.parse(text)
    )
    assert handles.named(values) == expected


@pytest.mark.parametrize("values", [[], None, ["a="], ["x=a", "x=b"], ["a", "a"]])
def test_names_that_do_not_tell_apart(values):
    with pytest.raises(UserError, match="--module"):
        handles.named(values)


def test_features_and_neighbours(tfssl_command, modules_dir, images, tmp_path):
    """Features of images without labels; and a picture beside a protocol."""
    (tmp_path / "unlabelled").mkdir()
    for i, path in enumerate(sorted((images / "test").rglob("*.png"))[:5]):
        shutil.copy(path, tmp_path / "unlabelled" / f"{i}.png")
    module, workdir = f"--module=a={modules_dir}/ours/1", f"--workdir={tmp_path}/out"
    run = tfssl_command(
        "evaluate", module, workdir, f"--dataset=folder:{tmp_path}/unlabelled", "--train_split=all", "--test_split=",
        "--protocol=features", "--endpoints=pre_logits",
    )  # fmt: skip
    assert run.returncode == 0 and f"written: {tmp_path}/out/a_train.npz" in run.stdout, (
        run.stdout + run.stderr
    )
    with np.load(tmp_path / "out" / "a_train.npz") as saved:
        assert saved["pre_logits"].shape == (5, 16) and list(saved["labels"]) == [-1] * 5
        assert sorted(name.split("/")[-1] for name in saved["names"]) == [
            f"{i}.png" for i in range(5)
        ]
    run = tfssl_command(
        "evaluate", module, workdir, f"--dataset=folder:{images}", "--protocol=knn,features", "--endpoints=pre_logits",
        "--neighbors=4",
    )  # fmt: skip
    assert run.returncode == 0 and "knn@59" in run.stdout, run.stdout + run.stderr
    assert {"a_train.npz", "a_test.npz", "a_neighbors.png", "results.json"} <= set(
        os.listdir(tmp_path / "out")
    )


def test_segmentation(tfssl_command, modules_dir, tmp_path):
    """The whole way, with two modules; and what does not go together."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for i in range(count):
            mask = np.repeat(np.repeat(rng.integers(0, 2, [4, 5]), 8, 0), 8, 1).astype(np.uint8)
            pixels = np.clip(
                70 + 100 * mask[..., None] + rng.normal(0, 10, [32, 40, 3]), 0, 255
            ).astype(np.uint8)
            for folder, picture in ((split, pixels), (f"{split}annot", mask[..., None])):
                (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
                (tmp_path / "images" / folder / f"{i}.png").write_bytes(
                    tf.io.encode_png(picture).numpy()
                )
    module = f"--module=a={modules_dir}/ours/1,b={modules_dir}/ours/1"
    flags = (
        module,
        f"--dataset=masks:{tmp_path}/images",
        "--protocol=segmentation",
        "--dense_epochs=20",
    )
    run = tfssl_command("evaluate", *flags, f"--workdir={tmp_path}/out", "--endpoints=stem,pixels")
    assert run.returncode == 0 and "segmentation: mean intersection over union" in run.stdout, (
        run.stdout + run.stderr
    )
    with open(tmp_path / "out" / "results.json") as f:
        results = json.load(f)["results"]
    assert [(r["module"], r["endpoint"]) for r in results] == [
        ("a", "stem"),
        ("a", "pixels"),
        ("b", "stem"),
    ]
    assert (
        results[0]["value"] > 0.6
        and results[0]["chosen"]
        and os.path.exists(tmp_path / "out" / "results.png")
    )
    assert (
        "data:image/png" in (tmp_path / "out" / "report.html").read_text()
        and "picture" not in results[0]
    )
    run = tfssl_command("evaluate", *flags, "--protocol=segmentation,knn")
    assert run.returncode == 1 and "has no labels" in run.stderr
    run = tfssl_command("evaluate", *flags, "--dense_size=12")
    assert run.returncode == 1 and "give HEIGHT,WIDTH" in run.stderr


def test_labels_and_masks_of_one_data_set(tfssl_command, modules_dir, tmp_path):
    """Glyphs have both: classifiers and segmentation stand in one table, each with its own
    baselines and pixels."""
    flags = (
        "--train_split=train[:60]",
        "--test_split=test[:30]",
        "--dense_epochs=1",
        "--detection_layers=0",
        f"--workdir={tmp_path}",
    )
    module = f"--module=a={modules_dir}/ours/1"
    run = tfssl_command(
        "evaluate", module, "--dataset=glyphs", "--protocol=segmentation,detection,knn", *flags
    )
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    found = [(r["protocol"], r["endpoint"]) for r in record["results"]]
    maps = ["stem", "block", "pixels"]
    assert found == [
        *(("knn", endpoint) for endpoint in ["stem", "block", "pre_logits", "pixels"]),
        *(("segmentation", endpoint) for endpoint in maps),
        *(("detection", endpoint) for endpoint in maps),
    ]
    assert (record["train_examples"], record["test_examples"], record["num_classes"]) == (
        60,
        30,
        10,
    )
    (chance,) = (line for line in run.stdout.splitlines() if line.startswith("chance"))
    assert chance.split() == ["chance", "10.0"]  # of accuracy alone


@pytest.fixture(scope="module")
def half_broken(tmp_path_factory):
    """A module one of whose endpoints is not a number for bright images."""
    folder = tmp_path_factory.mktemp("broken")
    module = tf.train.Checkpoint()
    level = lambda x: tf.reduce_mean(x, [1, 2])  # noqa: E731
    module.__call__ = tf.function(
        lambda x: {"good": level(x), "odd": tf.math.log(0.5 - level(x))},
        input_signature=[tf.TensorSpec([None, 16, 16, 3])],
    )
    tf.saved_model.save(module, str(folder / "m"), signatures={})
    return folder / "m"


def test_what_is_refused_takes_nothing_along(
    tfssl_command, modules_dir, half_broken, images, tmp_path
):
    """A module's endpoint that is no number is refused where it is met; all else is measured,
    written and in the table."""
    process = tfssl_command(
        "evaluate", f"--module=broken={half_broken},ours={modules_dir}/ours/1", f"--dataset=folder:{images}",
        "--protocol=knn,few_shot", "--few_shot_k=1", "--few_shot_episodes=6", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert process.returncode == 1 and "Traceback" not in process.stderr
    *_, line = process.stderr.splitlines()
    what = (
        "module '.*/m': endpoint odd is infinite or not a number for [0-9]+ of 59 images of folder:"
    )
    assert re.match(f"tfssl-eval: the other results stand; knn: {what}", line)
    record = json.loads((tmp_path / "results.json").read_text())
    found = {(r["module"], r["protocol"], r["endpoint"]) for r in record["results"]}
    ours = {("ours", p, e) for p in ("knn", "few_shot") for e in ("stem", "block", "pre_logits")}
    assert found == ours | {
        ("broken", p, e) for p in ("knn", "few_shot") for e in ("good", "pixels")
    }
    assert record["finished"] and re.match(f"knn: {what}", record["refused"][0])
    assert (
        re.search(r"\n  +pre_logits +\d", process.stdout)
        and "odd" in (tmp_path / "report.html").read_text()
    )


def test_results_are_written_as_they_come(tmp_path):
    """A process that is killed leaves what it has measured."""
    said = []
    record = Record(
        str(tmp_path), ["logistic", "knn"], said.append, baselines={"chance": 0.5}, command=["c"]
    )
    record.modules |= {"a": {}, "b": {}}
    written = []

    def results():
        for protocol in ("knn", "logistic"):
            yield Result(protocol, "e", "accuracy", value=0.5, val_value=0.4, train_labels=9)
            written.append(json.loads((tmp_path / "results.json").read_text()))

    record.add("a", results())
    assert [len(w["results"]) for w in written] == [1, 2] and not any(
        w["finished"] for w in written
    )
    assert [r["protocol"] for r in written[1]["results"]] == [
        "logistic",
        "knn",
    ]  # in the order of the table
    assert all(r["chosen"] and r["module"] == "a" for r in written[1]["results"]) and len(said) == 2


def test_who_lost_the_workdir_writes_no_more_and_ends(tmp_path):
    """Another process has stolen the lock: not a protocol that is refused, after which the others
    go on."""

    def check():
        if stolen:
            raise UserError("taken over")

    stolen = []
    record = Record(str(tmp_path), ["knn"], [].append, check, baselines={})
    record.modules |= {"a": {}}
    record.refuse(UserError("too few images"), "few_shot")
    stolen.append(True)
    with pytest.raises(UserError, match="taken over"):
        record.add("a", [Result("knn", "e", "accuracy", value=0.5, val_value=0.4, train_labels=9)])
    with pytest.raises(UserError, match="taken over"):
        record.refuse(UserError("taken over"), "a")
    assert os.listdir(tmp_path) == [] and list(record.refused) == ["too few images"]


@pytest.fixture(scope="module")
def everything(tfssl_command, images, tmp_path_factory):
    """--protocol=all of a module that says how it was trained: (workdir, finished process)."""
    folder = tmp_path_factory.mktemp("all")
    network = (
        "--backbone=resnet18_v2",
        "--width_multiplier=0.0625",
        "--stem=small",
        "--image_size=16",
    )
    made = tfssl_command(
        "export", "--random_init", *network, "--seed=1", f"--export_dir={folder}/made"
    )
    assert made.returncode == 0, made.stderr
    facts = json.loads((folder / "made" / "assets" / "tfssl.json").read_text())
    (folder / "made" / "assets" / "tfssl.json").write_text(
        json.dumps({**facts, "random_init": False})
    )  # as if trained
    process = tfssl_command(
        "evaluate", f"--module=made={folder}/made", f"--dataset=folder:{images}", "--endpoints=block4,pre_logits,pixels",
        "--protocol=all", "--train_labels=20", "--low_shot_k=1,4,16", "--low_shot_samples=1", "--few_shot_k=1", "--few_shot_ways=2",
        "--few_shot_episodes=6", "--budget_minutes=0", "--svm_costs=1", "--mlp_epochs=2", "--mlp_decay_epochs=1", "--mlp_hidden=8",
        "--mlp_l2=1e-3",
        f"--workdir={folder}/out",
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return folder / "out", process


def test_all_protocols_beside_an_untrained_network(everything):
    workdir, process = everything
    record = json.loads((workdir / "results.json").read_text())
    modules = record["modules"]
    assert list(modules) == ["made", "random"]
    assert modules["random"]["untrained_of"] == ["made"] and "untrained_of" not in modules["made"]
    assert modules["random"]["identity"] != modules["made"]["identity"]
    measured = {(r["module"], r["protocol"]) for r in record["results"]}
    of_labels = {"logistic", "knn", "mlp", "svm", "low_shot", "few_shot"}
    assert measured == {(m, p) for m in modules for p in of_labels}
    shots = {
        (r["train_labels"], r["shots"]) for r in record["results"] if r["protocol"] == "low_shot"
    }
    assert shots == {(20, 1), (20, 4)}
    assert all("could not be read" in line for line in process.stderr.splitlines()), process.stderr
    assert record["notes"] == [
        line for line in process.stdout.splitlines() if line in record["notes"]
    ]
    expected = (
        "has no masks",
        "has no objects in boxes",
        "has no surface normals",
        "low_shot on 20 labels, k=16",
    )
    for text in expected:
        assert sum(text in line for line in record["notes"]) == 1, text
    assert len(record["notes"]) == len(expected)
    text = (workdir / "report.html").read_text()
    for name in modules:
        png = (workdir / f"{name}_neighbors.png").read_bytes()
        assert base64.b64encode(png).decode() in text
    assert (
        "points below the same network untrained" in text
        or "points above the same network untrained" in text
    )
    for result in record["results"]:  # each in its place is test_page's affair
        assert f">{100 * result['value']:.1f}" in text


MINE = '''
import numpy as np

from tfssl.downstream.protocol import Protocol
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.export import untrained


class NearestMean(Protocol):
    """The class of the nearest mean.

    Args:
      power: Of differences, above 0.
    """

    name = "nearest_mean"
    metric = "balanced accuracy in mine"
    flag_prefix = "mean_"

    def __init__(self, power: float = 1.0):
        if power <= 0:
            raise UserError(f"power={power}: give a number above 0")
        self.power = power

    def run(self, data, endpoints):
        part = data.split()
        for endpoint in endpoints:
            x, y = data.train.endpoints[endpoint], data.train.labels
            means = np.stack([x[part.rows][y[part.rows] == c].mean(0) for c in np.unique(y)])
            guess = (np.abs(data.test.endpoints[endpoint][:, None] - means) ** self.power).sum(-1).argmin(1)
            value = float(np.mean(guess == data.test.labels))
            yield Result(self.name, endpoint, self.metric, value, None, len(part.rows), details={"power": self.power})


class Greedy(NearestMean):
    """Its flags are taken."""

    flag_names = {"power": "seed"}
'''


def test_a_protocol_of_ones_own(modules_dir, images, tmp_path):
    """A class outside of the package: its own flags, its own place in table and report; no other
    file is touched."""
    (tmp_path / "mine.py").write_text(MINE)
    run = functools.partial(
        runs.command, "evaluate", cwd=tmp_path, first=functools.partial(runs.on_path, str(tmp_path))
    )
    common = (
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--endpoints=block,pixels",
    )
    (tmp_path / "own.flags").write_text("--protocol=knn,mine:NearestMean\n--mean_power=2\n")
    done = runs.anew(
        "evaluate", *common, "--flagfile=own.flags", f"--workdir={tmp_path}/out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        "nearest_mean@59" in done.stdout
        and "(nearest_mean: balanced accuracy in mine) in %" in done.stdout
    )
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [r for r in record["results"] if r["protocol"] == "nearest_mean"]
    assert [r["endpoint"] for r in found] == ["block", "pixels"] and all(
        r["power"] == 2 for r in found
    )
    assert found[0]["value"] > 0.5 and record["flags"]["mean_power"] == 2
    assert "<b>nearest_mean</b>" in (tmp_path / "out" / "report.html").read_text()
    text = run("--protocol=mine:NearestMean", "--help").stdout
    assert (
        "mine:NearestMean: The class of the nearest mean\n\n  --mean_power=1.0\n      Of "
        "differences, above 0.\n" in text
    )
    refused = run(*common, "--protocol=mine:NearestMean", "--mean_power=0")
    assert (
        refused.returncode == 1
        and "tfssl-eval: --mean_power=0.0: give a number above 0" in refused.stderr
    )
    refused = run(*common, "--protocol=mine:Greedy")
    assert (
        refused.returncode == 1
        and "--seed is a flag of tfssl-eval already: give mine:Greedy" in refused.stderr
    )


def test_on_two_replicas_the_same_features_and_in_16_bits_others(modules_dir, images, tmp_path):
    """The features of two devices are the bits of one; those of another precision are not taken for
    them."""
    arguments = [
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--protocol=features,knn",
        "--knn_k=5",
        "--endpoints=block,pixels",
        f"--workdir={tmp_path}",
    ]

    def run(*flags):
        done = runs.command("evaluate", *arguments, *flags, first=runs.two_devices)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("ours: ")]
        with np.load(tmp_path / "ours_train.npz") as file:
            return "extracted" in line, dict(file)

    one, replicas, half = (
        run(f"--workdir={tmp_path}", *flags)
        for flags in (
            ["--strategy=default"],
            ["--strategy=mirrored", "--nocache"],
            ["--precision=mixed_bfloat16"],
        )
    )
    assert one[0] and replicas[0] and half[0] and len(one[1]["labels"]) == 59
    for name, values in one[1].items():
        np.testing.assert_array_equal(replicas[1][name], values)
    scale = np.abs(one[1]["block"]).max()
    assert not np.array_equal(half[1]["block"], one[1]["block"])
    np.testing.assert_allclose(half[1]["block"], one[1]["block"], rtol=0, atol=0.02 * scale)


def test_two_processes_extract_half_each(modules_dir, images, tmp_path, monkeypatch):
    """And the first one measures; what is left is what one process leaves. It does not wait for
    ever."""
    arguments = [
        f"--module={modules_dir}/ours/1",
        f"--dataset=folder:{images}",
        "--protocol=features,knn",
        "--knn_k=5",
        "--endpoints=block,pixels",
        "--batch_size=8",
    ]
    alone, together = tmp_path / "alone", tmp_path / "together"
    workers = {"worker": ["localhost:40001", "localhost:40002"]}  # nobody listens there

    def started(index, *more):
        task = {"type": "worker", "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": workers, "task": task}))
        flags = ["--strategy=multi_worker", f"--workdir={together}"]
        return runs.Forked("evaluate", *arguments, *flags, *more)

    only = started(0, "--host_timeout=1").finished()
    assert only.returncode == 1
    assert "images 0 to 29 of 60 are extracted" in only.stdout
    assert "worker 1 (localhost:40002): no progress since 1 s (--host_timeout)" in only.stderr
    first = started(0)
    second = started(1).finished()
    first = first.finished()
    monkeypatch.delenv("TF_CONFIG")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "images 0 to 29 of 60 are extracted" not in first.stdout  # they were
    assert "images 30 to 59 of 60 are extracted" in second.stdout
    assert "knn@59" in first.stdout and "knn@59" not in second.stdout
    assert "worker 0 (localhost:40001) measures them" in second.stdout
    whole = runs.command("evaluate", *arguments, f"--workdir={alone}")
    assert whole.returncode == 0, whole.stderr
    lost = [re.findall(r".* could not be read .*", process.stderr) for process in (first, whole)]
    assert [line.split("] ")[-1] for line in lost[0]] == [line.split("] ")[-1] for line in lost[1]]
    assert "1 of 60 images could not be read" in lost[0][0]
    for part in ("train", "test"):
        one, other = (np.load(folder / f"ours_{part}.npz") for folder in (alone, together))
        for name in one:
            np.testing.assert_array_equal(other[name], one[name])
    assert [len(os.listdir(folder / "features")) for folder in (alone, together)] == [2, 2]
    again = runs.command("evaluate", *arguments, f"--workdir={together}")
    assert "from the cache" in again.stdout


@pytest.mark.slow
def test_two_processes_extract_half_each_of_an_untrained_network(images, tmp_path, monkeypatch):
    """The same one, which both build by themselves; and that of a single process elsewhere."""
    flags = {"backbone": "vit_tiny", "width_multiplier": "0.0625", "depth": "1", "patch": "8"}
    flags |= {"task": "rotation", "image_size": "16"}
    kinds = {kind: flags[kind] for kind in ("task", "backbone")}
    config = TrainConfig.from_record(flags, *registered(kinds))
    untrained.export(config.replace(workdir="w"), f"{tmp_path}/made")
    facts = json.loads((tmp_path / "made/assets/tfssl.json").read_text())
    (tmp_path / "made/assets/tfssl.json").write_text(
        json.dumps({**facts, "random_init": False})
    )  # as if trained
    arguments = [f"--module=made={tmp_path}/made", f"--dataset=folder:{images}"]
    arguments += ["--protocol=features", "--random_init", "--seed=3", "--batch_size=8"]
    arguments += ["--endpoints=block1,pre_logits"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    workers = {"worker": ["localhost:40001", "localhost:40002"]}  # nobody listens there

    def started(index):
        task = {"type": "worker", "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": workers, "task": task}))
        return runs.Forked(
            "evaluate", *arguments, "--strategy=multi_worker", f"--workdir={together}"
        )

    both = [process.finished() for process in [started(0), started(1)]]
    monkeypatch.delenv("TF_CONFIG")
    assert [process.returncode for process in both] == [0, 0], both[0].stderr + both[1].stderr
    for line, process in zip(("images 0 to 29 of 60", "images 30 to 59 of 60"), both):
        assert process.stdout.count(line) == 2  # of the trained module and the untrained one
    whole = runs.command("evaluate", *arguments, f"--workdir={alone}")
    assert whole.returncode == 0, whole.stderr
    for name in ("made_train", "made_test", "random_train", "random_test"):
        one, other = (np.load(folder / f"{name}.npz") for folder in (alone, together))
        assert set(one) == set(other) and {"block1", "pre_logits"} < set(one)
        for key in one:
            np.testing.assert_array_equal(other[key], one[key])
    made, random = (np.load(together / f"{name}_test.npz") for name in ("made", "random"))
    assert not np.array_equal(made["block1"], random["block1"])  # of another seed
    assert len(os.listdir(together / "untrained")) == 1

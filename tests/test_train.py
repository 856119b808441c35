"""The binaries as a user runs them: train, resume, export; and what they say about bad input."""

import functools
import json
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
from runs import (
    BLOCK,
    TINY,
    TRAIN,
    anew,
    assert_identical,
    kill_when,
    logged,
    logged_steps,
    weights,
)

from tfssl import train
from tfssl.config import flagfile
from tfssl.config.configs import TrainConfig
from tfssl.runtime import cli, processor
from tfssl.training import workdir


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory, tfssl_command):
    """One uninterrupted run with validation: (workdir, its process)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    splits = ("--train_split=train[:80%]", "--val_split=train[80%:]")
    done = tfssl_command(
        "train",
        f"--dataset=folder:{photos}",
        f"--workdir={workdir}",
        "--knn_probe=6",
        *splits,
        *TINY,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_tells_how_it_goes(run):
    workdir, done = run
    assert (
        "step 24/24" in done.stdout
        and "images/s" in done.stdout
        and "ETA" in done.stdout
        and "(chance 1.39)" in done.stdout
    )
    assert "next: tfssl-export" in done.stdout.splitlines()[-1]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [4, 8, 12, 16, 20, 24]
    assert {"accuracy", "learning_rate", "images_per_second", "input_wait", "epoch"} <= set(
        logged[0]
    )
    assert all(0 <= line["input_wait"] <= 1 for line in logged)
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == [8, 16, 24]
    assert (
        all(0 <= line["validation_knn_accuracy"] <= 1 for line in validated)
        and "(chance 0.5)" in done.stdout
    )
    flags = (workdir / "flags.flags").read_text()
    assert "--min_area=0.05" in flags and "--batch_size=8" in flags  # the task's own defaults too
    assert (workdir / "classes.txt").read_text().split() == ["cold", "warm"]


def test_tensorboard_has_curves_chance_levels_views_and_flags(run):
    tags = {}
    for name in ("train", "validation", "chance"):
        tags[name] = set()
        for path in (run[0] / name).glob("events*"):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                tags[name] |= {value.tag for value in event.summary.value}
    assert {
        "loss",
        "accuracy",
        "learning_rate",
        "images_per_second",
        "input_wait",
        "views",
        "flags",
    } <= tags["train"]
    assert {"loss", "accuracy"} <= tags["validation"] and {"loss", "accuracy"} <= tags["chance"]


def test_only_the_newest_checkpoints_are_kept_and_a_finished_run_says_so(
    run, photos, tfssl_command
):
    workdir, _ = run
    assert sorted(p.name for p in (workdir / "checkpoints").glob("*.index")) == [
        "ckpt-16.index",
        "ckpt-24.index",
        "ckpt-8.index",
    ]
    flags = workdir / "flags.flags"
    older = [
        line
        for line in flags.read_text().splitlines()
        if not line.startswith(("--initializer", "--decay="))
    ]
    flags.write_text(
        "\n".join(older)
    )  # the record of a run from before these settings, a flag and a task's, were there
    again = tfssl_command("train", f"--flagfile={flags}")
    assert again.returncode == 0 and "finished" in again.stdout


@pytest.mark.costs(180, "three runs")
def test_killed_runs_resume_to_identical_weights(run, tmp_path, tfssl_command):
    """SIGKILL before the first checkpoint and after the first; several steps per execution on top,
    and a name like a pattern. A validation that is missing at the checkpoint, as SIGTERM in the
    middle of it leaves it, is made up for."""
    whole, _ = run
    workdir = tmp_path / "lr=[0.1]"
    command = [f"--flagfile={whole}/flags.flags", f"--workdir={workdir}", "--steps_per_execution=3"]
    for awaited in ("step 6/", "step 14/"):
        assert kill_when(command, awaited)[0] == -signal.SIGKILL, (
            f"the run ended before it printed {awaited!r}"
        )
    assert (workdir / "checkpoints" / "ckpt-8.index").exists() and (workdir / "lock").exists()
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    unvalidated = [line for line in lines if "validation_loss" not in line]
    assert len(unvalidated) < len(lines)
    (workdir / "metrics.jsonl").write_text("".join(unvalidated))
    done = tfssl_command("train", *command)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 8 of 24" in done.stdout
    assert_identical(weights(workdir), weights(whole))
    of_whole, of_killed = (
        [line for line in logged(w) if "validation_loss" in line] for w in (whole, workdir)
    )
    assert [line["step"] for line in of_killed] == [8, 16, 24] and of_killed == of_whole
    steps = logged_steps(workdir)
    assert steps == sorted(set(steps)), "steps logged by the killed run were logged twice"
    exported = tfssl_command("export", f"--workdir={workdir}", "--step=16")
    assert exported.returncode == 0 and (workdir / "module" / "16" / "saved_model.pb").exists(), (
        exported.stderr
    )
    kept = {path.stem[5:] for path in (workdir / "checkpoints").glob("*.index")}
    all_kept = tfssl_command("export", f"--workdir={workdir}", "--all_steps")
    assert all_kept.returncode == 0 and "16 is there already" in all_kept.stdout, all_kept.stderr
    assert {path.name for path in (workdir / "module").iterdir()} == kept == {"8", "16", "24"}
    assert not (workdir / "lock").exists()


@pytest.mark.once
def test_one_process_uses_a_workdir_and_its_screen_may_go(run, tmp_path, tfssl_command):
    """A second start is refused while the first goes on, though nobody reads what it prints any
    more."""
    whole, _ = run
    workdir = tmp_path / "shared"
    command = [f"--flagfile={whole}/flags.flags", f"--workdir={workdir}", "--log_steps=1"]
    first = subprocess.Popen(
        [*TRAIN, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "step 2/" not in first.stdout.readline():
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    before = sorted(workdir.rglob("*"))
    second = tfssl_command("train", *command)
    assert second.returncode == 1 and f"is in use by process {first.pid} on" in second.stderr, (
        second.stderr
    )
    assert len(second.stderr.splitlines()) == 1 and sorted(workdir.rglob("*")) == before
    first.stdout.close()
    first.send_signal(signal.SIGCONT)
    assert first.stderr.read() == "" and first.wait(300) == 0
    assert_identical(weights(workdir), weights(whole))
    assert not (workdir / "lock").exists()


def test_a_run_that_is_told_to_stop_saves_and_says_so(run, photos, tmp_path, tfssl_command):
    """At a step that is no multiple of the checkpoint interval; the same command ends as if nothing
    had happened, though the images have been moved since."""
    whole, _ = run
    workdir = tmp_path / "stopped"
    command = [f"--flagfile={whole}/flags.flags", f"--workdir={workdir}", "--log_steps=1"]
    status, said = kill_when(command, "step 10/", signal.SIGTERM)
    assert status == 75, said
    assert re.fullmatch(
        r"tfssl-train: SIGTERM: stopped after step \d+, which is saved; the same command goes on "
        r"from there\n",
        said,
    )
    stopped = int(re.search(r"step (\d+)", said).group(1))
    assert stopped >= 10 and (workdir / "checkpoints" / f"ckpt-{stopped}.index").exists()
    moved = shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)
    done = tfssl_command("train", *command, f"--dataset=folder:{moved}/")
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {stopped} of 24" in done.stdout
    assert_identical(weights(workdir), weights(whole))
    assert logged_steps(workdir) == list(range(1, 25))
    assert logged_steps(workdir, "validation_loss") == [8, 16, 24]


@pytest.mark.once
def test_other_data_under_the_same_path_are_refused_before_any_work(
    run, photos, tmp_path, tfssl_command
):
    """Renamed, the classes would change places; accepted, the record tells from which step on."""
    whole, _ = run
    (entry,) = json.loads((whole / "provenance.json").read_text())["starts"]
    assert (
        entry["step"] == 0 and entry["data"]["num_examples"] == 38
    )  # of the 48, 80 % are to train on
    workdir, changed = (
        shutil.copytree(whole, tmp_path / "run"),
        shutil.copytree(photos, tmp_path / "photos"),
    )
    (changed / "cold").rename(changed / "zold")
    command = (
        f"--flagfile={workdir}/flags.flags",
        f"--workdir={workdir}",
        f"--dataset=folder:{changed}",
        "--train_steps=25",
    )
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    done = tfssl_command("train", *command)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (
        "other classes (gone: cold; new: zold)" in done.stderr
        and "--accept_changed_data" in done.stderr
    )
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    done = tfssl_command("train", *command, "--accept_changed_data")
    assert done.returncode == 0 and "label 0 was cold and is warm" in done.stdout, done.stderr
    starts = json.loads((workdir / "provenance.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 24]


@pytest.mark.once
def test_a_full_disk_is_one_line_and_loses_nothing(run, tmp_path, tfssl_command):
    """No file may grow beyond the size of half a checkpoint: the save fails, the one before
    stays."""
    whole, _ = run
    workdir = tmp_path / "full"
    shutil.copytree(whole, workdir)
    for path in (workdir / "checkpoints").glob("ckpt-24.*"):
        path.unlink()
    size = (workdir / "checkpoints" / "ckpt-16.data-00000-of-00001").stat().st_size
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    done = tfssl_command(
        "train", f"--flagfile={workdir}/flags.flags", f"--workdir={workdir}", first=limited
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot save step 24" in done.stderr and "last good checkpoint is step 16" in done.stderr
    assert not [p.name for p in (workdir / "checkpoints").iterdir() if "ckpt-24" in p.name]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, tfssl_command):
    whole, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(whole, workdir)
    data = workdir / "checkpoints" / "ckpt-24.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    for at in range(0, len(content), 64):
        content[at] ^= 0xFF
    data.write_bytes(content)
    done = tfssl_command("train", f"--flagfile={whole}/flags.flags", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "ckpt-24 is damaged" in done.stdout and "resuming at step 16" in done.stdout
    assert_identical(weights(workdir), weights(whole))


@pytest.mark.once
def test_a_folder_with_broken_files_trains_and_reports_them(photos, tmp_path, tfssl_command):
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    files = sorted(folder.rglob("*.jpg"))
    files[5].write_bytes(files[5].read_bytes()[:300])  # truncated
    files[30].write_bytes(b"not an image at all")
    done = tfssl_command(
        "train",
        f"--dataset=folder:{folder}",
        f"--workdir={tmp_path / 'run'}",
        *BLOCK,
        "--train_steps=12",
    )
    assert done.returncode == 0, done.stderr
    assert (
        files[5].name in done.stderr
        and files[30].name in done.stderr
        and "skipped unreadable" in done.stderr
    )
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["replaced_images"] >= 2


@pytest.mark.once
def test_dry_run(photos, tmp_path, tfssl_command):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    files = sorted(folder.rglob("*.jpg"))
    shutil.copy(files[0], folder / "warm" / "copy.jpg")
    files[3].write_bytes(b"broken")
    (folder / "warm" / "new.heic").write_bytes(b"RIFF")
    shutil.copytree(folder / "cold", folder / "@eaDir")
    shutil.copy(files[1], folder / "preview.jpg")
    done = tfssl_command("train", f"--dataset=folder:{folder}", "--dry_run", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "49 images, 2 classes",
        "left out: 1 .heic (formats that are not read: convert them to .jpg or .png): 1\n    "
        "warm/new.heic",
        "left out: images beside the classes: 1\n    preview.jpg",
        "warm: 25",
        files[3].name,
        "occurs before: 1",
        "trainable parameters",
        "24 steps",
        "estimated time",
    ):
        assert part in done.stdout, (part, done.stdout)
    picture = tf.io.decode_png((tmp_path / "dry_run.png").read_bytes())
    assert picture.shape[1] == 8 * 18 + 2 and len(np.unique(picture)) > 50
    assert not (tmp_path / "checkpoints").exists()


BAD = {
    "no such folder": (["--dataset=folder:/no/such/place"], "/no/such/place"),
    "unknown source": (["--dataset=photos"], "photos"),
    "unknown task": (["--task=rotatoin"], "rotation, exemplar, "),
    "unknown backbone": (["--backbone=resnet51_v2"], "resnet50_v2"),
    "unknown split": (["--train_split=trian"], "trian"),
    "empty split": (["--train_split=train[:0%]"], "train[:0%]"),
    "unknown flag": (["--batchsize=3"], "batch_size"),
    "unknown optimizer": (["--optimizer=sdg"], "nesterov"),
    "a setting of another task": (["--num_classes=3"], "num_classes"),
    "contradicting cadence": (["--validation_steps=10"], "multiple of --checkpoint_steps"),
    "a probe without validation": (["--knn_probe=8"], "--val_split"),
    "no length": (["--epochs=0", "--train_steps=0"], "--epochs=0"),
    "no number": (["--epochs=nan", "--train_steps=0"], "--epochs=nan"),
    "replicas": (["--strategy=multi_worker"], "TF_CONFIG"),
    "no TPU": (["--strategy=tpu", "--tpu=local"], "TPU"),
    "a workdir that cannot be made": (
        ["--workdir=/proc/no/such"],
        "--workdir=/proc/no/such cannot be written",
    ),
    "unreadable module": (["--init_module=/no/such/module"], "/no/such/module"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line(case, photos, tmp_path, tfssl_command):
    flags, expected = BAD[case]
    done = tfssl_command(
        "train", f"--dataset=folder:{photos}", f"--workdir={tmp_path / 'run'}", *TINY, *flags
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tfssl-train: ") and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )
    assert expected in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_validation_needs_a_readable_image(photos, tmp_path, tfssl_command):
    """Which is said before the training, as is what was left out."""
    import shutil

    folder = tmp_path / "photos"
    shutil.copytree(photos, folder / "Training")
    for path in ("valid/warm/1.jpg", "valid/cold/2.jpg", "notes/x.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"broken")
    flags = (f"--dataset=folder:{folder}", "--val_split=valid", f"--workdir={tmp_path / 'run'}")
    done = tfssl_command("train", *flags, *TINY)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (
        "none of the first 2 images" in done.stderr
        and "valid/" in done.stderr
        and "validation at" not in done.stdout
    )
    assert "left out: folders that are no split: notes/ (1 images)" in done.stdout


@pytest.mark.once
def test_records_with_other_keys(photos, tmp_path, tfssl_command):
    """Those of tutorials: the message names the flags that read them."""
    with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord")) as writer:
        for path in sorted(photos.rglob("*.jpg"))[::4]:
            encoded = tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))
            label = tf.train.Feature(
                int64_list=tf.train.Int64List(value=[int(path.parent.name == "warm")])
            )
            features = tf.train.Features(feature={"image": encoded, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())
    flags = (f"--dataset=tfrecord:{tmp_path}", "--dry_run", *BLOCK)
    done = tfssl_command("train", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "give --image_key=image --label_key=label" in done.stderr
    done = tfssl_command("train", *flags, "--image_key=image", "--label_key=label", cwd=tmp_path)
    assert done.returncode == 0 and "12 images, 2 classes" in done.stdout, done.stderr


def test_a_workdir_of_another_run_is_refused_by_name(run, tfssl_command):
    workdir, _ = run
    done = tfssl_command("train", f"--flagfile={workdir}/flags.flags", "--batch_size=16")
    assert (
        done.returncode == 1
        and "--batch_size is 8, not 16" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(photos, tmp_path, tfssl_command):
    flags = ("--learning_rate=1e20", "--lr_scaling=0", "--log_steps=1", "--checkpoint_steps=1")
    done = tfssl_command(
        "train", f"--dataset=folder:{photos}", f"--workdir={tmp_path / 'run'}", *TINY, *flags
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "at step" in message or "after step" in message
    assert "last good checkpoint" in message or "no checkpoint yet" in message


def test_help_is_fast_and_complete():
    begun = time.perf_counter()
    done = anew("train", "--help")
    assert done.returncode == 0 and time.perf_counter() - begun < 5
    for part in (
        "--image_key",
        "--label_key",
        "--batch_size=256",
        "2019 study",
        "--min_area",
        "Default: 0.05",
        "Optimization",
    ):
        assert part in done.stdout


def test_export_then_evaluate_the_run(run, tmp_path, tfssl_command):
    """The whole way once: the newest checkpoint and the untrained baseline become modules."""
    workdir, _ = run
    module, random = tmp_path / "module", tmp_path / "random"
    for flags in (
        [f"--export_dir={module}", "--tarball"],
        [f"--export_dir={random}", "--random_init", "--recalibrate=9"],
    ):
        done = tfssl_command("export", f"--workdir={workdir}", *flags)
        assert done.returncode == 0, done.stderr
    facts = json.loads((module / "assets" / "tfssl.json").read_text())
    assert (
        facts["step"] == 24
        and facts["class_names"] == ["cold", "warm"]
        and not facts["random_init"]
    )
    assert (tmp_path / "module.tar.gz").exists()
    again = tfssl_command("export", f"--workdir={workdir}", f"--export_dir={module}")
    assert again.returncode == 1 and "never change" in again.stderr
    missing = tfssl_command("export", f"--workdir={workdir}", "--step=5")
    assert missing.returncode == 1 and "8, 16, 24" in missing.stderr
    trained, untrained = (tf.saved_model.load(str(m)) for m in (module, random))
    changed = [
        np.any(a.numpy() != b.numpy()) for a, b in zip(trained.variables, untrained.variables)
    ]
    assert all(changed)
    means = [v.numpy() for v in untrained.variables if "moving_mean" in v.name]
    assert means and all(
        np.any(mean != 0) for mean in means
    )  # of the run's images; untrained networks begin at 0


@pytest.mark.once
def test_supervised_takes_its_classes_from_the_data_and_resumes(photos, tmp_path, tfssl_command):
    shutil.copytree(photos, tmp_path / "photos")
    command = (
        f"--dataset=folder:{tmp_path / 'photos'}",
        f"--workdir={tmp_path / 'run'}",
        *BLOCK,
        "--task=supervised",
        "--schedule=cosine",
    )
    done = tfssl_command("train", *command, "--train_steps=8")
    assert done.returncode == 0, done.stderr
    assert (
        "--num_classes=2" in (tmp_path / "run" / "flags.flags").read_text()
        and "top5_accuracy" in done.stdout
    )
    refused = tfssl_command("train", *command)
    assert refused.returncode == 1 and "--extend_schedule" in refused.stderr
    record = (tmp_path / "run" / "flags.flags").read_bytes()
    shutil.copytree(photos / "warm", tmp_path / "photos" / "hot")
    other = tfssl_command("train", *command, "--train_steps=8")
    assert other.returncode == 1 and "other classes (new: hot)" in other.stderr, other.stderr
    assert (tmp_path / "run" / "flags.flags").read_bytes() == record
    shutil.rmtree(tmp_path / "photos" / "hot")
    longer = tfssl_command("train", *command, "--extend_schedule", "--train_steps=10")
    assert longer.returncode == 0 and "resuming at step 8 of 10" in longer.stdout, longer.stderr


def test_auto_precision_is_chosen_once(tmp_path, monkeypatch, capsys, caplog):
    """A run keeps what its first machine chose: on one that has to emulate it, with a warning."""
    config = TrainConfig().replace(precision="auto", workdir=str(tmp_path), strategy="default")
    monkeypatch.setattr(processor, "bfloat16_here", lambda: True)
    first = workdir.choose_precision(config)
    assert first.accelerators.precision == "mixed_bfloat16"
    assert "--precision=auto: mixed_bfloat16" in capsys.readouterr().out and not caplog.records
    flagfile.write(str(tmp_path / "flags.flags"), first.flags())
    monkeypatch.setattr(processor, "bfloat16_here", lambda: False)
    assert workdir.choose_precision(config) == first
    (warning,) = caplog.messages
    assert (
        warning.startswith("--precision=mixed_bfloat16 is emulated on this processor")
        and "\n" not in warning
    )
    elsewhere = workdir.choose_precision(config.replace(workdir=str(tmp_path / "another")))
    assert elsewhere.accelerators.precision == "float32"


def test_recipes_for_processors_take_what_the_processor_has():
    recipes = sorted(
        (pathlib.Path(train.__file__).parents[1] / "flags").glob("*/cifar10_cpu.flags")
    )
    assert len(recipes) > 5
    for recipe in recipes:
        chosen = [
            a for a in cli.expand_flagfiles([f"--flagfile={recipe}"]) if a.startswith("--precision")
        ]
        assert chosen == ["--precision=auto"], recipe

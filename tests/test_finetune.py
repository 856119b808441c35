"""`tfssl-finetune` as a user runs it: train, stop, resume, publish, measure; distil; and what it
says about bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import tensorflow as tf
from encoders import save_encoder
from runs import assert_identical, kill_when, logged, two_devices, weights

import tfssl
from tfssl import backbones, export, pretext
from tfssl.backbones.hub import Hub
from tfssl.classifiers.classifier import Classifier
from tfssl.classifiers.images import LabeledData
from tfssl.config.configs import FinetuneConfig
from tfssl.data.ops import image
from tfssl.errors import UserError
from tfssl.export import classifier
from tfssl.export.module import save_classifier
from tfssl.hub import load as modules
from tfssl.training import checkpoints

RECIPES = os.path.join(os.path.dirname(__file__), "..", "flags", "finetune")
FLAGS = (
    "--batch_size=8", "--train_steps=16", "--checkpoint_steps=8", "--log_steps=4", "--learning_rate=0.1", "--lr_scaling=0",
    "--train_split=train[:75%]", "--test_split=train[75%:]", "--deterministic",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("modules") / "simclr", head_endpoints=1)


@pytest.fixture(scope="module")
def run(encoder, photos, tmp_path_factory, tfssl_command):
    """One uninterrupted run from head1 on: (workdir, its process)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    flags = (
        f"--module={encoder}",
        f"--dataset=folder:{photos}",
        f"--workdir={workdir}",
        "--endpoint=head1",
    )
    done = tfssl_command("finetune", *flags, "--val_split=train[75%:]", *FLAGS)
    assert done.returncode == 1 and "--val_split and --test_split" in done.stderr  # the same images
    done = tfssl_command("finetune", *flags, "--train_labels=24", *FLAGS)
    assert done.returncode == 0, done.stderr
    return workdir, done


def accuracies(classifier, source):
    """Top-1 by one image at a time."""
    module = tf.saved_model.load(str(classifier))
    hits = []
    for record in source.records():
        example = source.fetch(record)
        pixels = image.resize_central_crop(example["image"], 16, 18)
        logits = module(tf.cast(pixels, tf.float32)[None] / 255)
        hits.append(int(np.argmax(logits)) == int(example["label"]))
    return np.mean(hits)


def test_a_run_ends_with_a_measured_classifier(run, photos, encoder):
    workdir, done = run
    assert (
        "24 labels, 24 images" in done.stdout
        and "step 16/16" in done.stdout
        and "ETA" in done.stdout
    )
    assert f"next: tfssl-predict --module={workdir}/classifier/16" in done.stdout
    record = json.loads((workdir / "results.json").read_text())
    test = tfssl.open_source(f"folder:{photos}", "train[75%:]")
    assert record["accuracy"] == pytest.approx(accuracies(workdir / "classifier" / "16", test))
    assert record["accuracy"] > 0.8  # warm and cold colors are easy
    assert record["top5_accuracy"] == 1.0 and record["test_examples"] == 12
    assert record["train_labels"] == 24 and record["command"][0] == "tfssl-finetune"
    assert (
        record["flags"]["endpoint"] == "head1"
        and record["versions"]["tensorflow"] == tf.__version__
    )
    assert re.search(rf"simclr +head1 +{100 * record['accuracy']:.1f}", done.stdout)
    facts = json.loads((workdir / "classifier" / "16" / "assets" / "tfssl.json").read_text())
    assert (
        facts["kind"] == "classifier"
        and facts["class_names"] == ["cold", "warm"]
        and facts["num_classes"] == 2
    )
    assert (facts["crop"], facts["resize"], facts["endpoint"], facts["step"]) == (
        16,
        18,
        "head1",
        16,
    )
    assert facts["encoder"]["handle"] == encoder and facts["encoder"]["task"] == "simclr"
    assert record["modules"]["encoder"]["identity"] == facts["encoder"]["identity"]
    assert (workdir / "classifier" / "16" / "assets" / "labels.txt").read_text().split() == [
        "cold",
        "warm",
    ]
    losses = [line["loss"] for line in logged(workdir)]
    assert losses[-1] < losses[0]


def test_the_classifier_is_a_reusable_saved_model(run, encoder):
    hub = pytest.importorskip("tensorflow_hub")
    path = str(run[0] / "classifier" / "16")
    module, theirs = tf.saved_model.load(path), tf.saved_model.load(encoder)
    x = np.random.default_rng(0).random([6, 20, 20, 3], np.float32)
    endpoints = module.endpoints(x)
    assert set(endpoints) == {*theirs.endpoints(x), "logits", "probabilities"}
    logits = module(x).numpy()
    assert logits.shape == (6, 2) and logits.dtype == np.float32
    kernel, bias = (module.variables[i].numpy() for i in (-2, -1))
    np.testing.assert_allclose(logits, endpoints["head1"] @ kernel + bias, rtol=1e-4, atol=1e-5)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    served = module.signatures["serving_default"](tf.constant(x))
    assert set(served) == {"logits", "probabilities"}
    np.testing.assert_allclose(served["probabilities"], expected, rtol=1e-4)
    np.testing.assert_allclose(served["logits"], logits, rtol=1e-4, atol=1e-5)
    # The encoder learned, its statistics too, and it learns again.
    assert len(module.variables) == len(theirs.variables) + 2
    assert len(module.trainable_variables) == len(theirs.trainable_variables) + 2
    assert all(np.any(a.numpy() != b.numpy()) for a, b in zip(module.variables, theirs.variables))
    layer = hub.KerasLayer(path, trainable=True)
    model = tf.keras.Sequential([tf.keras.Input([20, 20, 3]), layer])
    model.compile(
        tf.keras.optimizers.SGD(0.01),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = model.fit(x, logits.argmin(1), batch_size=6, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and len(model.trainable_variables) == len(
        module.trainable_variables
    )


def test_a_stopped_run_resumes_to_identical_weights_and_a_finished_one_says_so(
    run, photos, tmp_path, tfssl_command
):
    whole, _ = run
    workdir = tmp_path / "stopped"
    command = [f"--flagfile={whole}/flags.flags", f"--workdir={workdir}", "--log_steps=1"]
    status, said = kill_when(command, "step 10/", signal.SIGTERM, name="finetune")
    assert status == 75 and "tfssl-finetune: SIGTERM: stopped after step" in said, said
    moved = shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)
    done = tfssl_command("finetune", *command, f"--dataset=folder:{moved}")
    assert done.returncode == 0 and "resuming at step 1" in done.stdout, done.stderr
    assert_identical(weights(workdir, 16, 20), weights(whole, 16, 20))
    one, two = (
        tf.saved_model.load(str(folder / "classifier" / "16")) for folder in (workdir, whole)
    )
    for mine, other in zip(one.variables, two.variables):
        np.testing.assert_array_equal(mine, other)
    # As if killed between the last checkpoint and the end: the rest is done, and not done twice.
    content = (workdir / "results.json").read_text()
    (workdir / "results.json").write_text(content[: len(content) // 2])
    again = tfssl_command("finetune", *command)
    assert again.returncode == 0 and "finished" in again.stdout and "written:" in again.stdout, (
        again
    )
    assert (
        "results.json is damaged" in again.stdout
        and json.loads((workdir / "results.json").read_text())["accuracy"] > 0.8
    )
    other = tfssl_command("finetune", *command, "--head_rate=3")
    assert other.returncode == 1 and "--head_rate is 1, not 3" in other.stderr
    (moved / "warm" / "001.jpg").rename(moved / "warm" / "one.jpg")
    other = tfssl_command("finetune", *command, f"--dataset=folder:{moved}")
    assert (
        other.returncode == 1
        and "other files: some were renamed, moved or replaced" in other.stderr
    ), other.stderr


def test_two_devices_and_the_head_alone(encoder, photos, tmp_path, tfssl_command):
    """The encoder infers, so that the devices' gradients add up to those of one; half of the rate
    is the head's factor."""
    flags = [
        f"--module={encoder}",
        f"--dataset=folder:{photos}",
        "--freeze",
        "--head_rate=2",
        "--strategy=mirrored",
        *FLAGS,
    ]
    flags += ["--schedule=constant", "--learning_rate=0.15", f"--workdir={tmp_path / 'run'}"]
    done = tfssl_command("finetune", *flags, first=two_devices)
    assert done.returncode == 0, done.stderr
    module = modules.load(str(tmp_path / "run" / "classifier" / "16"))
    alone = Classifier(Hub(modules.load(encoder), 16, trainable=False), 2, image_size=16, resize=18)
    alone.compile(tf.keras.optimizers.SGD(0.3, momentum=0.9, nesterov=True))
    source = tfssl.open_source(f"folder:{photos}", "train[:75%]")
    alone.fit(alone.dataset(source, 8), steps_per_epoch=16, verbose=0)
    assert np.abs(alone.head.kernel).max() > 0.01
    np.testing.assert_allclose(module.variables[-2], alone.head.kernel, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(module.variables[-1], alone.head.bias, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(module.variables, modules.load(encoder).variables):
        np.testing.assert_array_equal(mine, theirs)


def test_a_student_learns_from_a_teacher_without_labels(run, photos, tmp_path, tfssl_command):
    """A wider one, on two devices; unlabeled images; the teacher's classes become its own."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.jpg"):
        shutil.copy(path, flat)
    flags = [
        f"--module={save_encoder(tmp_path / 'student', 9)}", f"--teacher={run[0]}/classifier/16", f"--dataset=folder:{flat}",
        f"--workdir={tmp_path / 'run'}", "--test_split=", "--train_steps=24", "--batch_size=16", "--log_steps=8", "--learning_rate=0.1",
        "--lr_scaling=0", "--strategy=mirrored", "--distill_temperature=0.2", "--distill_scale_by_t2",
    ]  # fmt: skip
    done = tfssl_command("finetune", *flags, first=two_devices)
    assert done.returncode == 0, done.stderr
    assert "0 labels, 48 images" in done.stdout and "accuracy" not in done.stdout
    lines = logged(tmp_path / "run")
    assert lines[-1]["agreement"] > 0.8 and lines[-1]["loss"] < lines[0]["loss"]
    classifier = tmp_path / "run" / "classifier" / "24"
    facts = json.loads((classifier / "assets" / "tfssl.json").read_text())
    assert facts["class_names"] == ["cold", "warm"]
    assert accuracies(classifier, tfssl.open_source(f"folder:{photos}")) > 0.8
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.fixture(scope="module")
def three(encoder, tmp_path_factory):
    """A classifier of three classes."""
    model = Classifier(Hub(modules.load(encoder), 16), 3, image_size=16)
    return save_classifier(
        model, tmp_path_factory.mktemp("modules") / "three", class_names=["cold", "mild", "warm"]
    )


BAD = {
    "no module": (["--module="], "--module is missing"),
    "missing module": (["--module=/no/such/module"], "/no/such/module"),
    "unknown endpoint": (
        ["--endpoint=head2"],
        "--endpoint=features, pre_logits, head1",
    ),
    "rates of what does not learn": (
        ["--freeze", "--layer_decay=0.7"],
        "--layer_decay=0.7 and --freeze contradict each other",
    ),
    "too few labels": (["--train_labels=1"], "fewer than the 2 classes"),
    "list without matches": (["--train_list={list}"], "none of its 1 names"),
    "two ways to say how many": (["--train_list={list}", "--train_labels=1%"], "contradict"),
    "unlabelled": (["--dataset=folder:{flat}"], "has no labels, and fine-tuning needs them"),
    "teacher of other classes": (["--teacher={three}"], "tells 3 classes apart"),
    "teacher without classes": (["--teacher={encoder}"], "is no classifier"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line(case, encoder, three, photos, tmp_path, tfssl_command):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(photos.rglob("*.jpg"))[:8]:
        shutil.copy(path, flat)
    (tmp_path / "list.txt").write_text("n01440764_10026.JPEG\n")
    places = {"list": tmp_path / "list.txt", "flat": flat, "three": three, "encoder": encoder}
    flags, expected = BAD[case]
    flags = [flag.format(**places) for flag in flags]
    if case == "unlabelled":
        flags.append("--test_split=")
    workdir = tmp_path / "run"
    done = tfssl_command(
        "finetune",
        f"--module={encoder}",
        f"--dataset=folder:{photos}",
        f"--workdir={workdir}",
        *FLAGS,
        *flags,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tfssl-finetune: ") and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )
    assert expected in done.stderr
    assert not os.path.exists(workdir / "checkpoints")


def test_an_encoder_of_other_pixels(modules_dir, pictures, tmp_path, tfssl_command):
    """HANDLE#-1..1, and the classifier takes pixels from 0 to 1."""
    handle = f"{modules_dir / 'callable'}#-1..1"
    done = tfssl_command(
        "finetune", f"--module={handle}", "--freeze", f"--dataset=folder:{pictures[0]}",
        f"--workdir={tmp_path}/run", "--test_split=", "--batch_size=4", "--train_steps=2",
        "--train_split=train", "--image_size=16", "--warmup_epochs=0", "--lr_scaling=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images = tf.random.stateless_uniform([2, 16, 16, 3], [0, 1])
    classifier = modules.load(tmp_path / "run" / "classifier" / "2")
    (expected,) = modules.load(modules_dir / "callable").endpoints(2 * images - 1).values()
    found = classifier.endpoints(images)
    (kernel, bias) = classifier.variables[-2:]
    np.testing.assert_allclose(found["logits"], expected @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_recipes():
    """Each names only flags that there are, without contradiction; rates of square-root scaling are
    written out."""
    program = """
        import glob, os, sys
        from absl import flags
        from tfssl import optim
        from tfssl.config.configs import FinetuneConfig
        from tfssl.config.plan import plan
        from tfssl.runtime import cli
        from tfssl.training import checks

        for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.flags"))):
            values = flags.FlagValues()
            FinetuneConfig.define(optim.optimizer_flags(), values)
            values(["finetune", *cli.expand_flagfiles([f"--flagfile={path}"]), "--module=m", "--workdir=w"])
            config = checks.finetuning(FinetuneConfig.from_flags(values, optim.optimizer_flags()))
            v, rate = config.flags(), plan(config.optimization, 1000).peak
            print(os.path.basename(path)[:-6], v["train_labels"], v["optimizer"], f"{rate:g}", v["head_rate"], v["epochs"], v["endpoint"])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), RECIPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "distill all lars 6.4 1.0 400.0 ",
        "mae_vit_b16 all adamw 0.002 1.0 100.0 block12",
        "mae_vit_l16 all adamw 0.004 1.0 50.0 block24",
        "self_distill all lars 6.4 1.0 400.0 ",
        "simclr_10pct 10% nesterov 0.8 1.0 30.0 ",
        "simclr_1pct 1% nesterov 0.8 1.0 60.0 ",
        "simclr_v2_100pct all lars 0.16 1.0 30.0 pre_logits",
        "simclr_v2_10pct 10% lars 0.16 1.0 30.0 head1",
        "simclr_v2_1pct 1% lars 0.16 1.0 60.0 head1",
        "swav_10pct 10% sgd 0.01 20.0 20.0 ",
        "swav_1pct 1% sgd 0.02 250.0 20.0 ",
    ], done.stderr


def test_the_whole_recipe(photos, tmp_path, tfssl_command):
    """Of a vision transformer: its classifier is measured by the module's own graph, and the run
    resumes."""
    backbone = backbones.build("vit_tiny", 1 / 16, depth=2, patch=4)
    task = pretext.build("rotation", backbone, image_size=16)
    module = export.save(task, tmp_path / "vit")
    recipe = [
        f"--flagfile={RECIPES}/mae_vit_b16.flags", "--endpoint=block2", "--warmup_epochs=1", "--random_erasing=1",
    ]  # fmt: skip
    flags = [
        *recipe,
        f"--module={module}",
        f"--dataset=folder:{photos}",
        *FLAGS,
        "--learning_rate=0.01",
    ]
    workdir = tmp_path / "run"
    done = tfssl_command("finetune", *flags, f"--workdir={workdir}", "--train_steps=8")
    assert done.returncode == 0, done.stderr
    extended = [f"--workdir={workdir}", "--train_steps=16", "--extend_schedule"]
    done = tfssl_command("finetune", *flags, *extended)
    assert done.returncode == 0 and "resuming at step 8" in done.stdout, done.stderr
    record = json.loads((workdir / "results.json").read_text())
    test = tfssl.open_source(f"folder:{photos}", "train[75%:]")
    assert record["accuracy"] == pytest.approx(accuracies(workdir / "classifier" / "16", test))
    assert record["flags"]["drop_path"] == 0.1 and record["flags"]["mixup"] == 0.8
    facts = json.loads((workdir / "classifier" / "16" / "assets" / "tfssl.json").read_text())
    assert "drop_path" not in facts["network"] and facts["network"]["name"] == "vit_tiny"


def test_dry_run(encoder, photos, tmp_path, tfssl_command):
    flags = (
        f"--module={encoder}",
        f"--dataset=folder:{photos}",
        "--dry_run",
        "--train_labels=50%",
        *FLAGS,
    )
    done = tfssl_command("finetune", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("18 images", "18 labels", "trainable parameters", "estimated time"):
        assert part in done.stdout, (part, done.stdout)
    assert (tmp_path / "dry_run.png").exists() and not (tmp_path / "checkpoints").exists()


def test_a_frozen_encoder_without_variables_is_published(tfssl_command, photos, tmp_path):
    """A frozen graph has no variables, which --freeze permits from the start to the end."""
    graph = tf.train.Checkpoint()
    pooled = lambda x: tf.reshape(tf.nn.avg_pool2d(x, 4, 4, "VALID"), [-1, 48])  # noqa: E731
    graph.__call__ = tf.function(pooled, input_signature=[tf.TensorSpec([None, 16, 16, 3])])
    tf.saved_model.save(graph, str(tmp_path / "m"), signatures={})
    flags = (
        f"--module={tmp_path}/m",
        "--endpoint=output",
        f"--dataset=folder:{photos}",
        *FLAGS,
        "--train_steps=8",
    )
    done = tfssl_command("finetune", *flags, f"--workdir={tmp_path}/run", "--freeze")
    assert done.returncode == 0, done.stderr
    classifier = tf.saved_model.load(str(tmp_path / "run" / "classifier" / "8"))
    assert (
        classifier(tf.zeros([2, 16, 16, 3])).shape[0] == 2
        and len(classifier.trainable_variables) == 2
    )
    refused = tfssl_command("finetune", *flags, f"--workdir={tmp_path}/other")
    assert refused.returncode == 1 and "no variable that training could change" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_one_class_is_refused(tfssl_command, encoder, tmp_path):
    flags = (
        f"--module={encoder}",
        "--dataset=glyphs",
        *FLAGS,
        "--train_split=train[:1]",
        "--test_split=test[:9]",
    )
    done = tfssl_command("finetune", *flags, f"--workdir={tmp_path}/run")
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert re.search(
        r"glyphs train\[:1\]: all 1 images to learn from are of one class, A: nothing to tell",
        done.stderr,
    )


def test_half_a_classifier_in_an_object_store_is_published_anew(tmp_path, monkeypatch):
    """There a folder is no sign of a whole module (a rename is a copy); its last file is,
    saved_model.pb."""
    workdir, published = f"file://{tmp_path}", []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-3.index").touch()
    (tmp_path / "classifier" / "3" / "variables").mkdir(parents=True)
    monkeypatch.setattr(classifier, "publish", lambda *arguments: published.append(arguments[-1]))
    run = (
        FinetuneConfig().replace(workdir=workdir, test_split=""),
        types.SimpleNamespace(test=None),
        0.0,
    )
    with pytest.raises(OSError, match="lost"):
        classifier.finish(
            *run, lambda: (_ for _ in ()).throw(OSError("lost"))
        )  # somebody else has the workdir's lock
    assert not published
    for _ in range(2):
        classifier.finish(*run)
        (tmp_path / "classifier" / "3" / "saved_model.pb").touch()
    assert published == [f"{workdir}/classifier/3"]


def test_a_damaged_checkpoint_is_not_published(tmp_path, monkeypatch):
    model = types.SimpleNamespace(backbone=types.SimpleNamespace(), prepare=lambda: None)
    monkeypatch.setattr(classifier, "build_model", lambda *_, **__: model)
    monkeypatch.setattr(tf.train, "Checkpoint", lambda **_: None)
    monkeypatch.setattr(checkpoints, "load", lambda path, checkpoint: "a checksum is wrong")
    with pytest.raises(UserError, match="ckpt-3 is damaged .a checksum is wrong."):
        classifier.publish(FinetuneConfig(), None, "ckpt-3", 3, str(tmp_path / "3"))
    assert not (tmp_path / "3").exists()


def test_a_finished_run_measures_test_images_again_that_were_written_anew(
    photos, tmp_path, monkeypatch
):
    """Before, the same command said the accuracy of the images that had been there."""
    folder, calls = shutil.copytree(photos, tmp_path / "photos"), []
    for name in ("checkpoints/ckpt-4.index", "classifier/4/saved_model.pb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def measure(config, test, where):
        calls.append(test.num_examples)
        return {"accuracy": 0.5, "top5_accuracy": 1.0, "endpoint": "pre_logits", "modules": {}}

    monkeypatch.setattr(classifier, "measure", measure)
    config = FinetuneConfig().replace(workdir=str(tmp_path), test_split="train[50%:]", module="m")

    def finish():
        train, test = (
            tfssl.open_source(f"folder:{folder}", split) for split in ("train[:50%]", "train[50%:]")
        )
        classifier.finish(config, LabeledData(train, None, test, labels=24), 0.0)
        return json.loads((tmp_path / "results.json").read_text())["data"]

    first = finish()
    assert first["test"]["num_examples"] == 24 and finish() == first and calls == [24]
    path = tfssl.open_source(f"folder:{folder}", "train[50%:]").name(3)
    content = bytearray(open(path, "rb").read())
    content[-5] ^= 1
    with open(path, "wb") as f:
        f.write(content)
    second = finish()
    assert (
        calls == [24, 24]
        and second["train"] == first["train"]
        and second["test"]["digest"] != first["test"]["digest"]
    )
    record = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(
        json.dumps({k: v for k, v in record.items() if k != "data"})
    )
    assert classifier.measured(str(tmp_path / "results.json"))[2] is None

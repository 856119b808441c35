"""A hundred command lines of users who err: each ends in one line that names what is wrong, with
exit status 1 and without a traceback."""

import json
import os
import re
import shutil
import socket

import pytest
from encoders import save_encoder
from runs import TINY, command

NETWORK = ("--backbone=resnet18_v2", "--width_multiplier=0.0625", "--stem=small", "--image_size=16")
TF_CONFIG = '{"cluster": {"worker": ["localhost:%d"]}, "task": {"type": "worker", "index": 0}}'
WORKERS = "--strategy=multi_worker"

# What is given beside the flags of a case; the last of a flag counts.
GIVEN = {
    "train": ("--dataset=folder:{photos}", "--workdir={here}/run", *TINY),
    "export": ("--workdir={run}", "--export_dir={here}/module"),
    "evaluate": (
        "--module={encoder}", "--dataset=folder:{photos}", "--train_split=train[:70%]", "--test_split=train[70%:]",
        "--endpoints=pre_logits", "--protocol=knn",
    ),
    "finetune": (
        "--module={encoder}", "--dataset=folder:{photos}", "--train_split=train[:70%]", "--test_split=train[70%:]",
        "--workdir={here}/run", "--batch_size=8", "--train_steps=2",
    ),
    "predict": ("--module={classifier}", "--images={photos}", "--output={here}/p.csv"),
}  # fmt: skip

CASES = [  # binary, flags, what the line names, a change to the folder or the environment before
    # Places
    ("train", "--workdir=/proc/run", "--workdir=/proc/run cannot be written"),
    ("train", "--workdir=/etc/hostname", "--workdir=/etc/hostname"),
    ("train", "--workdir={photos}/cold/000.jpg/run", "000.jpg/run"),
    ("train", "--workdir=", "--workdir is missing"),
    ("train", "--data_dir=/proc/x --dataset=folder:{here}/a.zip", "a.zip", "no_archive"),
    ("export", "--export_dir=/proc/x", "--export_dir=/proc cannot be written"),
    ("export", "--workdir=/no/such", "/no/such"),
    ("export", "--workdir= --random_init --export_dir=", "--workdir is missing"),
    ("export", "--workdir={here}", "is not the workdir of a run"),
    ("evaluate", "--workdir=/proc/x", "/proc/x"),
    ("evaluate", "--workdir=/proc/x --nocache", "/proc/x"),
    (
        "evaluate",
        "--dataset=glyphs --train_split=train[:20] --test_split=test[:9] --protocol=segmentation --train_labels=10%",
        "is of protocols on features, and segmentation reads whole images",
    ),
    ("evaluate", "--workdir={photos}/cold/000.jpg", "000.jpg"),
    ("finetune", "--workdir=/proc/x", "/proc/x"),
    ("finetune", "--workdir=", "--workdir is missing"),
    ("predict", "--output=/proc/x/p.csv", "--output"),
    ("predict", "--output={here}", "--output"),
    ("predict", "--output={photos}/cold/000.jpg/p.csv", "--output"),
    ("predict", "--output={photos}/cold/000.jpg", "give it a name in .csv or .json"),
    # Numbers
    ("train", "--image_size=0", "image_size"),
    ("train", "--image_size=-3", "--image_size=-3"),
    ("train", "--width_multiplier=0", "--width_multiplier=0"),
    ("train", "--width_multiplier=nan", "--width_multiplier=nan"),
    ("train", "--learning_rate=nan", "--learning_rate=nan"),
    ("train", "--learning_rate=-0.1", "--learning_rate=-0.1"),
    ("train", "--epochs=nan --train_steps=0", "--epochs=nan"),
    ("train", "--epochs=inf --train_steps=0", "--epochs=inf"),
    ("train", "--epochs=0 --train_steps=0", "--epochs=0"),
    ("train", "--bn_momentum=2", "--bn_momentum=2"),
    ("train", "--bn_epsilon=-1", "--bn_epsilon=-1"),
    ("train", "--momentum=-1", "--momentum=-1"),
    ("train", "--min_area=2", "--min_area=2"),
    ("train", "--weight_decay=-1", "--weight_decay=-1"),
    ("train", "--warmup_epochs=nan", "--warmup_epochs=nan"),
    ("train", "--seed=9223372036854775808", "--seed=9223372036854775808"),
    ("train", "--seed=one", "--seed=one"),
    ("train", "--nodeterministic=true", "--nodeterministic=true does not take an argument"),
    ("train", "--neck_tower=4", "--neck_tower=4 is a neck's, and there is none"),
    ("train", "--jit_compile=maybe", "flag --jit_compile=maybe: give true or false"),
    ("train", "--decay_epochs=15,soon", "--decay_epochs=15,soon"),
    ("train", "--task=simclr --temperature=0", "--temperature=0"),
    ("train", "--batch_size=9 --accumulate_steps=2", "--batch_size=9"),
    ("train", "--loss_batch_size=12", "--loss_batch_size=12"),
    ("train", "--train_subset=999", "999"),
    ("train", "--validation_steps=10", "--validation_steps=10"),
    ("train", "--task=jigsaw", "patch_size=64"),
    ("train", "--task=simclr --max_gap=2", "--task=simclr with max_gap=2 needs 'frames'"),
    ("train", "--task=order_verification", "needs 'frames' of each image"),
    ("train", "--task=dino --small_crops=2", "small_size=96 is above image_size=16"),
    ("train", "--task=simclr --batch_size=1", "batch_size=1: task 'simclr' compares"),
    ("train", "--task=nnclr --queue_size=3 --batch_size=8", "queue_size=3 does not hold the 8"),
    ("train", "--task=swav --small_crops=0 --prototypes=1", "there is nothing to learn"),
    ("train", "--task=distill", "give --teacher=MODULE"),
    ("train", "--task=mae --neck=fpn", "without --neck"),
    ("train", "--task=rotation --max_gap=2", "--max_gap"),
    ("train", "--dataset=frames:{photos} --train_split=train[:7]", "beyond its 2 sequences"),
    ("train", "--task=byol --max_gap=-1", "--max_gap=-1"),
    ("train", "--task=exemplar --batch_size=1", "batch_size"),
    ("export", "--step=-1", "--step=-1"),
    ("export", "--step=999", "--step=999"),
    ("evaluate", "--image_size=-1", "--image_size=-1"),
    ("evaluate", "--knn_k=0", "--knn_k=0"),
    ("evaluate", "--knn_temperature=inf", "--knn_temperature=inf"),
    ("evaluate", "--val_fraction=1", "--val_fraction=1"),
    ("evaluate", "--protocol=logistic --l2=much", "l2"),
    ("evaluate", "--protocol=svm --svm_costs=1,x", "--svm_costs='1,x'"),
    ("evaluate", "--protocol=mlp --mlp_decay_epochs=a", "--mlp_decay_epochs=a"),
    ("evaluate", "--protocol=low_shot --low_shot_k=0", "--low_shot_k=0"),
    ("evaluate", "--protocol=few_shot --few_shot_ridges=x", "--few_shot_ridges=x"),
    ("evaluate", "--protocol=segmentation --dense_size=5", "--dense_size=5"),
    ("evaluate", "--train_labels=many", "many"),
    ("evaluate", "--train_labels=0", "train_labels=0"),
    ("finetune", "--epochs=nan --train_steps=0", "--epochs=nan"),
    ("finetune", "--min_area=2", "--min_area=2"),
    ("finetune", "--distill_temperature=0", "--distill_temperature=0"),
    ("finetune", "--train_labels=200%", "200%"),
    ("predict", "--top=99", "--top=99"),
    ("predict", "--batch_size=0", "--batch_size=0"),
    # Names
    ("train", "--task=rotatoin", "rotatoin"),
    ("train", "--backbone=resnet51_v2", "resnet51_v2"),
    ("train", "--stem=large", "large"),
    ("train", "--optimizer=sdg", "unknown optimizer 'sdg'"),
    ("train", "--schedule=linear", "--schedule=linear"),
    ("train", "--beta_2=0.9", "--beta_2 is not a setting of optimizer 'sgd'"),
    ("train", "--optimizer=adamw --clipnorm=1 --global_clipnorm=2", "--clipnorm=1"),
    ("train", "--strategy=all", "--strategy=all"),
    ("train", "--precision=half", "--precision=half"),
    ("train", "--num_classes=3", "--num_classes"),
    ("train", "--batchsize=3", "batch_size"),
    ("train", "--knn_probe=8", "--val_split"),
    ("train", "photos", "photos"),
    ("train", "--deterministic --data_service=grpc://localhost:1", "--deterministic"),
    ("train", "--sync_batch_norm --bn_group_size=2", "--bn_group_size"),
    ("train", "--strategy=tpu --tpu=local", "TPU"),
    ("train", "--strategy=tpu --precision=mixed_float16", "a TPU computes in mixed_bfloat16"),
    ("train", "--nodeterministic --data_service=localhost:1", "grpc://HOST:PORT"),
    ("train", "--nodeterministic --data_service=grpc://localhost:1 --data_service_timeout=1", "nobody listens there"),
    ("train", "--task=colorization --bins=/no/such.npz", "/no/such.npz"),
    ("train", "--task=jigsaw --image_size=96 --scaled_size=96 --patch_size=16 --permutations_file=/no/such", "/no/such"),
    ("evaluate", "--protocol=kmeans", "--protocol=kmeans"),
    ("evaluate", "--endpoints=logits", "logits"),
    ("finetune", "--endpoint=logits", "logits"),
    ("finetune", "--layer_decay=0.7 --freeze", "--layer_decay=0.7"),
    ("finetune", "--drop_path=0.1 --freeze", "--drop_path=0.1"),
    ("finetune", "--drop_path=0.1", "--drop_path=0.1"),
    ("finetune", "--label_smoothing=1", "--label_smoothing=1"),
    ("finetune", "--mixup=-1", "--mixup=-1"),
    ("finetune", "--mixup=0.8 --batch_size=7", "--batch_size"),
    ("finetune", "--random_erasing=25", "--random_erasing=25"),
    ("finetune", "--train_labels=1% --train_list=x", "--train_list"),
    ("finetune", "--train_list=/no/such", "/no/such"),
    # Images
    ("train", "--dataset=photos", "photos"),
    ("train", "--dataset=folder:/no/such", "/no/such"),
    ("train", "--dataset=folder:/etc/hostname", "/etc/hostname"),
    ("train", "--dataset=folder:{here}/empty", "no images"),
    ("train", "--dataset=folder:{here}/latin", "UTF-8"),
    ("train", "--dataset=tfrecord:/no/such-*", "/no/such-"),
    ("train", "--dataset=tfrecord:{here}/loop.flags", "loop.flags"),
    ("train", "--dataset=tfds:no_such_set", "no_such_set"),
    ("train", "--train_split=trian", "trian"),
    ("train", "--train_split=train[:", "train[:"),
    ("train", "--train_split=train[:0%]", "train[:0%]"),
    ("train", "--val_split=train[90%:]", "--val_split"),
    ("train", "--task=supervised --dataset=folder:{photos}/cold", "labels"),
    ("evaluate", "--dataset=folder:{photos}/cold", "labels"),
    ("evaluate", "--test_split=train", "--test_split"),
    ("finetune", "--val_split=train[80%:]", "--val_split"),
    ("predict", "--images=/no/such", "/no/such"),
    ("predict", "--images={here}/empty", "no images"),
    ("predict", "--images={here}/latin", "UTF-8"),
    ("predict", "--images=/etc/hostname", "/etc/hostname"),
    ("predict", "--dataset=glyphs", "--dataset"),
    # Modules
    ("train", "--init_module=/no/such", "/no/such"),
    ("train", "--init_module={encoder}", "--init_module"),
    ("evaluate", "--module=", "--module"),
    ("evaluate", "--module=/no/such", "/no/such"),
    ("evaluate", "--module=/etc/hostname", "/etc/hostname"),
    ("evaluate", "--module=http://localhost:1/m.tar.gz", "http:// is not encrypted"),
    ("evaluate", "--module=https://localhost:1/m.tar.gz", "cannot be downloaded"),
    ("evaluate", "--module={here}/odd", "tfssl.json is damaged"),
    ("finetune", "--module=/no/such", "/no/such"),
    ("finetune", "--teacher={encoder}", "is no classifier"),
    ("predict", "--module={encoder}", "is no classifier"),
    ("predict", "--module=", "--module is missing"),
    # Flagfiles and the environment
    ("train", "--flagfile=/no/such.flags", "/no/such.flags"),
    ("train", "--flagfile={here}", "{here}"),
    ("train", "--flagfile={here}/utf16.flags", "utf16.flags is not text in UTF-8"),
    ("train", "--flagfile={here}/loop.flags", "includes itself"),
    ("train", "--dataset=folder:caf\udce9", "UTF-8"),
    ("train", WORKERS, "TF_CONFIG", {}),
    ("train", WORKERS, "TF_CONFIG", {"TF_CONFIG": "{cluster: worker}"}),
    ("train", WORKERS, "TF_CONFIG", {"TF_CONFIG": '{"cluster": {"worker": ["localhost:1"]}}'}),
    ("train", WORKERS, "TF_CONFIG", {"TF_CONFIG": TF_CONFIG.replace("0}", "3}") % 1}),
    ("train", WORKERS, "Address already in use", {"TF_CONFIG": TF_CONFIG}),
    # What a run has left, changed by hand
    ("train", "--workdir={here}/copy --batch_size=16", "--batch_size is 8, not 16"),
    ("train", "--workdir={here}/copy", "no flags.flags", "without flags.flags"),
    ("train", "--workdir={here}/copy", "flags.flags, the record of the run, cannot be read", "flags.flags no text"),
    ("export", "--workdir={here}/copy", "cannot be read", "flags.flags no text"),
    ("export", "--workdir={here}/copy", "no_such_flag", "flags.flags of another program"),
    ("export", "--workdir={here}/copy", "no checkpoint yet", "without checkpoints"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(photos, tmp_path_factory):
    """Folders by name: images, a run, an encoder, a classifier."""
    there = tmp_path_factory.mktemp("places")
    encoder = save_encoder(str(there / "encoder"))
    done = command(
        "train",
        f"--dataset=folder:{photos}",
        f"--workdir={there / 'run'}",
        *TINY,
        "--train_steps=4",
        "--checkpoint_steps=4",
    )
    assert done.returncode == 0, done.stderr
    given = [flag.format(encoder=encoder, photos=photos, here=there) for flag in GIVEN["finetune"]]
    done = command(
        "finetune", *given, f"--workdir={there / 'fine'}", "--checkpoint_steps=2", "--test_split="
    )
    assert done.returncode == 0, done.stderr
    return {
        "photos": photos,
        "run": there / "run",
        "encoder": encoder,
        "classifier": there / "fine" / "classifier" / "2",
    }


def prepare(change, here, places):
    """What the cases find in their folder."""
    (here / "empty").mkdir()
    (here / "latin").mkdir()
    image = places["photos"] / "cold" / "000.jpg"
    shutil.copy(image, here / "latin" / "a.jpg")
    shutil.copy(image, os.fsencode(here / "latin") + b"/caf\xe9.jpg")
    (here / "utf16.flags").write_text("--seed=1\n", encoding="utf-16")
    (here / "loop.flags").write_text("--flagfile=loop.flags\n")
    shutil.copytree(places["encoder"], here / "odd")
    facts = here / "odd" / "assets" / "tfssl.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"crop": 0}))
    shutil.copytree(places["run"], here / "copy")
    record = here / "copy" / "flags.flags"
    if change == "without flags.flags":
        record.unlink()
    elif change == "flags.flags no text":
        record.write_bytes(b"--dataset=\xff\xfe\n")
    elif change == "flags.flags of another program":
        record.write_text("--no_such_flag=1\n")
    elif change == "without checkpoints":
        shutil.rmtree(here / "copy" / "checkpoints")
    elif change == "no_archive":
        (here / "a.zip").write_text("no archive")


def test_there_are_a_hundred():
    assert len(CASES) >= 100 and len({case[:2] for case in CASES}) > 95
    assert {case[0] for case in CASES} == set(GIVEN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(f"{case[0]} {case[1]}")[1:60])
def test_a_mistake_ends_in_one_line(case, places, tmp_path, monkeypatch):
    binary, given, named, change = (*case, None)[:4]
    prepare(change, tmp_path, places)
    words = {**places, "here": tmp_path}
    with socket.create_server(("localhost", 0)) as busy:
        for name, value in change.items() if isinstance(change, dict) else ():
            monkeypatch.setenv(name, value % busy.getsockname()[1] if "%d" in value else value)
        arguments = [flag.format(**words) for flag in (*GIVEN[binary], *given.split())]
        done = command(binary, *arguments, cwd=tmp_path, timeout=60)
    # What is begun may be told before: "unpacking ...", "counting ...", or that a module is somebody
    # else's.
    said = [
        line
        for line in done.stderr.splitlines()
        if not re.match(r"W\d{4} .*(unpacking|counting)|module ", line)
    ]
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert (
        len(said) == 1 and "Traceback" not in done.stderr and "the traceback is in" not in said[0]
    ), done.stderr
    assert named.format(**words) in said[0]
    claimed = tmp_path / "run" / "flags.flags"
    assert not claimed.exists(), "the workdir would be refused once the mistake is mended"


def test_where_each_image_is_a_class_validation_is_on_those_images(photos, tmp_path):
    flags = ("--task=instance_discrimination", "--negatives=8", "--val_split=train", "--dry_run")
    done = command("train", f"--dataset=folder:{photos}", *TINY, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_log_that_a_disk_has_damaged_does_not_end_a_run(places, tmp_path):
    """Nor does a flag without its value in the record, which is how one would write it by hand."""
    run = tmp_path / "run"
    shutil.copytree(places["run"], run)
    before = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(before + b"5\n\xff\xfe\x00garbage")
    record = run / "flags.flags"
    record.write_text(record.read_text().replace("--deterministic=true", "--deterministic"))
    flags = [flag for flag in GIVEN["train"] if "{here}" not in flag]
    given = [flag.format(photos=places["photos"]) for flag in flags]
    done = command("train", *given, f"--workdir={run}", "--train_steps=8", "--checkpoint_steps=4")
    assert done.returncode == 0 and "resuming at step 4 of 8" in done.stdout, done.stderr
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8]

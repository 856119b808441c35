"""Whose a workdir is; whole runs are in tests/test_train.py and tests/test_finetune.py."""

import types

import pytest

from tfssl import backbones, pretext
from tfssl.config import flagfile
from tfssl.config.configs import FinetuneConfig, TrainConfig
from tfssl.errors import UserError
from tfssl.training import workdir
from tfssl.training.registered import registered


def config(folder, task="rotation", backbone="resnet50_v2", given=None, **settings):
    own = pretext.task_flags().arguments(task, {})
    flags = backbones.backbone_flags()
    network = flags.arguments(backbone, given or {})
    names = {name: s.flag for name, s in flags.settings[backbone].items() if s.flag != name}
    made = TrainConfig(
        task=task, task_settings=own, backbone_settings=network, backbone_flags=names
    )
    return made.replace(workdir=str(folder), backbone=backbone, **settings)


def claim(a_config, class_names=None):
    workdir.claim_workdir(a_config, types.SimpleNamespace(class_names=class_names))


@pytest.mark.parametrize(
    "make", [config, lambda folder, **given: FinetuneConfig().replace(workdir=str(folder), **given)]
)
def test_a_run_goes_on_as_it_was(tmp_path, make):
    workdir.check_workdir(make(tmp_path))  # nobody's yet
    claim(make(tmp_path, train_steps=9), ["a", "b"])
    assert (tmp_path / "classes.txt").read_text() == "a\nb\n"
    workdir.check_workdir(
        make(tmp_path, train_steps=9, log_steps=3, strategy="mirrored", data_dir="/elsewhere")
    )
    with pytest.raises(
        UserError,
        match="holds another run: its --learning_rate is 0.[01]5?, not 0.3; use another --workdir, "
        "or remove this one, which has no checkpoint yet",
    ):
        workdir.check_workdir(make(tmp_path, train_steps=9, learning_rate=0.3))
    # Its data are not on record, so that another place may be other data.
    with pytest.raises(UserError, match="--dataset is glyphs, not folder:x.*--accept_changed_data"):
        workdir.check_workdir(make(tmp_path, train_steps=9, dataset="folder:x"))
    workdir.check_workdir(
        make(tmp_path, train_steps=9, dataset="folder:x", accept_changed_data=True)
    )


def test_a_flag_that_is_younger_than_the_run_counts_as_its_default(tmp_path):
    path = str(tmp_path / "flags.flags")
    stored = {
        n: v
        for n, v in config(tmp_path, task="simclr").flags().items()
        if n not in ("initializer", "temperature")
    }
    flagfile.write(path, stored)
    workdir.check_workdir(config(tmp_path, task="simclr"))
    with pytest.raises(UserError, match="--initializer is glorot_uniform, not he_fan_out"):
        workdir.check_workdir(config(tmp_path, task="simclr", given={"initializer": "he_fan_out"}))


def test_settings_of_other_backbones_in_older_records_are_their_defaults(tmp_path):
    """Runs of 0.1 recorded all settings of all backbones, whatever theirs was."""
    stored = {
        **config(tmp_path, backbone="vgg11").flags(),
        "skip_connections": True,
        "sk_ratio": 0.0,
        "last_relu": True,
    }
    flagfile.write(str(tmp_path / "flags.flags"), stored)
    workdir.check_workdir(config(tmp_path, backbone="vgg11"))
    read = TrainConfig.from_record(flagfile.read(str(tmp_path / "flags.flags")), *registered({}))
    assert "sk_ratio" not in read.flags() and read.network.backbone == "vgg11"
    with pytest.raises(UserError, match="its --stem is imagenet, not small"):
        workdir.check_workdir(config(tmp_path, backbone="vgg11", given={"stem": "small"}))


def test_a_cosine_ends_with_its_run(tmp_path):
    claim(config(tmp_path, train_steps=9, schedule="cosine"))
    longer = config(tmp_path, train_steps=10, schedule="cosine")
    with pytest.raises(UserError, match="--train_steps differs"):
        workdir.check_workdir(longer)
    workdir.check_workdir(longer.replace(extend_schedule=True))


def test_checkpoints_without_a_record_are_somebodys(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no flags.flags that says whose"):
        workdir.check_workdir(config(tmp_path))


def test_classes_are_those_that_the_run_began_with(tmp_path):
    ours = config(tmp_path, task="supervised")
    begun = TrainConfig(
        task="supervised", task_settings={**ours.task_settings, "num_classes": 5}, run=ours.run
    )
    claim(begun)
    workdir.check_workdir(ours)  # 0: the data set's, which is not open yet
    workdir.check_data(begun)
    other = TrainConfig(
        task="supervised", task_settings={**ours.task_settings, "num_classes": 6}, run=ours.run
    )
    with pytest.raises(UserError, match="--num_classes=5, and --dataset=glyphs .train. has 6"):
        workdir.check_data(other)

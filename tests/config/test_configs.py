"""A run's settings as one value: from flags, from a record, and back."""

import dataclasses
import inspect

import pytest
from absl import flags

from tfssl import pretext
from tfssl.config import configs, flagfile, generated, schema
from tfssl.config.configs import FinetuneConfig, TrainConfig
from tfssl.config.signatures import argument_texts
from tfssl.errors import UserError
from tfssl.training.registered import registered

REGISTERED = registered({})
SECTIONS = [
    cls
    for cls in vars(schema).values()
    if dataclasses.is_dataclass(cls) and cls is not schema.Records
]


def train_config(*argv):
    values = flags.FlagValues()
    TrainConfig.define(*REGISTERED, values)
    values(["train", *argv])
    return TrainConfig.from_flags(values, *REGISTERED)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_a_flag_with_its_default_and_a_help(section):
    """As Python has the dataclass."""
    values = flags.FlagValues()
    configs.define(section, values)
    values(["x"])
    assert configs.read(section, values) == section()
    assert set(values) - set(flags.FlagValues()) == {
        field.name for field in dataclasses.fields(section)
    }
    texts = {}
    for cls in reversed(section.__mro__):
        texts |= argument_texts(inspect.getdoc(cls) or "")
    for field in dataclasses.fields(section):
        text = texts[field.name]
        assert text and values[field.name].help.endswith(text)  # after a list of its choices
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), dataclasses.fields(section)[0].name, 1)


def test_flags_become_a_value():
    config = train_config(
        "--task=simclr",
        "--temperature=0.5",
        "--decay_epochs=3,4.5",
        "--nolast_relu",
        "--tpu_zone=z",
    )
    assert config.task == "simclr" and config.task_settings["temperature"] == 0.5
    assert config.task_settings["projection_size"] == 128  # the task's own default
    assert config.optimization == schema.Optimization(decay_epochs=(3.0, 4.5))
    assert config.backbone_settings["last_relu"] is False and config.accelerators.tpu_zone == "z"
    with pytest.raises(UserError, match="--temperature is not a setting of task 'rotation'"):
        train_config("--temperature=0.5")
    with pytest.raises(
        UserError, match="--decay_epochs=15,soon: give a number from 0 to 1e.06 each"
    ):
        train_config("--decay_epochs=15,soon")


def test_a_config_without_flags_is_that_of_no_flags():
    """In a notebook: `TrainConfig(...)`."""
    own = {
        "task_settings": REGISTERED[0].arguments("rotation", {}),
        "backbone_settings": REGISTERED[1].arguments("resnet50_v2", {}),
        "backbone_flags": {"skip": "skip_connections", "input_channels": "channels"},
        "optimizer_settings": REGISTERED[2].arguments("sgd", {}),
    }
    assert train_config() == TrainConfig(**own)
    values = flags.FlagValues()
    FinetuneConfig.define(REGISTERED[2], values)
    values(["finetune"])
    own = {"optimizer_settings": REGISTERED[2].arguments("nesterov", {})}
    assert FinetuneConfig.from_flags(values, REGISTERED[2]) == FinetuneConfig(**own)


def test_a_record_gives_the_same_value(tmp_path):
    config = train_config(
        "--task=moco", "--symmetric", "--epochs=12.5", "--decay_epochs=", "--workdir=w", "--dry_run"
    )
    path = str(tmp_path / "flags.flags")
    flagfile.write(path, config.flags())
    again = TrainConfig.from_record(flagfile.read(path), *REGISTERED)
    assert again == dataclasses.replace(
        config, run=dataclasses.replace(config.run, dry_run=False)
    )  # of one start alone
    with pytest.raises(flags.Error, match="no_such"):
        TrainConfig.from_record({"no_such": "1"}, *REGISTERED)
    with pytest.raises(flags.Error, match="--epochs=-1: give a number from 0"):
        TrainConfig.from_record({"epochs": "-1"}, *REGISTERED)
    # A flagfile's name in a record is text, and opens nothing.
    stem = TrainConfig.from_record(
        {"stem": "small\n--flagfile=/etc/passwd"}, *REGISTERED
    ).backbone_settings["stem"]
    assert stem == "small\n--flagfile=/etc/passwd"


def test_the_command_line_overrides_a_record():
    given = flags.FlagValues()
    TrainConfig.define(*REGISTERED, given)
    given(["export", "--seed=3", "--task=byol"])
    config = TrainConfig.from_record(
        {"seed": "1", "epochs": "2", "task": "simclr"}, *REGISTERED, overriding=given
    )
    assert (config.optimization.seed, config.optimization.epochs, config.task) == (3, 2.0, "byol")


def test_replaced_by_name():
    config = FinetuneConfig().replace(batch_size=8, workdir="w", module="m")
    assert (config.optimization.batch_size, config.run.workdir, config.classifier.module) == (
        8,
        "w",
        "m",
    )
    assert FinetuneConfig().optimization.batch_size == 256
    with pytest.raises(TypeError, match="no such settings: batch"):
        config.replace(batch=8)
    assert config.published()["batch_size"] == 8 and not {"workdir", "dry_run", "tpu_zone"} & set(
        config.published()
    )


def test_a_users_task(tmp_path, monkeypatch):
    """Its flags may be named otherwise than its arguments."""
    (tmp_path / "own_tasks.py").write_text(
        "class Mine:\n"
        '    """Mine.\n\n    Args:\n      depth: How deep.\n    """\n\n'
        '    flag_prefix = "mine_"\n\n'
        "    def __init__(self, backbone, depth=2, **settings):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    values, registered = flags.FlagValues(), (pretext.task_flags("own_tasks:Mine"), *REGISTERED[1:])
    TrainConfig.define(*registered, values)
    values(["train", "--task=own_tasks:Mine", "--mine_depth=5"])
    config = TrainConfig.from_flags(values, *registered)
    assert config.task_settings == {"depth": 5}
    record = config.flags()
    assert (
        record["mine_depth"] == 5 and record["task"] == "own_tasks:Mine" and "depth" not in record
    )
    texts = {name: generated.as_text(value) for name, value in record.items() if value is not None}
    assert TrainConfig.from_record(texts, *registered) == config

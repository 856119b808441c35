"""Flags generated from constructors, and the record of a run."""

import inspect

import pytest

from tfssl import pretext
from tfssl.config import settings
from tfssl.errors import UserError


def test_settings_read_from_the_files_are_those_of_the_classes():
    """The file reader must agree with Python's own inspection of the imported classes."""
    read = settings.of_classes(pretext.sources())
    for task in pretext.NAMES:
        expected = {}
        for cls in reversed(pretext.task_class(task).__mro__):
            if cls.__module__.startswith("tfssl.pretext") and "__init__" in vars(cls):
                parameters = inspect.signature(cls.__init__).parameters.values()
                expected |= {p.name: p.default for p in parameters if p.default is not p.empty}
        assert {name: s.defaults[task] for name, s in read.items() if task in s.defaults} == expected
    assert all(text for s in read.values() for text in s.texts.values()), "every setting needs a line in its docstring"


def test_flags_file_round_trip(tmp_path):
    path = str(tmp_path / "run" / "flags.flags")
    values = {"lr": 0.1, "flip": True, "steps": [15.0, 25.0], "name": "a=b", "unset": None, "small": 1e-4}
    settings.write_flags(path, values)
    stored = settings.read_flags(path)
    assert stored == {"lr": "0.1", "flip": "true", "steps": "15,25", "name": "a=b", "small": "0.0001"}
    assert settings.differences(stored, values) == []
    assert settings.differences(stored, {**values, "lr": 0.2, "flip": False}, free=("flip",)) == [("lr", "0.1", "0.2")]
    assert settings.differences(stored, {**values, "unset": 1}) == [("unset", "unset", "1")]


def test_a_flag_without_a_value_is_read_as_absl_does(tmp_path):
    (tmp_path / "flags.flags").write_text("--deterministic\n--seed=3\n")
    assert settings.read_flags(str(tmp_path / "flags.flags")) == {"deterministic": "true", "seed": "3"}


def test_reading_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="not the workdir of a run"):
        settings.read_flags(str(tmp_path / "flags.flags"))


def test_a_record_that_is_no_text_is_a_user_error(tmp_path):
    (tmp_path / "flags.flags").write_bytes(b"--dataset=caf\xe9\n")
    with pytest.raises(UserError, match="flags.flags, the record of the run, cannot be read"):
        settings.read_flags(str(tmp_path / "flags.flags"))

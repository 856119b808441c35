"""The record of a run."""

import pytest

from tfssl.config import flagfile
from tfssl.errors import UserError


def test_flags_file_round_trip(tmp_path):
    path = str(tmp_path / "run" / "flags.flags")
    values = {
        "lr": 0.1,
        "flip": True,
        "steps": [15.0, 25.0],
        "name": "a=b",
        "unset": None,
        "small": 1e-4,
    }
    flagfile.write(path, values)
    stored = flagfile.read(path)
    assert stored == {
        "lr": "0.1",
        "flip": "true",
        "steps": "15,25",
        "name": "a=b",
        "small": "0.0001",
    }
    assert flagfile.differences(stored, values) == []
    assert flagfile.differences(stored, {**values, "lr": 0.2, "flip": False}, free=("flip",)) == [
        ("lr", "0.1", "0.2")
    ]
    assert flagfile.differences(stored, {**values, "unset": 1}) == [("unset", "unset", "1")]


def test_a_flag_without_a_value_is_read_as_absl_does(tmp_path):
    (tmp_path / "flags.flags").write_text("--deterministic\n--seed=3\n")
    assert flagfile.read(str(tmp_path / "flags.flags")) == {"deterministic": "true", "seed": "3"}


def test_reading_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="not the workdir of a run"):
        flagfile.read(str(tmp_path / "flags.flags"))


def test_a_record_that_is_no_text_is_a_user_error(tmp_path):
    (tmp_path / "flags.flags").write_bytes(b"--dataset=caf\xe9\n")
    with pytest.raises(UserError, match="flags.flags, the record of the run, cannot be read"):
        flagfile.read(str(tmp_path / "flags.flags"))


def test_a_line_break_is_refused(tmp_path):
    with pytest.raises(UserError, match="--name='a.nb': a run's flags cannot have line breaks"):
        flagfile.write(str(tmp_path / "flags.flags"), {"name": "a\nb"})

"""Every numeric flag of every binary is bounded, and a value outside ends in one line."""

import contextlib
import importlib
import io
import json
import math
import sys

import pytest
import runs
from absl import flags

from tfssl import pretext
from tfssl.config import bounds, signatures
from tfssl.errors import UserError

BINARIES = (
    "train",
    "evaluate",
    "finetune",
    "predict",
    "export.__main__",
    "data_service",
    "ab_bins",
)


def outside(kind, least, greatest):
    """Texts that are no value of a flag, whatever its meaning."""
    beyond = 1 if kind == "int" else 1e-3 * max(1, abs(least))
    texts = [repr(least - beyond), "nan", "inf", "-inf", "1e999", "a", "", "0x", "9" * 60]
    return [*texts, repr(greatest + 1 if kind == "int" else 2 * greatest + 1)]


def _walk(binary, path):
    """In a process of its own, since flags belong to the process: each flag's bounds, and what its
    binary says of values outside."""
    module = importlib.import_module(f"tfssl.{binary}")
    if hasattr(module, "define_flags"):
        module.define_flags()
    from tfssl.runtime import cli

    numeric = {}
    for name in cli.defined_flags():
        flag = flags.FLAGS[name]
        kind = flag.flag_type()
        if kind not in ("int", "float"):
            continue
        least, greatest = bounds.OF_FLAG.get(name, (None, None))
        said = {}
        for text in outside(kind, least, greatest) if least is not None else ():
            sys.argv = [binary, f"--{name}={text}"]
            status, heard = 0, io.StringIO()
            try:
                with contextlib.redirect_stderr(heard):
                    cli.run(module.main, binary)
            except SystemExit as e:
                status = e.code
            said[text] = status, heard.getvalue()
        numeric[name] = {
            "kind": kind,
            "bounds": (least, greatest),
            "default": flag.default,
            "said": said,
        }
    path.write_text(json.dumps(numeric))


@pytest.mark.parametrize("binary", BINARIES)
def test_every_numeric_flag_has_bounds_which_its_binary_names(binary, tmp_path):
    process = runs.PROCESSES.Process(target=_walk, args=(binary, tmp_path / "flags.json"))
    process.start()
    process.join(120)
    numeric = json.loads((tmp_path / "flags.json").read_text())
    assert len(numeric) >= {"data_service": 1, "ab_bins": 3, "predict": 4}.get(binary, 20)
    for name, flag in numeric.items():
        least, greatest = flag["bounds"]
        assert least is not None and greatest is not None, (
            f"--{name} has no bounds: give it some in tfssl/config/bounds.py"
        )
        assert math.isfinite(least) and math.isfinite(greatest) and least < greatest
        assert flag["default"] is None or least <= flag["default"] <= greatest, name
        for text, (status, heard) in flag["said"].items():
            assert status == 1 and len(heard.splitlines()) == 1 and "Traceback" not in heard, (
                name,
                text,
                heard,
            )
            assert f"--{name}={text}: give" in heard and " from " in heard, heard
            assert all(
                float(end) in _numbers(heard.partition(": give")[2]) for end in (least, greatest)
            ), heard


def _numbers(text):
    return [
        float(word)
        for word in text.replace(",", " ").split()
        if word[:1].isdigit() or word[:1] == "-"
    ]


def test_settings_of_tasks_lie_within_their_bounds():
    for task in pretext.NAMES:
        for setting in signatures.read(*pretext.TASKS.source(task)).values():
            if setting.kind in (int, float):
                least, greatest = bounds.OF_FLAG[setting.flag]
                assert least <= setting.default <= greatest, setting.flag


def test_both_ends_are_values():
    """Seeds: NumPy takes 32 bits."""
    import numpy as np

    values = flags.FlagValues()
    flags.DEFINE_integer("seed", 0, "", flag_values=values)
    flags.DEFINE_float("momentum", 0.9, "", flag_values=values)
    bounds.apply(values)
    bounds.apply(values)
    values(["a program", "--seed=0xffffffff", "--momentum=1"])
    assert values.seed == 4_294_967_295 and values.momentum == 1.0
    np.random.RandomState(values.seed)
    with pytest.raises(ValueError):
        np.random.RandomState(values.seed + 1)
    with pytest.raises(
        flags.IllegalFlagValueError, match="--seed=4294967296: give an integer from 0 to 4294967295"
    ):
        values(["a program", "--seed=4294967296"])


def test_lists_have_no_empty_items():
    values = flags.FlagValues()
    flags.DEFINE_list("endpoints", ["all"], "", flag_values=values)
    bounds.apply(values)
    assert values["endpoints"].value == ["all"]
    for text in ("a,,b", "a,b,", " a , b"):
        values(["a program", f"--endpoints={text}"])
        assert values.endpoints == ["a", "b"]


def test_lists_of_numbers():
    assert bounds.numbers("decay_epochs", ["15", "25.5", ""]) == [15.0, 25.5]
    for text in ("nan", "-1", "inf", "soon"):
        with pytest.raises(
            UserError, match=f"--decay_epochs=15,{text}: give a number from 0 to 1e.06 each"
        ):
            bounds.numbers("decay_epochs", ["15", text])

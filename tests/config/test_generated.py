"""Flags made from classes."""

import pytest
from absl import flags

from tfssl.config import bounds
from tfssl.config.generated import Generated, as_text
from tfssl.errors import UserError

ONE = '''
from typing import Literal

class A:
    """A.

    Args:
      k: Neighbors.
      rates: Learning rates.
    """

    def __init__(self, k=20, rates=(0.1, 0.01)):
        pass


class Shared:
    """Shared.

    Args:
      stride: Pixels.
      width: Channels.
    """

    flag_bounds = {"width": (1, 64)}

    def __init__(self, stride: Literal[0, 8, 16] = 8, width=4):
        pass


class B:
    """B.

    Args:
      k: Images.
      mode: How.
    """

    def __init__(self, k=5, mode="fast"):
        pass
'''


@pytest.fixture
def sources(tmp_path, monkeypatch):
    (tmp_path / "generated_classes.py").write_text(ONE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"a": ("generated_classes", "A"), "b": ("generated_classes", "B")}


def test_one_flag_for_what_several_have(sources):
    values, both = flags.FlagValues(), Generated("thing", sources)
    both.define(values=values)
    values(["x", "--k=3", "--rates=1,2.5"])
    given = {name: values[name].value for name in both.flags}
    assert both.arguments("a", given) == {"k": 3, "rates": (1.0, 2.5)}
    assert both.arguments("b", given) == {"k": 3, "mode": "fast"}
    assert values["k"].help == "a: Neighbors. b: Images. Default: 20 for a; 5 for b."
    assert values["mode"].help == "How. Default: fast for b."
    both.check("a", {"k": 3, "mode": None})
    with pytest.raises(
        UserError, match="--mode is not a setting of thing 'a', whose own are k, rates"
    ):
        both.check("a", {"mode": "slow"})
    with pytest.raises(UserError, match="--rates=fast: give numbers"):
        both.arguments("a", {"rates": ["fast"]})


def test_flags_that_agree_have_their_default_which_all_classes_take(sources):
    shared = ("generated_classes", "Shared")
    values, several = (
        flags.FlagValues(),
        Generated("thing", {"s1": shared, "s2": shared, **sources}, unset=False),
    )
    several.define(values=values)
    bounds.apply(values)
    assert (several.default("stride"), several.default("k")) == (8, None)
    with pytest.raises(flags.Error, match="one of <0|8|16>"):
        values(["x", "--stride=9"])
    with pytest.raises(flags.Error, match="--width=65: give an integer from 1 to 64"):
        values(["x", "--width=65"])
    values(["x"])
    given = {name: values[name].value for name in several.flags}
    assert several.arguments("s2", given) == {"stride": 8, "width": 4}
    several.check("a", given)  # what it has not is at its default
    with pytest.raises(UserError, match="--stride is not a setting of thing 'a'"):
        several.check("a", {**given, "stride": "16"})
    assert several.arguments("s1", {"stride": "16"})["stride"] == 16


def test_names_of_one_class_are_the_classs(sources):
    names = {
        "s1": ("generated_classes", "Shared"),
        "s2": ("generated_classes", "Shared"),
        **sources,
    }
    assert Generated("thing", names).describe("width") == "Channels. Default: 4 for Shared."


def test_the_flags_of_one_class_have_its_defaults(sources):
    values, one = flags.FlagValues(), Generated("thing", {"a": sources["a"]})
    one.define(values=values)
    values(["x"])
    assert (values.k, values.rates, values["k"].help) == (20, ["0.1", "0.01"], "Neighbors.")
    assert one.arguments("a", values.flag_values_dict()) == {"k": 20, "rates": (0.1, 0.01)}


def test_a_help_of_one_class_stands_as_it_is_written(tmp_path, monkeypatch):
    """It may begin with a value, which a capital letter would change."""
    (tmp_path / "values_first.py").write_text(
        ONE.replace("k: Neighbors.", "k: tfds:NAME, or a number.")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        Generated("thing", {"a": ("values_first", "A")}).describe("k") == "tfds:NAME, or a number."
    )


def test_lists_of_numbers_are_bounded_as_numbers_are(tmp_path, monkeypatch):
    text = ONE.replace("rates=(0.1, 0.01)", "decay_epochs=(1.0, 2.0)")
    (tmp_path / "bounded_lists.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    one = Generated("thing", {"a": ("bounded_lists", "A")})
    assert one.arguments("a", {"decay_epochs": ["3", "4.5"]})["decay_epochs"] == (3.0, 4.5)
    with pytest.raises(UserError, match="--decay_epochs=3,-1: give a number from 0 to 1e.06 each"):
        one.arguments("a", {"decay_epochs": ["3", "-1"]})


def test_defaults_that_agree_may_be_the_flags(sources):
    values, both = flags.FlagValues(), Generated("thing", sources, unset=False)
    both.define(values=values)
    values(["x"])
    assert (values.k, values.mode, values.rates) == (None, "fast", ["0.1", "0.01"])
    assert (
        values["k"].help.endswith("Default: 20 for a; 5 for b.") and values["mode"].help == "How."
    )
    assert both.arguments("b", values.flag_values_dict()) == {"k": 5, "mode": "fast"}


def test_errors_of_constructors_name_the_flag(sources):
    def refuse(k, rates):
        raise UserError(f"k={k}: too many" if k else "k and rates: neither")

    one = Generated("thing", {"a": sources["a"]})
    with pytest.raises(UserError, match="^--k=7: too many$"):
        one.make("a", refuse, {"k": 7})
    with pytest.raises(UserError, match="^k and rates: neither$"):
        one.make("a", refuse, {"k": 0})
    assert one.make("a", dict, {"k": 3}) == {"k": 3, "rates": (0.1, 0.01)}


@pytest.mark.parametrize(
    "value, text",
    [
        (True, "true"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        ((15.0, 25), "15,25"),
        (None, ""),
    ],
)
def test_values_as_text(value, text):
    assert as_text(value) == text

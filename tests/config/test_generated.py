"""Flags made from classes."""

import pytest
from absl import flags

from tfssl.config.generated import Generated, as_text
from tfssl.errors import UserError

ONE = '''
class A:
    """A.

    Args:
      k: Neighbors.
      rates: Learning rates.
    """

    def __init__(self, k=20, rates=(0.1, 0.01)):
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
    with pytest.raises(UserError, match="--mode is not a setting of thing 'a', whose own are k, rates"):
        both.check("a", {"mode": "slow"})
    with pytest.raises(UserError, match="--rates=fast: give numbers"):
        both.arguments("a", {"rates": ["fast"]})


def test_the_flags_of_one_class_have_its_defaults(sources):
    values, one = flags.FlagValues(), Generated("thing", {"a": sources["a"]})
    one.define(values=values)
    values(["x"])
    assert (values.k, values.rates, values["k"].help) == (20, ["0.1", "0.01"], "Neighbors.")
    assert one.arguments("a", values.flag_values_dict()) == {"k": 20, "rates": (0.1, 0.01)}


def test_defaults_that_agree_may_be_the_flags(sources):
    values, both = flags.FlagValues(), Generated("thing", sources, unset=False)
    both.define(values=values)
    values(["x"])
    assert (values.k, values.mode, values.rates) == (None, "fast", ["0.1", "0.01"])
    assert values["k"].help.endswith("Default: 20 for a; 5 for b.") and values["mode"].help == "How."
    assert both.arguments("b", values.flag_values_dict()) == {"k": 5, "mode": "fast"}


@pytest.mark.parametrize(
    "value, text", [(True, "true"), (0.1, "0.1"), (1 / 3, "0.3333333333333333"), ((15.0, 25), "15,25"), (None, "")]
)
def test_values_as_text(value, text):
    assert as_text(value) == text

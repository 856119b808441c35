"""Settings read from files are those that Python finds in the imported classes."""

import inspect
import sys
import textwrap

import pytest

from tfssl import backbones, pretext
from tfssl.config import signatures
from tfssl.errors import UserError
from tfssl.registry import Registry

MODULE = '''
import dataclasses
from typing import Literal, Optional
from tfssl.pretext.simclr import SimCLR


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How the weights are found.

    Args:
      optimizer: One of the registry.
      decay_epochs: The rate falls
        after these.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    rate: Optional[float] = None
    decay_epochs: tuple[float, ...] = (15, 25)
    nesterov: bool = False
    name: "str | None" = None


class Base:
    flag_prefix = "mine_"

    def __init__(self, k=20, hidden=False):
        pass


class Probe(Base):
    """A probe.

    Args:
      shots: Images of each class.
    """

    flag_names = {"shots": "probe_k", "hidden": ""}

    def __init__(self, shots=(1, 5), **settings):
        pass


class Mine(SimCLR):
    """Mine.

    Args:
      extra: Another one.
    """

    def __init__(self, backbone, extra=0.5, **settings):
        raise RuntimeError("never called")


@dataclasses.dataclass(frozen=True)
class Shorter(Optimization):
    """Another rate.

    Args:
      decay_epochs: Sooner.
    """

    rate: Optional[float] = 0.5
    optimizer: Literal["sgd", "adam"] = "adam"
    decay_epochs: tuple[float, ...] = (5,)


class Computed:
    def __init__(self, k=2 * 3):
        pass
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's package, which can be found and must not be imported."""
    package = tmp_path / "someones"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "things.py").write_text(
        textwrap.dedent(MODULE) + "\nraise RuntimeError('imported')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "someones.things"
    assert "someones.things" not in sys.modules


@pytest.mark.parametrize("task", pretext.NAMES)
def test_tasks_as_python_sees_them(task):
    expected = {}
    for cls in reversed(pretext.task_class(task).__mro__):
        if cls.__module__.startswith("tfssl.pretext") and "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            expected |= {p.name: p.default for p in parameters if p.default is not p.empty}
    names = getattr(pretext.task_class(task), "flag_names", {})
    expected = {name: default for name, default in expected.items() if names.get(name) != ""}
    settings = signatures.read(*pretext.TASKS.source(task))
    assert {name: setting.default for name, setting in settings.items()} == expected
    assert all(setting.text for setting in settings.values()), (
        "every setting needs a line in its docstring"
    )


@pytest.mark.parametrize("name", ["resnet50_v2", "revnet50", "vgg11", "alexnet"])
def test_backbones_as_python_sees_them(name):
    """`arguments` lists what the classes take, in the order in which `read` has it; flags of the
    run say the rest."""
    module, class_name = backbones.BACKBONES.source(name)
    cls, settings = backbones.BACKBONES.find(name), signatures.read(module, class_name)
    assert signatures.arguments(cls)[0] == "name"
    assert [
        a for a in signatures.arguments(cls) if a not in ("name", "norm_policy", "remat")
    ] == list(settings)
    parameters = {
        **inspect.signature(backbones.Network).parameters,
        **inspect.signature(cls).parameters,
    }
    assert all(
        setting.default == parameters[a].default and setting.text for a, setting in settings.items()
    )


def test_a_dataclass(module):
    settings = signatures.read(module, "Optimization")
    assert [(s.default, s.kind, s.many, s.choices) for s in settings.values()] == [
        ("sgd", str, False, ("sgd", "adam")),
        (None, float, False, ()),
        ((15, 25), float, True, ()),
        (False, bool, False, ()),
        (None, str, False, ()),
    ]
    assert settings["decay_epochs"].text == "The rate falls after these."


def test_a_dataclass_that_changes_defaults_keeps_the_texts(module):
    settings, base = signatures.read(module, "Shorter"), signatures.read(module, "Optimization")
    assert settings.keys() == base.keys()
    assert [settings[name].default for name in ("rate", "optimizer", "decay_epochs")] == [
        0.5,
        "adam",
        (5,),
    ]
    assert (
        settings["optimizer"].text == "One of the registry."
        and settings["decay_epochs"].text == "Sooner."
    )
    assert settings["nesterov"] == base["nesterov"]


def test_names_of_flags_are_inherited(module):
    flags = {name: setting.flag for name, setting in signatures.read(module, "Probe").items()}
    assert flags == {"shots": "probe_k", "k": "mine_k"}  # hidden has none


def test_a_base_with_type_arguments_is_the_base(tmp_path, monkeypatch):
    text = (
        "class Base:\n    def __init__(self, k: int = 1): ...\nclass Own(Base[int]):\n    def "
        "__init__(self, **base): ...\n"
    )
    (tmp_path / "generics.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(signatures.read("generics", "Own")) == ["k"]


def test_a_users_task_has_its_own_settings_and_ours(module):
    settings = signatures.read(module, "Mine")
    ours = signatures.read("tfssl.pretext.simclr", "SimCLR")
    assert list(settings) == ["extra", *ours] and settings["temperature"] == ours["temperature"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("someones.things:Missing", "defines no class 'Missing'"),
        ("someones.nothing:Mine", "no module 'someones.nothing'"),
        ("nobodys.things:Mine", "no module 'nobodys.things'"),
        ("someones.things:Computed", "default of k is no literal"),
        ("simclrr", "unknown task 'simclrr'.*or the import path"),
    ],
)
def test_what_cannot_be_read_is_a_user_error(module, path, message):
    with pytest.raises(UserError, match=message):
        signatures.read(*Registry("task", {"simclr": "tfssl.pretext.simclr:SimCLR"}).source(path))

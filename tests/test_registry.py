"""Short names and import paths."""

import collections

import pytest

from tfssl.errors import UserError
from tfssl.registry import Registry

MAPS = Registry("map", {"ordered": "collections:OrderedDict", "broken": "collections:Nothing"})


def test_names_and_paths():
    assert MAPS.find("ordered") is MAPS.find("collections:OrderedDict") is collections.OrderedDict
    assert MAPS.find("collections:Counter") is collections.Counter
    assert (MAPS.name_of(collections.OrderedDict), MAPS.name_of(collections.Counter)) == (
        "ordered",
        "collections:Counter",
    )
    assert MAPS.names == ("ordered", "broken")


@pytest.mark.parametrize(
    "name, message",
    [
        ("unordered", "unknown map 'unordered': choose one of ordered, broken, or the import path"),
        ("no_such.module:Map", "no module 'no_such'; is it installed"),
        ("collections.no_such:Map", "no module 'collections.no_such'"),
        ("collections:Missing", "module 'collections' has no class 'Missing'"),
        ("collections:", "unknown map"),
        ("collections:a b", "unknown map"),
    ],
)
def test_unknown_ones(name, message):
    with pytest.raises(UserError, match=message):
        MAPS.find(name)


def test_what_a_users_module_lacks_is_shown_whole(tmp_path, monkeypatch):
    (tmp_path / "registry_example.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        MAPS.find("registry_example:Map")

"""Sources by their registry: names, import paths, settings, and what somebody needs of them."""

import inspect

import pytest

import tfssl
from tfssl.data.sources import SOURCES, require
from tfssl.errors import UserError

OWN = '''
from tfssl.data.sources.glyphs import GlyphSource


class Letters(GlyphSource):
    """As many letters as its name says."""

    def __init__(self, spec, path="", split="train", data_dir=None, letters=3):
        super().__init__(spec, path or str(letters), split, data_dir, 16)


class Folder(GlyphSource):
    def __init__(self, spec, path, split="train"):
        super().__init__(spec, path, split)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "someones_sources.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", SOURCES.names)
def test_each_kind_is_a_class_that_names_its_specs(name):
    cls = SOURCES.find(name)
    takes = list(inspect.signature(cls).parameters.values())
    assert cls.form.split(":")[0].split()[0] == name
    assert (
        [p.name for p in takes][0] == "spec"
        and takes[2].name == "split"
        and takes[2].default == "train"
    )
    assert all(p.default is not inspect.Parameter.empty for p in takes[2:])
    documented = inspect.signature(tfssl.open_source).parameters
    assert {p.name for p in takes[3:]} <= documented.keys()


def test_a_class_of_ones_own(own):
    assert tfssl.open_source("someones_sources:Letters").num_examples == 3
    assert tfssl.open_source("someones_sources:Letters:5", "train[1:]").num_examples == 4
    # as with our own kinds, a setting that another kind has is no mistake
    assert (
        tfssl.open_source(
            "someones_sources:Letters", letters=4, image_key="png", label_offset=1
        ).num_examples
        == 4
    )


@pytest.mark.parametrize(
    "spec, settings, message",
    [
        (
            "someones_sources:Numbers",
            {},
            "someones_sources:Numbers.*expected tfds:NAME.* has no class 'Numbers'",
        ),
        (
            "nobodys_sources:Letters:x",
            {},
            "unknown data set.*expected tfds.*MySource.*no module 'nobodys_sources'",
        ),
        (
            "someones_sources:Letters",
            {"digits": 3},
            "source 'someones_sources:Letters' has no setting digits",
        ),
        (
            "someones_sources:Folder",
            {},
            "someones_sources:Folder takes a path: someones_sources:Folder:PATH",
        ),
        ("glyphs", {"letters": 3}, "source 'glyphs' has no setting letters"),
    ],
)
def test_user_errors(own, spec, settings, message):
    with pytest.raises(UserError, match=message) as error:
        tfssl.open_source(spec, **settings)
    assert "\n" not in str(error.value)


def test_what_somebody_needs(write_images):
    glyphs, photos = (
        tfssl.open_source("glyphs:3"),
        tfssl.open_source("folder:" + write_images(["a.png", "b.png"])),
    )
    require(glyphs, ("label", "mask", "boxes"), "a test")
    for need, message in {
        "label": r"a test needs labels, and folder:.* \(train\) has none: sort the images into a folder per class",
        "boxes": "a test needs 'boxes' of each image, and folder:.* has none: take .*boxes:PATH or glyphs",
        "normals": "take normals:PATH$",
        "taste": "take a source of your own",
    }.items():
        with pytest.raises(UserError, match=message):
            require(photos, (need,), "a test")

"""The pages of docs/ that show code: it is the code that runs."""

import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
import tensorflow as tf
from encoders import save_encoder
from networks import trainable
from sklearn.neighbors import NearestCentroid

import tfssl
from tfssl import pretext
from tfssl.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    '"resnet50_v2"': '"resnet18_v2", width_multiplier=0.0625, stem="small"',
    "projection_size=128": "projection_size=8, image_size=16",
    "batch_size=256": "batch_size=8",
    "epochs=10, steps_per_epoch=100": "epochs=2, steps_per_epoch=2",
    "folder:photos": "folder:{photos}",
    "modules/alignment/1": "{modules}/alignment/1",
}


def blocks(page):
    """The Python of a page, a text for each block."""
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL
    )


def test_add_a_method(photos, tmp_path, monkeypatch):
    method, use = blocks("add_a_method.md")
    (tmp_path / "new_method.py").write_text(method, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "new_method", raising=False)
    for old, new in SMALL.items():
        assert old in use, old
        use = use.replace(old, new.format(photos=photos, modules=tmp_path))
    names = {}
    exec(compile(use, "docs/add_a_method.md", "exec"), names)
    del sys.modules["new_method"]  # the example's module is called so too
    assert pretext.name_of(type(names["task"])) == "new_method:AlignmentUniformity"
    module = tf.saved_model.load(str(tmp_path / "alignment" / "1"))
    assert module(tf.zeros([2, 16, 16, 3])).shape == [2, 32]
    example = (ROOT / "examples" / "new_method.py").read_text(encoding="utf-8")
    assert method[method.index("class ") :].strip() in example


def test_add_a_backbone(photos, tmp_path, monkeypatch):
    """All three blocks, in small; and the published number of parameters of ConvMixer-768/32."""
    network, use, check = blocks("add_a_backbone.md")
    (tmp_path / "convmixer.py").write_text(network, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {
        "width_multiplier=0.5, depth=16": "width_multiplier=1 / 64, depth=2, patch=2, kernel=3",
        "image_size=224": "image_size=16",
        "modules/convmixer/1": f"{tmp_path}/1",
        **{old: SMALL[old] for old in ("batch_size=256", "epochs=10, steps_per_epoch=100")},
        "folder:photos": f"folder:{photos}",
    }
    for old, new in small.items():
        assert old in use, old
        use = use.replace(old, new)
    exec(compile(use + check, "docs/add_a_backbone.md", "exec"), {})
    module = tf.saved_model.load(str(tmp_path / "1"))
    assert {name: x.shape for name, x in module.endpoints(tf.zeros([2, 16, 16, 3])).items()} == {
        **dict.fromkeys(("embedding", "layer1", "layer2"), (2, 8, 8, 12)),
        "pre_logits": (2, 12),
    }
    assert trainable("convmixer:ConvMixer", 1) + 1000 * 768 + 1000 == 21110248


def test_add_a_protocol(photos, tmp_path, monkeypatch):
    """Both blocks, as they stand but for paths; its accuracies are those of scikit-learn's
    classifier."""
    protocol, use = blocks("add_a_protocol.md")
    (tmp_path / "nearest_mean.py").write_text(protocol, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for old, new in {
        "folder:photos": f"folder:{photos}",
        "modules/photos/1": save_encoder(tmp_path / "1"),
    }.items():
        assert old in use, old
        use = use.replace(old, new)
    names = {}
    exec(compile(use, "docs/add_a_protocol.md", "exec"), names)
    train, test, results = (names[name] for name in ("train", "test", "results"))
    assert [result["endpoint"] for result in results] == list(train.endpoints)
    for result in results:
        x, y = (
            np.asarray(part.endpoints[result["endpoint"]], np.float64) for part in (train, test)
        )
        assert result["value"] == NearestCentroid().fit(x, train.labels).score(y, test.labels)


def test_add_a_source(photos, tmp_path, monkeypatch):
    """Its images and labels are those of the folder, in the order of the table; by the command line
    too."""
    file, use = blocks("add_a_source.md")
    (tmp_path / "csv_source.py").write_text(file, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = sorted(photos.rglob("*.jpg"))
    lines = [f"{path},{path.parent.name}" for path in paths]
    (tmp_path / "photos.csv").write_text("\n".join(["file,class", *lines]), encoding="utf-8")
    assert "photos.csv" in use
    names = {}
    exec(
        compile(
            use.replace("photos.csv", f"{tmp_path}/photos.csv"), "docs/add_a_source.md", "exec"
        ),
        names,
    )
    source = names["source"]
    assert source.class_names == ["cold", "warm"] and source.num_examples == 43
    for path, record in zip(paths, source.records().take(5)):
        example = source.fetch(record)
        assert example["image"].numpy() == path.read_bytes()
        assert source.class_names[int(example["label"])] == path.parent.name
    spec = f"csv_source:CSVSource:{tmp_path}/photos.csv"
    unlabeled = tfssl.open_source(spec)
    assert unlabeled.num_classes is None and unlabeled.num_examples == 48
    labeled = tfssl.open_source(f"{spec}?label_column=class&file_column=file")
    assert labeled.class_names == ["cold", "warm"] and labeled.num_examples == 48
    for query, complaint in {
        "label=class": "no setting 'label': there are file_column, label_column, split_column",
        "label_column": "SETTING=VALUE",
    }.items():
        with pytest.raises(UserError, match=complaint):
            tfssl.open_source(f"{spec}?{query}")


def pages():
    """(path, text) of the README, its neighbors, and all pages below docs/ but those that `make
    docs` writes."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if "generated" not in path.parts:
            yield path, path.read_text(encoding="utf-8")


def test_pages_link_to_what_is_there():
    for path, text in pages():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)", prose):
            assert "://" in link or (path.parent / link).exists(), f"{path.name}: {link}"


def test_commands_of_the_pages_name_files_that_are_there():
    """`python benchmarks/step.py`, --flagfile=tfssl:goyal/jigsaw.flags."""
    for path, text in pages():
        text = text.replace(
            "benchmarks/rotation_cifar10.py", ""
        )  # of an earlier commit, as the page says
        files = re.findall(r"\b(?:benchmarks|studies|examples|tests)/\w+\.py\b", text)
        files += [f"flags/{name}" for name in re.findall(r"\btfssl:([a-z0-9_/]+\.flags)", text)]
        for file in files:
            assert (ROOT / file).exists(), f"{path.name}: {file}"


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_docstrings_become_restructured_text():
    """The site's own step: sections for napoleon, an item on each line; blocks unchanged; what
    looks like markup escaped."""
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    lines = """Of `Source`s, |P| * 2.

    module(images)   -> [N, D]

More text,
wrapped.

Args:
  x, y_: a pair,
    in [0, 1].
  **rest: others.

Returns:
  `Contrast`: the loss of
    each row.""".splitlines()
    conf["to_restructured_text"](None, "function", "f", None, None, lines)
    assert [line for line in lines if line.strip()] == [
        r"Of ``Source``\ s, \|P\| \* 2.",
        "::",
        "        module(images)   -> [N, D]",
        "More text, wrapped.",
        "Args:",
        r"  x, y\_: a pair, in [0, 1].",
        r"  \*\*rest: others.",
        "Returns:",
        "  : ``Contrast``: the loss of each row.",
    ]

"""What is installed: the commands from any folder, fast help, the flagfiles in the wheel."""

import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
import runs
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = __import__("pathlib").Path(__file__).parents[1]


COMMANDS = {
    "train": "--workdir",
    "export": "--workdir",
    "evaluate": "--workdir",
    "finetune": "--workdir",
    "predict": "--output",
    "import_weights": "--weights",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer_from_the_root_and_from_elsewhere(command, tmp_path):
    for folder in (ROOT, tmp_path):
        begun = time.perf_counter()
        done = runs.anew(command, "--help", cwd=folder)
        assert done.returncode == 0 and COMMANDS[command] in done.stdout, done.stderr
        assert time.perf_counter() - begun < 5, "--help has to be fast"


def test_one_version_everywhere():
    import tfssl

    citation, changelog = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md")
    )
    assert f"\nversion: {tfssl.__version__}\n" in citation
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == tfssl.__version__


def test_every_dependency_imports_and_works():
    """Used, not only imported: some break at first use while pip is content."""
    import matplotlib
    import sklearn.linear_model
    import tensorflow as tf
    import tensorflow_datasets as tfds
    import tensorflow_hub as hub

    assert tfds.core.Version("1.0.0") < tfds.core.Version("2.0.0") and tfds.features.FeaturesDict(
        {"label": tf.int64}
    )
    assert hub.KerasLayer(lambda x: x + 1)(1) == 2
    assert matplotlib.__version__ and sklearn.linear_model.LogisticRegression().fit(
        [[0], [1]], [0, 1]
    ).predict([[1]]) == [1]
    assert getattr(tf.keras, "__version__", "2").startswith("2")
    if sys.version_info < (3, 12):
        import tensorflow_addons as tfa

        assert float(tfa.losses.triplet_semihard_loss(tf.constant([0, 0, 1]), tf.eye(3))) >= 0


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_constraints_are_what_setup_permits(python, monkeypatch):
    """Every requirement of an installation with its tests is pinned, to a version that setup.py
    takes; and nothing to two."""
    settings = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: settings.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    lines = (ROOT / f"constraints-py{python.replace('.', '')}.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, version in pins}
    assert len(pinned) == len(pins) and "tfssl" not in pinned and python in lines[0]
    assert python in SpecifierSet(settings["python_requires"]) and "3.14" not in SpecifierSet(
        settings["python_requires"]
    )
    for text in (*settings["install_requires"], *settings["extras_require"]["test"]):
        wanted = Requirement(text)
        here = wanted.marker is None or wanted.marker.evaluate({"python_version": python})
        if here and wanted.name != "setuptools":  # which an environment brings
            assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, text


TRAIN_A_STEP = """
import sys
from tfssl import train
sys.argv = ["tfssl-train", *sys.argv[1:]]
try:
    train.run()
except SystemExit as end:
    heavy = "tensorflow_datasets", "tensorflow_hub", "tensorflow_addons", "matplotlib", "sklearn", "pandas"
    print(end.code, *[name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def test_training_imports_no_more_than_it_uses(photos, tmp_path, monkeypatch):
    """Slices of splits and the drawing of the letters too, which a new cache folder asks for; each
    of the list takes seconds to import."""
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path / "cache"))
    splits = ("--train_split=train[:90%]", "--val_split=train[90%:]")
    flags = (*runs.TINY, "--train_steps=1", *splits)
    for dataset in ("glyphs", f"folder:{photos}"):
        line = [
            sys.executable,
            "-c",
            TRAIN_A_STEP,
            *flags,
            f"--dataset={dataset}",
            f"--workdir={tmp_path / dataset[:6]}",
        ]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert "at step 1" in done.stdout and done.stderr.split()[-1:] in (["None"], ["0"]), (
            done.stderr
        )


def test_keras3_first_is_refused_in_one_line():
    program = (
        "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None); import tensorflow as tf; "
        "tf.keras.layers; import tfssl"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if sys.version_info < (3, 12):
        assert done.returncode == 0, done.stderr
    else:
        assert "import tfssl first" in done.stderr.splitlines()[-1]


def test_the_wheel_holds_code_export_and_flagfiles(tmp_path):
    copy = tmp_path / "tree"  # building leaves its traces in the tree
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "demo", "generated")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for expected in (
        "tfssl/train.py",
        "tfssl/py.typed",
        "tfssl/export/module.py",
        "tfssl/flags/revisiting/rotation.flags",
        "tfssl/flags/glyphs/eval.flags",
    ):
        assert expected in names, names

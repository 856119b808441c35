"""What an earlier version wrote goes on working: a run of commit 29fa314 resumes, and its module
evaluates.

fixtures/29fa314.tar.xz holds that run at step 4 of 8 (`run`; 16 pixels, ResNet-18 v2 of a sixteenth
of the width), the weights that the same code had at step 8 (`end.npz`), its module (`module`), and
that module's endpoints for images of NumPy's (`endpoints.npz`).
"""

import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import runs
import tensorflow as tf
from PIL import Image

import tfssl
from tfssl.hub import load as modules

ARCHIVE = pathlib.Path(__file__).parent / "fixtures" / "29fa314.tar.xz"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of the fixture, and in it `data`, the images that the run has learned from."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder)
    (folder / "pack").rename(folder / "29fa314")
    rng = np.random.default_rng(0)
    for i in range(16):
        path = folder / "data" / ("dark" if i % 2 else "light") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128 if i % 2 else 256, [20, 20, 3], dtype=np.uint8)).save(
            path
        )
    flags = folder / "29fa314" / "run" / "flags.flags"
    flags.write_text(
        flags.read_text()
        .replace("DATA", str(folder / "data"))
        .replace("WORKDIR", str(flags.parent))
    )
    return folder


def test_a_run_goes_on_as_its_own_version_would_have(old, tmp_path):
    """All that is learned, and momentum, is the same: on the processor of the fixture (AVX-512) bit
    for bit. Moving statistics are not, on purpose: in the first steps of a run they weigh what they
    have seen, and not their initial values."""
    workdir = shutil.copytree(old / "29fa314" / "run", tmp_path / "run")
    flagfile = workdir / "flags.flags"
    flagfile.write_text(flagfile.read_text().replace(str(old / "29fa314" / "run"), str(workdir)))
    before = tf.train.load_checkpoint(str(workdir / "checkpoints" / "ckpt-4"))
    done = runs.command("train", f"--flagfile={flagfile}", "--train_steps=8")
    assert "resuming at step 4 of 8" in done.stdout
    reached = tf.train.load_checkpoint(str(workdir / "checkpoints" / "ckpt-8"))
    assert before.get_variable_to_shape_map() == reached.get_variable_to_shape_map()
    with np.load(old / "29fa314" / "end.npz") as end:
        for name in end:
            np.testing.assert_allclose(
                reached.get_tensor(name.replace("|", "/")), end[name], rtol=1e-4, atol=1e-5
            )


def test_a_module_is_what_it_was(old, tmp_path):
    module = modules.load(str(old / "29fa314" / "module"))
    images = np.random.default_rng(1).random([4, 16, 16, 3], np.float32)
    found = module.endpoints(tf.constant(images))
    with np.load(old / "29fa314" / "endpoints.npz") as expected:
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    source = tfssl.open_source(f"folder:{old / 'data'}")
    features = tfssl.downstream.extract(str(old / "29fa314" / "module"), source)
    assert (
        module.facts["training_flags"]["task"] == "rotation" and "pre_logits" in features.endpoints
    )
    (result,) = tfssl.downstream.run("knn", features, features, endpoints=["pre_logits"], k=1)
    assert result["value"] == 1.0 and os.path.exists(old / "29fa314" / "module" / "saved_model.pb")

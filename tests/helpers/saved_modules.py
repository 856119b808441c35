"""Fixtures: the small modules, saved once, and pictures for them."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules


@pytest.fixture(scope="session")
def modules_dir(tmp_path_factory):
    """Folder of saved modules: ours/1 (16 pixels, resized to 20), callable, signature, fixed (24
    pixels), text."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "ours").mkdir()
    tiny_modules.save_ours(folder / "ours")
    tiny_modules.save_callable(folder / "callable")
    tiny_modules.save_callable(folder / "fixed", 24)
    tiny_modules.save_signature(folder / "signature")
    tiny_modules.save_text(folder / "text")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 11 PNGs of 20x20 pixels in two classes, and {path: pixels}."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = {}
    for i in range(11):
        path = folder / ("dark" if i % 2 else "light") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels[str(path)] = (
            np.random.default_rng(i)
            .integers(0, 128 if i % 2 else 256, [20, 20, 3])
            .astype(np.uint8)
        )
        path.write_bytes(tf.io.encode_png(pixels[str(path)]).numpy())
    return folder, pixels

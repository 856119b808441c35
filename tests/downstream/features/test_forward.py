"""A forward pass on several replicas gives the bits of one; with XLA, its values. Run again with
four devices by tests/test_four_replicas.py."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.classifiers import predictions as classify
from tfssl.downstream.features.extract import extract
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def pictures_with_gaps(tmp_path_factory):
    """23 pictures of 20x20 pixels, of which four cannot be read."""
    folder = tmp_path_factory.mktemp("gaps")
    for i in range(23):
        pixels = np.random.default_rng(i).integers(0, 256, [20, 20, 3]).astype(np.uint8)
        broken = i in (2, 9, 10, 21)
        content = b"\x89PNG broken" if broken else tf.io.encode_png(pixels).numpy()
        (folder / f"{i:02}.png").write_bytes(content)
    return tfssl.open_source(f"folder:{folder}")


@pytest.mark.parametrize("batch_size", [3, 64])
def test_replicas_give_the_bits_of_one_device(
    modules_dir, pictures_with_gaps, replicas, batch_size
):
    folder, names = modules_dir / "ours" / "1", ["stem", "block", "pre_logits", "pixels"]
    alone = extract(str(folder), pictures_with_gaps, names, batch_size=batch_size)
    with replicas.scope():
        module = modules.load(folder)
        together = extract(module, pictures_with_gaps, names, batch_size=batch_size)
    names_of_broken = ("02.png", "09.png", "10.png", "21.png")
    source = pictures_with_gaps
    expected = [i for i in range(23) if not source.name(i).endswith(names_of_broken)]
    assert list(together.index) == list(alone.index) == expected  # in global order, none blank
    assert together.dropped == alone.dropped and len(alone.dropped) == 4
    for name in names:
        np.testing.assert_array_equal(together.endpoints[name], alone.endpoints[name])
    assert together.images.strategy is replicas
    images = tf.cast(tf.random.stateless_uniform([2, 16, 16, 3], [0, 1], 0, 255), tf.uint8)
    on_one = [part.images.encoder(["block"], 2)(images)["block"] for part in (alone, together)]
    np.testing.assert_array_equal(*on_one)  # for protocols that compute on one device


def test_replicas_classify_as_one_device(modules_dir, pictures_with_gaps, replicas, monkeypatch):
    monkeypatch.setattr(classify, "check", lambda module: None)

    def load():
        module = modules.load(modules_dir / "ours" / "1")
        maps = module.endpoints
        module.endpoints = lambda x: {n: maps(x)["pre_logits"] for n in ("logits", "probabilities")}
        return module

    def rows(module):
        return list(classify.predictions(module, pictures_with_gaps, batch_size=3))

    alone = rows(load())
    with replicas.scope():
        together = rows(load())
    for name in ("logits", "probabilities", "label", "index"):
        one, other = (np.concatenate([batch[name] for batch in run]) for run in (alone, together))
        np.testing.assert_array_equal(one, other)


def test_compiled_by_xla_it_computes_the_same(modules_dir, pictures_with_gaps):
    """On one device: TensorFlow compiles nothing for several CPUs."""
    folder = str(modules_dir / "ours" / "1")
    plain, compiled = (
        extract(folder, pictures_with_gaps, ["block", "pixels"], target=200, jit_compile=xla)
        for xla in (False, True)
    )
    for name in ("block", "pixels"):
        np.testing.assert_allclose(
            compiled.endpoints[name], plain.endpoints[name], rtol=1e-5, atol=1e-5
        )


def test_pixels_are_averaged_over_areas_that_do_not_divide(pictures_with_gaps, modules_dir):
    """16 pixels become 5 by TensorFlow's own resizing by area."""
    folder = str(modules_dir / "ours" / "1")
    whole, small = (
        extract(folder, pictures_with_gaps, ["pixels"], target=t).endpoints["pixels"]
        for t in (9000, 75)
    )
    expected = tf.image.resize(whole.reshape(-1, 16, 16, 3), [5, 5], "area")
    np.testing.assert_allclose(small, np.reshape(expected, [-1, 75]), atol=1e-6)

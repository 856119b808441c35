"""Inference in 16 bits: what a product computes, by TensorFlow's own in that type; and all else
untouched."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules

from tfssl.hub import load as modules
from tfssl.hub import precision


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("made", ["ours/1", "callable", "signature"])
def test_products_are_of_the_type_and_all_else_is_float32(modules_dir, made, kind):
    module = precision.load(modules_dir / made, f"mixed_{kind}")
    images = tf.random.stateless_uniform([3, 16, 16, 3], [0, 1])
    encoder = tiny_modules.Encoder()

    def product(x, kernel, stride):
        x, kernel = tf.cast(x, kind), tf.cast(kernel, kind)
        return tf.cast(tf.nn.conv2d(x, kernel, stride, "SAME"), tf.float32)

    stem = tf.nn.relu(product(images - 0.5, encoder.first, 1))
    block = tf.nn.relu(product(stem, encoder.second, 2))
    vector = tf.reduce_mean(block, [1, 2])
    found = module.endpoints(images)
    expected = {
        "ours/1": {"stem": stem, "block": block, "pre_logits": vector},
        "callable": {"output": vector},
        "signature": {"default": vector, "net/block": block},
    }[made]
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
        assert found[name].dtype == tf.float32
    plain = modules.load(modules_dir / made)
    last = list(expected)[-1]
    assert not np.array_equal(plain.endpoints(images)[last], found[last])
    assert all(v.dtype == tf.float32 for v in module.variables)


def test_identity_is_of_the_precision_and_the_same_again(modules_dir):
    folder = modules_dir / "ours" / "1"
    found = [precision.load(folder, p).identity for p in (*precision_names(), *precision_names())]
    assert found[:3] == found[3:] and len(set(found)) == 3
    assert found[0] == modules.load(folder).identity


@pytest.mark.parametrize("kind", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_range_of_pixels_in_the_handle(modules_dir, kind):
    """HANDLE#-1..1 of an image in [0, 1] is HANDLE of 2 x - 1, and another module for caches."""
    plain = precision.load(modules_dir / "callable", kind)
    signed = precision.load(f"{modules_dir / 'callable'}#-1..1", kind)
    images = tf.random.stateless_uniform([3, 16, 16, 3], [0, 1])
    (found,), (expected,) = (
        module.endpoints(x).values() for module, x in ((signed, images), (plain, 2 * images - 1))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert signed.identity != plain.identity
    assert modules.pixels_of(signed.handle) == modules.pixels_of(plain.handle) == signed.pixels


def precision_names():
    return "float32", "mixed_bfloat16", "mixed_float16"


def test_gradients_pass_and_a_dense_layer_is_rewritten(tmp_path):
    kernel = tf.Variable(tf.random.stateless_normal([4, 4, 3, 5], [1, 2]))
    matrix = tf.Variable(tf.random.stateless_normal([5, 2], [3, 4]))
    module = tf.train.Checkpoint(kernel=kernel, matrix=matrix)

    def inner(images):
        maps = tf.nn.conv2d(images, kernel, 4, "VALID")
        return tf.einsum("nhwc,cd->nd", maps, matrix) + tf.reduce_mean(maps, [1, 2]) @ matrix

    spec = tf.TensorSpec([None, 8, 8, 3])
    module.__call__ = tf.function(lambda images: inner(images), input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures={})
    images = tf.random.stateless_uniform([2, 8, 8, 3], [5, 6])
    whole, half = (precision.load(tmp_path, p) for p in ("float32", "mixed_bfloat16"))
    outputs, gradients = [], []
    for loaded in (whole, half):
        with tf.GradientTape() as tape:
            output = loaded.endpoints(images)["output"]
            loss = tf.reduce_sum(output**2)
        outputs.append(output)
        gradients.append(tape.gradient(loss, loaded.variables))
    np.testing.assert_allclose(*outputs, rtol=0.05, atol=0.1)
    assert not np.array_equal(*outputs)
    for of_whole, of_half in zip(*gradients):
        scale = np.abs(of_whole).max()
        np.testing.assert_allclose(of_whole, of_half, rtol=0, atol=0.05 * scale)

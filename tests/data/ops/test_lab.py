"""L*a*b* against scikit-image, and known colors."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl.data.ops import lab


def colours():
    levels = np.arange(0, 256, 5) / 255
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_scikit_image(dtype):
    rgb = colours()
    found = lab.from_rgb(rgb.astype(dtype)).numpy()
    assert found.dtype == dtype
    np.testing.assert_allclose(found, color.rgb2lab(rgb), atol=1e-3)
    np.testing.assert_allclose(lab.to_rgb(color.rgb2lab(rgb).astype(dtype)), rgb, atol=1e-4)


def test_known_colours():
    """White, black and gray have no color; L of a middle gray by the formula; primaries as CIE's
    tables have them."""
    found = lab.from_rgb(
        tf.constant([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [0, 0, 1]])
    ).numpy()
    gray = 116 * (((0.5 + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16
    np.testing.assert_allclose(found[:3], [[100, 0, 0], [0, 0, 0], [gray, 0, 0]], atol=0.02)
    np.testing.assert_allclose(
        found[3:], [[53.24, 80.09, 67.20], [32.30, 79.19, -107.86]], atol=0.02
    )


def test_outside_is_clipped_and_shapes_are_kept():
    odd = tf.constant([[[[50.0, 120, 0], [101, 0, 0], [-3, 0, 0]]]])
    rgb = lab.to_rgb(odd).numpy()
    assert rgb.shape == (1, 1, 3, 3) and rgb.min() == 0 and rgb.max() == 1
    np.testing.assert_allclose(
        rgb[0, 0, 0], np.clip(color.lab2rgb(odd[0, 0, 0].numpy()), 0, 1), atol=1e-4
    )


def test_half_precision_computes_in_float32_and_compiles():
    rgb = tf.cast(colours()[::50], tf.bfloat16)
    found = tf.function(lab.from_rgb, jit_compile=True)(rgb)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, color.rgb2lab(tf.cast(rgb, tf.float64).numpy()), atol=2e-3)


def test_gradients_are_finite():
    x = tf.constant([[0.0, 0.0, 0.0], [0.04, 0.5, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(lab.from_rgb(x))
    assert np.isfinite(tape.gradient(y, x)).all()

"""tfssl.data.photometric against tf.image, colorsys and np.rot90, in plain TensorFlow and in XLA."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from tfssl.data import photometric
from tfssl.errors import UserError

DTYPES = [tf.float16, tf.bfloat16, tf.float32, tf.float64]
TOLERANCE = {tf.float16: 4e-3, tf.bfloat16: 3e-2, tf.float32: 1e-5, tf.float64: 1e-12}


def pictures(count=6, size=9, low=0.0, high=1.0):
    """[count, size, size, 3] of noise, with pure colours, grays, black and white in the first rows of each."""
    images = np.random.default_rng(0).uniform(low, high, [count, size, size, 3])
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(8, 3)
    images[:, 0, :8] = low + (high - low) * corners
    images[:, 1] = np.linspace(low, high, size)[None, :, None]
    return images


def compiled(function, *inputs, jit_compile):
    return tf.function(function, jit_compile=jit_compile)(*inputs)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("low, high", [(0, 1), (-0.13, 1.13), (-1, 0)])
def test_saturation_is_tf_images_for_each_image(low, high, jit_compile):
    images = pictures(low=low, high=high).astype(np.float32)
    factors = np.array([0.0, 0.5, 1.0, 1.2, 1.5, 4.0], np.float32)
    got = compiled(photometric.adjust_saturation, images, factors, jit_compile=jit_compile)
    want = [tf.image.adjust_saturation(image, factor) for image, factor in zip(images, factors)]
    np.testing.assert_allclose(got, want, atol=1e-5)
    if low == 0:
        np.testing.assert_allclose(got[2], images[2], atol=1e-6)


def test_saturation_is_that_of_hsv():
    images = pictures(count=2)
    factors = np.array([0.6, 1.4])
    got = photometric.adjust_saturation(tf.constant(images), factors).numpy()
    for image, factor, new in zip(images, factors, got):
        for before, after in zip(image.reshape(-1, 3), new.reshape(-1, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            want = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
            np.testing.assert_allclose(after, want, atol=1e-12)


def test_brightness_is_added_and_not_clipped():
    images = pictures(count=3).astype(np.float32)
    got = photometric.adjust_brightness(images, [-0.5, 0.0, 0.7])
    for image, delta, new in zip(images, (-0.5, 0.0, 0.7), got):
        np.testing.assert_allclose(new, tf.image.adjust_brightness(image, delta), atol=1e-6)
    assert np.min(got) < 0 and np.max(got) > 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inception_color_is_the_recipe_of_slim(jit_compile):
    """Orders 0 to 3 as the recipe numbers them, of which 0 is brightness first; the ends of both ranges."""
    orders = [0, 1, 2, 3] * 3
    shifts = np.repeat([-32 / 255, 0.05, 32 / 255], 4)
    factors = np.repeat([1.5, 0.5, 1.5], 4)
    images = pictures(count=12).astype(np.float32)
    want = []
    for image, order, shift, factor in zip(images, orders, shifts, factors):
        if order == 0:
            image = tf.image.adjust_saturation(tf.image.adjust_brightness(image, shift), factor)
        else:
            image = tf.image.adjust_brightness(tf.image.adjust_saturation(image, factor), shift)
        want.append(tf.clip_by_value(image, 0, 1))
    draws = np.stack([(shifts * 255 / 32 + 1) / 2, factors - 0.5, (np.array(orders) + 0.5) / 4], -1).astype(np.float32)
    got = compiled(photometric.inception_color, images, draws, jit_compile=jit_compile)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(np.array(want[0]) - want[1]).max() > 0.03  # the order matters
    assert 0 <= np.min(got) and np.max(got) <= 1


def test_inception_color_takes_uniform_draws():
    """On (0.5, 0.375, 0.25) the outcome tells the draws: only brightness moves the largest channel.

    V - min is 0.25 times the factor whatever the order, because brightness moves V and min alike.
    """
    count = 4000
    images = np.broadcast_to(np.array([0.5, 0.375, 0.25], np.float32), [count, 1, 1, 3])
    new = photometric.inception_color(images, tf.random.stateless_uniform([count, 3], [1, 2])).numpy()[:, 0, 0]
    delta, factor = new[:, 0] - 0.5, (new[:, 0] - new[:, 2]) / 0.25
    for values, low, high in ((delta, -32 / 255, 32 / 255), (factor, 0.5, 1.5)):
        assert low <= values.min() + 1e-6 and values.max() <= high + 1e-6
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.02 * (high - low))
        np.testing.assert_allclose(values.std(), (high - low) / 12**0.5, rtol=0.05)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32])
def test_four_rotations_are_rot90(dtype, jit_compile):
    images = np.random.default_rng(0).integers(0, 256, [3, 7, 7, 3]).astype(dtype.as_numpy_dtype)
    got = compiled(photometric.four_rotations, images, jit_compile=jit_compile)
    assert got.shape == (12, 7, 7, 3) and got.dtype == dtype
    for row, image in enumerate(np.array(got)):
        np.testing.assert_array_equal(image, np.rot90(images[row // 4], k=row % 4))


def test_four_rotations_of_an_unknown_number_of_images():
    spec = tf.TensorSpec([None, 4, 4, 1], tf.float32)
    rotate = tf.function(photometric.four_rotations, input_signature=[spec])
    assert rotate.get_concrete_function().output_shapes.as_list() == [None, 4, 4, 1]
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(rotate(image)[3], np.rot90(image[0], 3))
    with pytest.raises(UserError, match="4 x 5"):
        photometric.four_rotations(np.zeros([1, 4, 5, 3]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_flip_lr_mirrors_the_masked(jit_compile):
    images = pictures(count=3, size=8)
    mask = np.array([True, False, True])
    got = compiled(photometric.flip_lr, images, mask, jit_compile=jit_compile)
    np.testing.assert_array_equal(got, np.where(mask[:, None, None, None], images[:, :, ::-1], images))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_dtypes_are_kept(dtype, jit_compile):
    images, draws = pictures(), np.random.default_rng(1).uniform(size=[6, 3]).astype(np.float32)
    exact = photometric.inception_color(tf.constant(images), draws).numpy()
    got = compiled(photometric.inception_color, tf.cast(images, dtype), draws, jit_compile=jit_compile)
    assert got.dtype == dtype
    np.testing.assert_allclose(tf.cast(got, tf.float64), exact, atol=TOLERANCE[dtype])
    flipped = compiled(photometric.flip_lr, tf.cast(images, dtype), draws[:, 0] < 2, jit_compile=jit_compile)
    turned = compiled(photometric.four_rotations, tf.cast(images, dtype), jit_compile=jit_compile)
    assert flipped.dtype == turned.dtype == dtype


def test_shapes_stay_static():
    spec = [tf.TensorSpec([5, 8, 8, 3]), tf.TensorSpec([5, 3]), tf.TensorSpec([5], tf.bool)]

    @tf.function(input_signature=spec)
    def shapes(images, draws, mask):
        return [
            photometric.inception_color(images, draws),
            photometric.flip_lr(images, mask),
            photometric.four_rotations(images),
        ]

    found = [output.shape.as_list() for output in shapes.get_concrete_function().structured_outputs]
    assert found == [[5, 8, 8, 3], [5, 8, 8, 3], [20, 8, 8, 3]]

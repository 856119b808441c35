"""tfssl.data.ops.photometric against tf.image, colorsys, scipy and np.rot90, in plain TensorFlow
and in XLA."""

import colorsys
import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from sklearn.datasets import load_sample_images

from tfssl.data.ops import photometric
from tfssl.errors import UserError

DTYPES = [tf.float16, tf.bfloat16, tf.float32, tf.float64]
TOLERANCE = {tf.float16: 4e-3, tf.bfloat16: 3e-2, tf.float32: 1e-5, tf.float64: 1e-12}


def pictures(count=6, size=9, low=0.0, high=1.0):
    """[count, size, size, 3] of noise, with pure colors, grays, black and white in the first rows
    of each."""
    images = np.random.default_rng(0).uniform(low, high, [count, size, size, 3])
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(8, 3)
    images[:, 0, :8] = low + (high - low) * corners
    images[:, 1] = np.linspace(low, high, size)[None, :, None]
    return images


def photographs(count, size=24):
    """[count, size, size, 3] float32 in [0, 1]: parts of two photographs; the last one half gray,
    half saturated."""
    rng = np.random.default_rng(3)
    images = np.stack(load_sample_images().images)[:, ::4, ::4].astype(np.float32) / 255
    places = rng.integers(0, [2, *(np.array(images.shape[1:3]) - size)], [count, 3])
    parts = np.stack([images[i, y : y + size, x : x + size] for i, y, x in places])
    parts[-1, : size // 2] = parts[-1, : size // 2, :, :1]
    parts[-1, size // 2 :] = np.round(parts[-1, size // 2 :])
    return parts


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


@pytest.mark.parametrize("jit_compile", [False, True])
def test_contrast_along_principal_components(jit_compile):
    """Against a singular value decomposition, whose signs are others and whose order is the
    opposite."""
    images = photographs(5)
    factors = np.random.default_rng(0).uniform(0.5, 2, [5, 3]).astype(np.float32)
    factors[0] = 1
    got = compiled(photometric.scale_components, images, factors, jit_compile=jit_compile)
    for image, factor, new in zip(images.astype(np.float64), factors, got.numpy()):
        pixels = image.reshape(-1, 3)
        mean = pixels.mean(0)
        axes = np.linalg.svd(pixels - mean, full_matrices=False)[2]  # a row each, the largest first
        want = mean + sum(
            f * np.outer((pixels - mean) @ axis, axis) for f, axis in zip(factor[::-1], axes)
        )
        np.testing.assert_allclose(new.reshape(-1, 3), want, atol=1e-5)
    np.testing.assert_allclose(got[0], images[0], atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_power_factor_and_offset_of_hsv(jit_compile):
    images = pictures(count=4)
    rng = np.random.default_rng(1)
    powers, factors = rng.uniform(0.25, 4, [4, 2]), rng.uniform(0.7, 1.4, [4, 2])
    offsets, hue = rng.uniform(-0.1, 0.1, [4, 2]), rng.uniform(-0.1, 0.1, 4)
    got = compiled(
        photometric.adjust_hsv,
        tf.constant(images),
        powers,
        factors,
        offsets,
        hue,
        jit_compile=jit_compile,
    )
    for n, (image, new) in enumerate(zip(images, got.numpy())):
        for before, after in zip(image.reshape(-1, 3), new.reshape(-1, 3)):
            h, *sv = colorsys.rgb_to_hsv(*before)
            s, v = np.clip(np.array(sv) ** powers[n] * factors[n] + offsets[n], 0, 1)
            np.testing.assert_allclose(
                after, colorsys.hsv_to_rgb((h + hue[n]) % 1, s, v), atol=1e-9
            )


def test_brightness_is_added_and_not_clipped():
    images = pictures(count=3).astype(np.float32)
    got = photometric.adjust_brightness(images, [-0.5, 0.0, 0.7])
    for image, delta, new in zip(images, (-0.5, 0.0, 0.7), got):
        np.testing.assert_allclose(new, tf.image.adjust_brightness(image, delta), atol=1e-6)
    assert np.min(got) < 0 and np.max(got) > 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inception_color_is_the_recipe_of_slim(jit_compile):
    """Orders 0 to 3 as the recipe numbers them, of which 0 is brightness first; the ends of both
    ranges."""
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
    draws = np.stack(
        [(shifts * 255 / 32 + 1) / 2, factors - 0.5, (np.array(orders) + 0.5) / 4], -1
    ).astype(np.float32)
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
    new = photometric.inception_color(
        images, tf.random.stateless_uniform([count, 3], [1, 2])
    ).numpy()[:, 0, 0]
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
    np.testing.assert_array_equal(
        got, np.where(mask[:, None, None, None], images[:, :, ::-1], images)
    )


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_dtypes_are_kept(dtype, jit_compile):
    images, draws = pictures(), np.random.default_rng(1).uniform(size=[6, 3]).astype(np.float32)
    exact = photometric.inception_color(tf.constant(images), draws).numpy()
    got = compiled(
        photometric.inception_color, tf.cast(images, dtype), draws, jit_compile=jit_compile
    )
    assert got.dtype == dtype
    np.testing.assert_allclose(tf.cast(got, tf.float64), exact, atol=TOLERANCE[dtype])
    flipped = compiled(
        photometric.flip_lr, tf.cast(images, dtype), draws[:, 0] < 2, jit_compile=jit_compile
    )
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


# What the contrastive methods use.

# op, its parameter for each of six images, and what tf.image does to one
PER_IMAGE = {
    "scale_brightness": ([0.0, 0.2, 1.0, 1.4, 1.8, 2.0], lambda image, factor: image * factor),
    "adjust_contrast": ([0.0, 0.2, 1.0, 1.4, 1.8, 2.0], tf.image.adjust_contrast),
    "adjust_hue": ([-1.0, -0.2, 0.0, 0.1, 0.2, 0.9], tf.image.adjust_hue),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_colours_are_tf_images_for_each_image(name, jit_compile):
    parameters, plain = PER_IMAGE[name]
    for images in (photographs(6), pictures().astype(np.float32)):
        want = [plain(image, parameter) for image, parameter in zip(images, parameters)]
        got = compiled(
            getattr(photometric, name), images, np.float32(parameters), jit_compile=jit_compile
        )
        np.testing.assert_allclose(
            got, want, atol=2e-5
        )  # tf.image's hue is good to 1e-5 where colors are nearly gray
        alone = getattr(photometric, name)(images[3:4], np.float32(parameters[3:4]))
        np.testing.assert_allclose(alone[0], want[3], atol=2e-5)


def test_gray_is_tf_images():
    images = photographs(3)
    want = np.repeat(tf.image.rgb_to_grayscale(images), 3, axis=-1)
    np.testing.assert_allclose(photometric.drop_color(images), want, atol=1e-6)


def jitter_by_hand(image, order, values, additive):
    """One image through tf.image's ops; `order` names them by number, as does `values`."""
    ops = [
        (lambda x, v: tf.image.adjust_brightness(x, v)) if additive else (lambda x, v: x * v),
        tf.image.adjust_contrast,
        tf.image.adjust_saturation,
        tf.image.adjust_hue,
    ]
    for i in order:
        image = tf.clip_by_value(ops[i](image, values[i]), 0, 1)
    return image


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("additive", [False, True])
def test_jitter_is_tf_images_in_each_of_the_24_orders(additive, jit_compile):
    orders = list(itertools.permutations(range(4))) * 2
    rng = np.random.default_rng(0)
    values = rng.uniform(
        [-0.8 if additive else 0.2, 0.2, 0.2, -0.2],
        [0.8 if additive else 1.8, 1.8, 1.8, 0.2],
        [48, 4],
    )
    values = values.astype(np.float32)
    times = np.argsort(orders, axis=1).astype(np.float32)  # when each has its turn
    images = photographs(48)
    want = np.stack([jitter_by_hand(*row, additive) for row in zip(images, orders, values)])
    assert np.abs(want[:24] - want[24:]).max() > 0.1
    jitter = tf.function(
        lambda x, v, t: photometric.color_jitter(x, *tf.unstack(v, axis=1), t, additive),
        jit_compile=jit_compile,
    )
    # Where clipping or dark colors amplify the hue's rounding errors, single pixels are off by a
    # little more.
    together = np.abs(jitter(images, values, times) - want)
    alone = np.abs(
        np.concatenate(
            [jitter(images[i : i + 1], values[i : i + 1], times[i : i + 1]) for i in range(48)]
        )
        - want
    )
    for difference in (together, alone):
        assert difference.max() < 1e-3 and np.mean(difference > 1e-5) < 1e-3


@pytest.mark.parametrize("jit_compile", [False, True])
def test_solarize_inverts_from_the_threshold_on(jit_compile):
    images = np.float32([0, 0.25, 0.5, 0.75, 1]).reshape(1, 1, 5, 1).repeat(2, 0)
    got = compiled(photometric.solarize, images, np.float32([0.5, 0.7]), jit_compile=jit_compile)
    np.testing.assert_array_equal(
        np.ravel(got), np.float32([0, 0.25, 0.5, 0.25, 0, 0, 0.25, 0.5, 0.25, 0])
    )


def test_blur_has_the_published_taps():
    assert [photometric.blur_taps(size) for size in (224, 96, 64, 32)] == [23, 9, 7, 3]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("edges, mode", [("zero", "constant"), ("reflect", "mirror")])
def test_blur_is_scipys_for_each_image(edges, mode, channels, jit_compile):
    images = np.random.default_rng(0).uniform(size=[3, 21, 26, channels])
    sigmas = np.array([0.1, 0.7, 2.0])
    got = compiled(
        lambda x, s: photometric.gaussian_blur(x, s, 7, edges),
        images,
        sigmas,
        jit_compile=jit_compile,
    )
    for image, sigma, new in zip(images, sigmas, np.array(got)):
        taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
        for axis in (0, 1):
            image = scipy.ndimage.correlate1d(image, taps / taps.sum(), axis, mode=mode)
        np.testing.assert_allclose(new, image, atol=1e-12)


def test_blur_is_the_published_depthwise_convolution():
    images, sigma = photographs(2, size=64), 1.3
    radius = 64 // 10 // 2
    taps = np.exp(-(np.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = np.tile((taps / taps.sum()).astype(np.float32)[:, None, None, None], [1, 1, 3, 1])
    want = tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")
    want = tf.nn.depthwise_conv2d(want, kernel.transpose(1, 0, 2, 3), [1, 1, 1, 1], "SAME")
    got = photometric.gaussian_blur(images, [sigma, sigma])
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.mean(got[:, 0]) < 0.8 * np.mean(got[:, 8])  # zeros beyond the border: it is dark
    with pytest.raises(UserError, match="zero or reflect"):
        photometric.gaussian_blur(images, [1.0, 1.0], edges="wrap")


def test_noise_is_normal_and_a_function_of_the_key():
    images = np.full([4, 40, 40, 3], 0.5, np.float32)
    keys = np.float32([0.1, 0.1, 0.1 + 1e-6, 0.7])
    got = np.array(photometric.gaussian_noise(images, np.float32([1, 1, 1, 0.1]), keys)) - images
    np.testing.assert_array_equal(got[0], got[1])
    for noise, scale in zip(got, (1, 1, 1, 0.1)):
        assert scipy.stats.kstest(np.ravel(noise) / scale, "norm").pvalue > 1e-3
    for other in (2, 3):
        assert abs(np.corrcoef(np.ravel(got[0]), np.ravel(got[other]))[0, 1]) < 0.06
    neighbours = np.corrcoef(np.ravel(got[0])[:-1], np.ravel(got[0])[1:])[0, 1]
    assert abs(neighbours) < 0.06
    again = tf.function(photometric.gaussian_noise, jit_compile=True)(
        images, np.float32([1, 1, 1, 0.1]), keys
    )
    np.testing.assert_allclose(again, got + images, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_the_length_of_tf_images_gradient(channels, jit_compile):
    images = photographs(3)[..., :channels]
    gradient = tf.image.sobel_edges(tf.constant(images)).numpy()
    want = np.minimum(np.sqrt((gradient**2).sum(-1)) / 4, 1)
    np.testing.assert_allclose(
        compiled(photometric.sobel, images, jit_compile=jit_compile), want, atol=1e-5
    )
    step = np.zeros([1, 6, 6, 1], np.float32)
    step[:, :, 3:] = 1
    np.testing.assert_allclose(photometric.sobel(step)[0, :, :, 0], [[0, 0, 1, 1, 0, 0]] * 6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_cutout_fills_a_square(jit_compile):
    images = np.random.default_rng(0).uniform(size=[3, 10, 12, 2])
    centers = np.array([[0.5, 0.5], [0.0, 0.0], [0.999, 0.25]])
    got = compiled(
        lambda x, c: photometric.cutout(x, c, 4), images, centers, jit_compile=jit_compile
    )
    want = images.copy()
    want[0, 3:7, 4:8] = 0.5
    want[1, :2, :2] = 0.5
    want[2, 8:, 1:5] = 0.5
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_quarter_turns_are_rot90_for_each_image(jit_compile):
    images = np.random.default_rng(0).uniform(size=[4, 6, 6, 2])
    got = compiled(
        photometric.quarter_turns, images, np.array([3, 0, 2, 1]), jit_compile=jit_compile
    )
    np.testing.assert_array_equal(
        got, [np.rot90(image, k) for image, k in zip(images, (3, 0, 2, 1))]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_dtypes_are_kept_by_what_contrastive_methods_use(dtype, jit_compile):
    images, half = photographs(4), np.full([4], 0.5)
    times = np.tile([3.0, 1.0, 0.0, 2.0], [4, 1])
    ops = {
        "scale_brightness": lambda x: photometric.scale_brightness(x, half),
        "contrast": lambda x: photometric.adjust_contrast(x, half),
        "hue": lambda x: photometric.adjust_hue(x, half / 4),
        "gray": photometric.drop_color,
        "jitter": lambda x: photometric.color_jitter(x, half, half, half, half / 4, times),
        "solarize": lambda x: photometric.solarize(x, half + 0.27),
        "blur": lambda x: photometric.gaussian_blur(x, half, 3),
        "noise": lambda x: photometric.gaussian_noise(x, half / 5, half),
        "sobel": photometric.sobel,
        "cutout": lambda x: photometric.cutout(x, tf.stack([half, half], 1), 4),
        "turns": lambda x: photometric.quarter_turns(x, [0, 1, 2, 3]),
    }
    images = np.array(tf.cast(tf.cast(images, dtype), tf.float64))  # what the type can tell apart
    for name, op in ops.items():
        got = compiled(op, tf.cast(images, dtype), jit_compile=jit_compile)
        assert got.dtype == dtype and got.shape == images.shape, name
        difference = np.abs(tf.cast(got, tf.float64) - op(tf.constant(images)))
        assert np.mean(difference > 2 * TOLERANCE[dtype]) < 1e-3, (
            name
        )  # solarize jumps at its threshold


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colours_refuse_what_is_not_rgb(channels):
    images, one = np.zeros([2, 4, 4, channels], np.float32), np.ones([2], np.float32)
    for op in (
        lambda: photometric.adjust_saturation(images, one),
        lambda: photometric.adjust_hue(images, one),
        lambda: photometric.drop_color(images),
        lambda: photometric.scale_components(images, np.ones([2, 3])),
        lambda: photometric.adjust_hsv(images, *np.ones([3, 2, 2]), one),
    ):
        with pytest.raises(
            UserError, match=f"images with {channels} channels: colours need 3"
        ) as error:
            op()
        assert "\n" not in str(error.value)

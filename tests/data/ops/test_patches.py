"""tfssl.data.ops.patches against naive slices, the numbers of the 2019 study, and TensorFlow's own
standardization."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tfssl.data.ops import patches as ops


def seed(number):
    return tf.constant([7, number], tf.int64)


def test_the_studys_grid_in_evaluation():
    """Of 292 pixels the central 255 begin at 18, and of a cell of 85 the central 64 at 10."""
    expected = [(18 + 85 * i + 10, 18 + 85 * j + 10) for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(ops.grid_offsets(None, 292, 255, 3, 64), expected)


def test_random_places_stay_in_their_cells():
    corners = np.array([(85 * i, 85 * j) for i in range(3) for j in range(3)])
    places = (
        np.stack([ops.grid_offsets(seed(n), 292, 255, 3, 64).numpy() for n in range(400)]) - corners
    )
    assert places.min() >= 0 and places.max() <= (292 - 255) + (85 - 64)
    beside = places - places[:, :1]  # free of the crop's place, which the nine share
    assert beside.min() == -21 and beside.max() == 21
    assert len({tuple(p) for p in places[:, 4].tolist()}) > 300  # y and x on their own


def test_crop_and_jitter_are_uniform():
    """A margin of one pixel each: their sum is 0, 1 or 2 with probabilities 1/4, 1/2, 1/4."""
    corners = np.array([(2 * i, 2 * j) for i in range(2) for j in range(2)])
    sums = np.stack([ops.grid_offsets(seed(n), 5, 4, 2, 1).numpy() for n in range(1000)]) - corners
    shares = np.bincount(sums.ravel(), minlength=3) / sums.size
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    np.testing.assert_array_equal(
        ops.grid_offsets(seed(3), 292, 255, 3, 64), ops.grid_offsets(seed(3), 292, 255, 3, 64)
    )


def test_cut_is_slicing():
    image = np.random.default_rng(0).integers(0, 256, [40, 30, 3], np.uint8)
    offsets = [(0, 0), (32, 22), (5, 17)]
    expected = [image[y : y + 8, x : x + 8] for y, x in offsets]
    np.testing.assert_array_equal(ops.cut(tf.constant(image), tf.constant(offsets), 8), expected)


def test_patches_lie_where_the_gradients_are():
    """The share of all numbers in [0, 1) that choose a place is that of the gradients in the patch
    there."""
    image = np.random.default_rng(0).integers(0, 256, [7, 9, 3], np.uint8)
    levels = image.mean(-1)
    mass = np.zeros([4, 6])
    for y, x in np.ndindex(4, 6):
        patch = levels[y : y + 4, x : x + 4]
        for i, j in np.ndindex(3, 3):
            mass[y, x] += np.hypot(patch[i + 1, j] - patch[i, j], patch[i, j + 1] - patch[i, j])
    found = np.zeros([4, 6])
    for u in (np.arange(1000) + 0.5) / 1000:
        found[tuple(ops.salient_corner(image, u, 4).numpy())] += 1 / 1000
    np.testing.assert_allclose(found, mass / mass.sum(), atol=1.1e-3)


def test_an_image_of_one_colour_has_patches_everywhere():
    flat = np.full([6, 5, 3], 200, np.uint8)
    found = {tuple(ops.salient_corner(flat, u, 4).numpy()) for u in (np.arange(12) + 0.5) / 12}
    assert found == set(np.ndindex(3, 2))
    np.testing.assert_array_equal(ops.salient_corner(flat[:5], 0.99, 5), [0, 0])


def by_scipy(image, corner, size, shift, scale, degrees):
    """In the complex plane, where turning to the left is multiplying by e^(i angle)."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    seen = (columns - 1j * rows) * np.exp(-1j * np.radians(degrees)) / scale
    middle = np.array(corner) + (size - 1) / 2 + size * np.array(shift)
    at = [middle[0] - seen.imag, middle[1] + seen.real]
    channels = [
        scipy.ndimage.map_coordinates(c, at, order=1, mode="reflect")
        for c in np.moveaxis(image, -1, 0) * 1.0
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize(
    "corner,shift,scale,angle",
    [
        ((8, 12), (0.2, -0.1), 1.4, 20.0),
        ((0, 0), (-0.2, -0.2), 0.7, -13.0),
        ((21, 9), (0.2, 0.2), 0.8, 5.0),
    ],
)
def test_affine_patches(corner, shift, scale, angle):
    """Also where they leave the image."""
    image = np.random.default_rng(0).integers(0, 256, [30, 40, 3], np.uint8)
    found = tf.function(ops.affine_patch)(
        image, corner, 9, tf.constant(shift), tf.constant(scale), tf.constant(angle)
    )
    np.testing.assert_allclose(found, by_scipy(image, corner, 9, shift, scale, angle), atol=0.51)


def test_affine_patches_on_the_grid():
    image = np.random.default_rng(0).integers(0, 256, [30, 40, 3], np.uint8)
    patch = image[5:13, 7:15]
    zero = tf.zeros([2])
    np.testing.assert_array_equal(ops.affine_patch(image, [5, 7], 8, zero, 1.0, 0.0), patch)
    np.testing.assert_array_equal(
        ops.affine_patch(image, [5, 7], 8, zero, 1.0, 90.0), np.rot90(patch)
    )
    moved = ops.affine_patch(image, [5, 7], 8, tf.constant([0.25, -0.5]), 1.0, 0.0)
    np.testing.assert_array_equal(moved, image[7:15, 3:11])


def test_gray_is_the_mean_of_the_channels():
    levels = np.arange(256, dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 256, [2, 64, 3], np.uint8)
    images = np.concatenate(
        [images, np.repeat(levels.reshape(2, 128, 1), 3, 2)], 1
    )  # gray stays what it is
    expected = np.floor(images.sum(-1, dtype=int) / 3 + 0.5)  # thirds are never halves
    np.testing.assert_array_equal(
        ops.gray(tf.constant(images)), np.repeat(expected[..., None], 3, -1)
    )


@pytest.mark.parametrize("height,width,grid", [(9, 9, 3), (10, 14, 3), (11, 9, 2), (8, 8, 4)])
def test_cells_of_a_batch(height, width, grid):
    images = np.random.default_rng(0).random([2, height, width, 3], np.float32)
    h, w = height // grid, width // grid
    top, left = (height - grid * h) // 2, (width - grid * w) // 2
    expected = [
        image[top + i * h : top + (i + 1) * h, left + j * w : left + (j + 1) * w]
        for image in images
        for i in range(grid)
        for j in range(grid)
    ]
    np.testing.assert_array_equal(ops.grid_cells(tf.constant(images), grid), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_standardize_is_tensorflows(dtype):
    """Of the levels, where its floor lies: a patch of one color, or nearly, is not blown up beyond
    that."""
    levels = np.random.default_rng(0).integers(0, 256, [4, 8, 6, 3]).astype(np.float64)
    levels[1] = 200
    levels[2] = 200
    levels[2, 0, 0, 0] = 201
    levels[3] = 0.01 * (levels[3] > 128)  # deviates by less than 1 / sqrt(144)
    images = tf.cast(tf.constant(levels) / 255, dtype)
    found = ops.standardize(images)
    exact = tf.cast(images, tf.float64).numpy() * 255  # what half precision leaves of the levels
    deviation = np.maximum(exact.std((1, 2, 3), keepdims=True), 144**-0.5)
    expected = (exact - exact.mean((1, 2, 3), keepdims=True)) / deviation
    assert found.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(found, expected, atol=1e-9 if dtype == "float64" else 3e-3)
    np.testing.assert_allclose(
        found, tf.image.per_image_standardization(exact.astype(np.float32)), atol=3e-3
    )

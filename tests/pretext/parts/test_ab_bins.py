"""Color bins: the gamut, counting, soft targets by the formula, files."""

import numpy as np
import pytest
import tensorflow as tf
from skimage import color

from tfssl.data import open_source
from tfssl.errors import UserError
from tfssl.pretext.parts import ab_bins


@pytest.fixture(scope="module")
def bins():
    return ab_bins.of_gamut()


def test_gamut(bins):
    """Every color's nearest grid point is a bin; every bin is some color's; the grid is
    regular."""
    assert len(bins.points) == 261 and bins.prior is None
    rng = np.random.default_rng(0)
    rgb = np.concatenate([rng.random([20000, 3]), rng.integers(0, 2, [64, 3])])
    cells = {tuple(cell) for cell in np.round(color.rgb2lab(rgb)[:, 1:] / 10) * 10}
    assert cells <= {tuple(point) for point in bins.points}
    assert np.all(bins.points % 10 == 0)
    assert len(ab_bins.of_gamut(20).points) < 90


@pytest.mark.parametrize("nearest", [1, 2, 10, 261])
def test_the_table_is_the_formula(bins, nearest):
    """Row by row: the Gaussian of the distance, over the nearest bins; where nothing was left out
    for being 0 in float32."""
    chosen, shares = bins.table(nearest)
    assert chosen.dtype == np.int32 and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    rng = np.random.default_rng(0)
    for a, b in [*rng.integers(-128, 128, [40, 2]), (0, 0), (-128, 127)]:
        distance = np.hypot(*(bins.points - [a, b]).T)
        kept = np.argsort(distance, kind="stable")[:nearest]
        expected = np.zeros(261)
        expected[kept] = np.exp(-(distance[kept] ** 2 - distance.min() ** 2) / 50)
        found = np.zeros(261)
        np.add.at(found, chosen[256 * (a + 128) + b + 128], shares[256 * (a + 128) + b + 128])
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-7)


def test_one_bin_is_a_hard_label(bins):
    chosen, shares = bins.table(1)
    assert chosen.shape == shares.shape == (65536, 1) and np.all(shares == 1)
    with pytest.raises(UserError, match="nearest=262: there are 261 bins"):
        bins.table(262)


def test_gray_images_have_no_color(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        gray = rng.integers(0, 256, [16, 16, 1]).repeat(3, -1).astype(np.uint8)
        (tmp_path / f"{i}.jpg").write_bytes(tf.io.encode_jpeg(gray).numpy())
    with pytest.raises(
        UserError,
        match="the 3 images that were looked at are gray: there is no color to learn from",
    ):
        ab_bins.of_images(open_source(f"folder:{tmp_path}"))
    with pytest.raises(UserError, match="have no color"):
        ab_bins.Bins(np.zeros([1, 2])).table(10)


def test_weights_are_the_formula():
    prior = np.array([0.6, 0.3, 0.1, 0.0])
    weights = ab_bins.Bins(np.zeros([4, 2]), prior).weights(0.5)
    mixed = 0.5 * prior[:3] + 0.5 / 3
    np.testing.assert_allclose(weights[:3] / weights[0], mixed[0] / mixed)
    assert weights[3] == 0 and np.sum(prior * weights) == pytest.approx(1)
    np.testing.assert_allclose(ab_bins.Bins(np.zeros([4, 2]), prior).weights(1.0)[:3], 1)
    np.testing.assert_array_equal(ab_bins.of_gamut().weights(0.5), 1)


def test_counting(tmp_path):
    """Images of known colors, a gray one among them, and a file that cannot be read."""
    colors = np.array([[200, 30, 30], [200, 30, 30], [128, 128, 128], [20, 60, 180]], np.uint8)
    for i, rgb in enumerate(colors):
        picture = np.broadcast_to(rgb, [10, 14, 3])
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(picture).numpy())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    found = ab_bins.of_images(open_source(f"folder:{tmp_path}", "all"))
    cells = np.round(color.rgb2lab(colors / 255.0)[:, 1:] / 10) * 10
    expected = {tuple(cell): np.mean((cells == cell).all(1)) for cell in cells}
    assert {tuple(p): s for p, s in zip(found.points, found.prior)} == pytest.approx(expected)
    smooth = ab_bins.of_images(open_source(f"folder:{tmp_path}", "all"), smooth=50.0)
    assert smooth.prior.sum() == pytest.approx(1) and smooth.prior.max() < found.prior.max()


def test_files(bins, tmp_path):
    held = ab_bins.Bins(bins.points, np.full(261, 1 / 261))
    held.save(str(tmp_path / "bins.npz"))
    again = ab_bins.read(str(tmp_path / "bins.npz"))
    np.testing.assert_array_equal(again.points, held.points)
    np.testing.assert_array_equal(again.prior, held.prior)
    np.save(tmp_path / "points.npy", bins.points)
    np.savetxt(tmp_path / "points.txt", bins.points)
    for name in ("points.npy", "points.txt"):
        read = ab_bins.read(str(tmp_path / name))
        np.testing.assert_allclose(read.points, bins.points)
        assert read.prior is None
    np.save(tmp_path / "odd.npy", np.zeros([3, 3]))
    (tmp_path / "no.npz").write_bytes(b"text")
    for name, message in {
        "odd": r"array \(3, 3\)",
        "no": "holds no colour bins",
        "none": "no file of colour bins",
    }.items():
        with pytest.raises(UserError, match=message):
            ab_bins.read(str(tmp_path / (name + (".npy" if name == "odd" else ".npz"))))


def test_command(photos, tmp_path, tfssl_command):
    done = tfssl_command(
        "ab_bins", f"--dataset=folder:{photos}", f"--output={tmp_path}/new/bins.npz"
    )
    assert (
        done.returncode == 0
        and "bins; the most frequent" in done.stdout
        and "reaches 261" in done.stdout
    ), done.stderr
    assert ab_bins.read(str(tmp_path / "new" / "bins.npz")).prior.sum() == pytest.approx(1)
    done = tfssl_command("ab_bins", "--dataset=folder:/no/such/place")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr

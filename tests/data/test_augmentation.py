"""tfssl.data.augmentation: the policies are the published ones, and host and device draw from the
distribution of plain tf.image."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from sklearn.datasets import load_sample_images

from tfssl.data import augmentation
from tfssl.data.augmentation import POLICIES, HostDraws, Policy
from tfssl.data.ops import photometric
from tfssl.data.ops.draws import Draws, fork
from tfssl.errors import UserError

SIZE = 20
OFF = Policy(flip=0.0, jitter=0.0, gray=0.0, blur=0.0)  # nothing happens but what a test asks for
OFF_WITH_PILLOWS = dataclasses.replace(OFF, photometric=0.5)


@pytest.fixture(scope="module")
def photographs():
    """[8, 20, 20, 3] float32 in [0, 1]: parts of two photographs."""
    rng = np.random.default_rng(5)
    images = np.stack(load_sample_images().images)[:, ::6, ::6].astype(np.float32) / 255
    places = rng.integers(0, [2, *(np.array(images.shape[1:3]) - SIZE)], [40, 3])
    parts = [images[i, y : y + SIZE, x : x + SIZE] for i, y, x in places]
    return np.stack([part for part in parts if part.min() < 0.3 and part.max() > 0.7][:8])


def batch_draws(rows, seed=0, step=0, global_rows=None, first=0):
    number = step * (global_rows or rows) + first + np.arange(rows)
    return Draws(
        {
            "seed": tf.fill([rows], tf.constant(seed, tf.int64)),
            "number": tf.constant(number, tf.int64),
        },
        (global_rows or rows) // rows,
    )


def on_device(policy, images, seed=0, view=0):
    return np.array(policy.apply(tf.constant(images), batch_draws(len(images), seed), view))


def on_host(policy, image, views, count, seed=0):
    """[count * views, H, W, C]: the views of examples 0, 1, ... whose image is the same."""

    def example(number):
        draws = HostDraws(tf.stack([tf.constant(seed, tf.int64), number]), views)
        return policy.apply(tf.repeat(image[None], views, 0), draws)

    return np.concatenate(list(tf.data.Dataset.range(count).map(example).as_numpy_iterator()))


def test_policies_are_the_published():
    """Jitter (brightness, contrast, saturation, hue), its probability; gray; crop; blur of either
    view; solarize of either view."""
    published = {
        "simclr": ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, (0.08, 1), (0.5, 0.5), (0, 0)),
        "moco_v1": ((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, (0.2, 1), (0, 0), (0, 0)),
        "pirl": ((0.4, 0.4, 0.4, 0.2), 1.0, 0.2, (0.08, 1), (0, 0), (0, 0)),
        "pirl_photometric": ((0.4, 0.4, 0.4, 0.2), 1.0, 0.2, (0.08, 1), (0, 0), (0, 0)),
        "moco_v2": ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, (0.2, 1), (0.5, 0.5), (0, 0)),
        "byol": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.08, 1), (1.0, 0.1), (0, 0.2)),
        "barlow_twins": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.08, 1), (1.0, 0.1), (0, 0.2)),
        "moco_v3": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.08, 1), (1.0, 0.1), (0, 0.2)),
        "dino": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.14, 1), (1.0, 0.1), (0, 0.2)),
        "lejepa": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.3, 1), (0.5, 0.5), (0.2, 0.2)),
        "swav": ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, (0.14, 1), (0.5, 0.5), (0, 0)),
        "infomin": ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, (0.2, 1), (0.5, 0.5), (0, 0)),
        "crop": ((0.8, 0.8, 0.8, 0.2), 0, 0, (0.08, 1), (0, 0), (0, 0)),
        "torch_crop": ((0.8, 0.8, 0.8, 0.2), 0, 0, (0.08, 1), (0, 0), (0, 0)),
        "cifar": ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, (0.08, 1), (0, 0), (0, 0)),
        "cifar_byol": ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.08, 1), (0, 0), (0, 0.2)),
    }
    assert set(published) == set(POLICIES)
    for name, (jitter, probability, gray, area, blur, solarize) in published.items():
        views = augmentation.per_view(name, 2)
        for i, view in enumerate(views):
            assert (view.brightness, view.contrast, view.saturation, view.hue) == jitter, name
            assert (view.jitter, view.gray, view.crop_area, view.flip) == (
                probability,
                gray,
                area,
                0.5,
            ), name
            assert (view.blur, view.solarize, view.blur_sigma) == (
                blur[i],
                solarize[i],
                (0.1, 2.0),
            ), name
            assert (view.additive, view.solarize_threshold) == (name == "byol", 0.5)
            assert view.gray_at == {"moco_v1": "before", "infomin": "last"}.get(name, "after")
            randaugment = (view.randaugment, view.randaugment_magnitude, view.randaugment_deviation)
            assert randaugment == (2 if name == "infomin" else 0, 10, 0.5)
            assert (view.rotate, view.sobel, view.cutout, view.noise) == (0, 0, 0, 0)
            assert view.photometric == (0.66 if name == "pirl_photometric" else 0)
            tensorflow = ("byol" if name == "byol" else "tf", "bicubic", 0, "zero")
            method = "pillow_bicubic" if name in ("barlow_twins", "dino") else "pillow"
            torch = ("torch", method, 13, "reflect")
            crop = (view.crop_sampler, view.crop_method, view.blur_taps, view.blur_edges)
            ours = name in ("simclr", "byol", "crop", "cifar", "cifar_byol")
            assert crop == (tensorflow if ours else torch), name


def test_per_view_repeats_and_scales():
    byol = augmentation.per_view("byol", 5, strength=0.5)
    assert [view.solarize for view in byol] == [0, 0.2, 0, 0.2, 0]
    assert (byol[0].brightness, byol[0].saturation, byol[0].jitter) == (0.2, 0.1, 0.8)
    assert (
        augmentation.per_view("simclr", 1, 0.5)[0].scaled(2)
        == POLICIES["simclr"]
        == augmentation.per_view(Policy(), 2)[1]
    )
    with pytest.raises(UserError, match="'simclear': choose one of crop, torch_crop, simclr"):
        augmentation.per_view("simclear", 2)
    for wrong in ({"flip": 1.5}, {"gray_at": "never"}, {"crop_sampler": "slim"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Policy(**wrong)


def plain(image, s=1.0, additive=False):
    """SimCLR's colors as its papers print them, with tf.image's own random ops."""

    def brightness(x):
        if additive:
            return tf.image.random_brightness(x, 0.8 * s)
        return x * tf.random.uniform([], max(0, 1 - 0.8 * s), 1 + 0.8 * s)

    def one(x, i):
        ops = [
            lambda: brightness(x),
            lambda: tf.image.random_contrast(x, 1 - 0.8 * s, 1 + 0.8 * s),
            lambda: tf.image.random_saturation(x, 1 - 0.8 * s, 1 + 0.8 * s),
            lambda: tf.image.random_hue(x, 0.2 * s),
        ]
        return tf.clip_by_value(tf.switch_case(i, ops), 0, 1)

    def jitter(x):
        order = tf.random.shuffle(tf.range(4))
        for i in range(4):
            x = one(x, order[i])
        return x

    image = tf.image.random_flip_left_right(image)
    image = tf.cond(tf.random.uniform([]) < 0.8, lambda: jitter(image), lambda: image)
    return tf.cond(
        tf.random.uniform([]) < 0.2,
        lambda: tf.repeat(tf.image.rgb_to_grayscale(image), 3, axis=-1),
        lambda: image,
    )


def statistics(images):
    """[n, k]: what the colors change: channel means, spreads and corners, and how colourful a
    picture is."""
    quantiles = np.quantile(images, [0.1, 0.5, 0.9], axis=(1, 2, 3)).T
    colourful = (images.max(-1) - images.min(-1)).mean((1, 2))
    found = np.concatenate(
        [images.mean((1, 2)), images.std((1, 2)), images[:, 0, 0], quantiles, colourful[:, None]], 1
    )
    return np.round(
        found, 4
    )  # an image that no coin changed is a point mass, which rounding errors must not split


@pytest.mark.parametrize("additive", [False, True])
def test_host_and_device_have_the_distribution_of_plain_tf_image(photographs, additive):
    """Kolmogorov and Smirnov's test of every statistic; the seeds are fixed."""
    count, image = 1500, tf.constant(photographs[0])
    policy = Policy(additive=additive, blur=0.0)
    tf.random.set_seed(1)
    want = tf.data.Dataset.range(count).map(lambda i: plain(image, additive=additive)).batch(count)
    want = statistics(next(iter(want)).numpy())
    host = statistics(on_host(policy, image, 2, count // 2))
    device = statistics(on_device(policy, np.repeat(photographs[:1], count, 0), seed=3))
    for got in (host, device):
        for ours, theirs in zip(got.T, want.T):
            assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-4
            np.testing.assert_allclose(
                [ours.mean(), ours.std()], [theirs.mean(), theirs.std()], rtol=0.15, atol=0.01
            )


def test_orders_are_equally_likely(monkeypatch):
    seen = []
    plan = photometric.plan_jitter
    monkeypatch.setattr(
        photometric,
        "plan_jitter",
        lambda b, c, s, h, times, *rest: seen.append(times) or plan(b, c, s, h, times, *rest),
    )
    on_device(dataclasses.replace(OFF, jitter=1.0), np.zeros([4800, 1, 1, 3], np.float32))
    orders = [tuple(order) for order in np.argsort(seen[0], axis=1)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 4800 and scipy.stats.chisquare(counts).pvalue > 1e-3
    seen.clear()
    on_device(
        dataclasses.replace(OFF, jitter=1.0, random_order=False), np.zeros([9, 1, 1, 3], np.float32)
    )
    np.testing.assert_array_equal(np.argsort(seen[0], axis=1), [[0, 1, 2, 3]] * 9)


# probability field -> what it does to images, told from the outcome
TELLS = {
    "flip": lambda new, old: np.isclose(new, old[:, :, ::-1]).all((1, 2, 3)),
    "gray": lambda new, old: np.ptp(new, axis=-1).max((1, 2)) < 1e-6,
    "solarize": lambda new, old: np.isclose(new, np.where(old < 0.5, old, 1 - old)).all((1, 2, 3)),
    "rotate": lambda new, old: np.any(
        [np.isclose(new, np.rot90(old, k, (1, 2))).all((1, 2, 3)) for k in (1, 2, 3)], 0
    ),
    "cutout": lambda new, old: (
        ((new == 0.5).all(-1).sum((1, 2)) >= 25)
        & (np.isclose(new, old) | (new == 0.5)).all((1, 2, 3))
    ),
    "noise": lambda new, old: (new != old).any((1, 2, 3)),
    "sobel": lambda new, old: np.isclose(new, photometric.sobel(tf.constant(old))).all((1, 2, 3)),
    "blur": lambda new, old: new[:, 0].mean((1, 2)) < old[:, 0].mean((1, 2)) * 0.9999,
}


@pytest.mark.parametrize("name", TELLS)
def test_each_op_comes_with_its_probability(name, photographs):
    policy = dataclasses.replace(OFF, **{name: 0.3}, blur_sigma=(1.0, 2.0))
    images = np.repeat(photographs[:1], 1200, 0)
    device = on_device(policy, images)
    host = on_host(policy, tf.constant(photographs[0]), 3, 400)
    for new in (device, host):
        happened = TELLS[name](new, images)
        assert abs(happened.mean() - 0.3) < 4 * (0.3 * 0.7 / 1200) ** 0.5
        np.testing.assert_array_equal(new[~happened], images[~happened])
    assert not np.array_equal(TELLS[name](device, images), TELLS[name](host, images))


@pytest.mark.parametrize("name", POLICIES)
def test_a_seed_gives_the_same_views(name, photographs):
    for view, policy in enumerate(augmentation.per_view(name, 2)):
        policy = dataclasses.replace(policy, randaugment=0, photometric=0)
        once, again, other = (on_device(policy, photographs, seed, view) for seed in (0, 0, 1))
        np.testing.assert_array_equal(once, again)
        assert np.abs(once - other).max() > 0.1
        assert np.abs(once - on_device(policy, photographs, 0, view + 1)).max() > 0.1
        assert once.shape == photographs.shape and once.min() >= 0 and once.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["simclr", "infomin"])
def test_host_views_are_a_function_of_seed_and_example(name, photographs):
    image = tf.constant(photographs[0])
    once, again, other = (on_host(POLICIES[name], image, 2, 6, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    for i, j in itertools.combinations(range(12), 2):
        assert np.abs(once[i] - once[j]).max() > 0.01
    assert np.abs(once - other).max() > 0.1


def test_replicas_see_what_one_device_sees(photographs):
    policy = dataclasses.replace(POLICIES["byol"][1], noise=0.5, cutout=0.5)
    whole = policy.apply(tf.constant(photographs), batch_draws(8, step=5))
    halves = [
        policy.apply(
            tf.constant(photographs[first : first + 4]),
            batch_draws(4, step=5, global_rows=8, first=first),
        )
        for first in (0, 4)
    ]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-6)


def test_compiled_is_plain(photographs):
    """With the same numbers drawn, XLA and plain TensorFlow, one image and many, give the same
    view."""
    policy = dataclasses.replace(POLICIES["simclr"], blur=0.0, rotate=0.3, sobel=0.1, cutout=0.3)
    seed = tf.constant([0, 7], tf.int64)
    alone = policy.apply(tf.constant(photographs), HostDraws(seed, 8))

    class Batch:  # not a HostDraws
        uniform = HostDraws(seed, 8).uniform

    together = policy.apply(tf.constant(photographs), Batch())
    compiled = tf.function(policy.apply, jit_compile=True)
    assert compiled(tf.constant(photographs), batch_draws(8)).shape == photographs.shape
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64], ids=lambda dtype: dtype.name
)
def test_dtypes_are_kept(dtype, photographs):
    policy = Policy(rotate=0.5, sobel=0.5, cutout=0.5, noise=0.5, solarize=0.5)
    images = tf.cast(photographs, dtype)
    assert (
        policy.apply(images, batch_draws(8)).dtype
        == policy.apply(images, HostDraws(tf.constant([0, 1], tf.int64), 8)).dtype
        == dtype
    )


def test_floatx_float64(float64, photographs):
    assert (
        POLICIES["simclr"].apply(tf.constant(photographs, tf.float64), batch_draws(8)).dtype
        == tf.float64
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_without_colours_any_number_of_channels(channels):
    images = np.random.default_rng(0).uniform(size=[4, 12, 12, channels]).astype(np.float32)
    policy = dataclasses.replace(
        OFF, flip=0.5, blur=0.5, solarize=0.5, rotate=0.5, sobel=0.5, cutout=0.5, noise=0.5
    )
    assert on_device(policy, images).shape == images.shape
    gray = dataclasses.replace(OFF, gray=1.0)
    np.testing.assert_array_equal(on_device(gray, images), images)
    host = HostDraws(tf.constant([0, 1], tf.int64), 4)
    for colored in (dataclasses.replace(OFF, randaugment=2), OFF_WITH_PILLOWS):
        with pytest.raises(UserError, match=f"with {channels} channels: they need 3"):
            colored.apply(images, host)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_the_jitter_of_any_channels_is_brightness_and_contrast(channels):
    """Against the definition: brightness times a factor, contrast about the channel's mean, each
    cut at 1, in either order."""
    images = np.random.default_rng(0).uniform(size=[16, 12, 12, channels]).astype(np.float32)
    policy = dataclasses.replace(OFF, jitter=1.0)
    draws = Draws({"number": tf.range(16, dtype=tf.int64), "seed": tf.zeros([16], tf.int64)})
    found = policy.apply(tf.constant(images), draws).numpy()
    _, amounts, *_ = policy._draw(draws, 0, images.shape)
    orders = set()
    for image, got, drawn in zip(images.astype(np.float64), found, amounts.numpy()):
        brightness, contrast, *_, brightness_at, contrast_at, _, _ = drawn[:8]
        steps = [
            (brightness_at, lambda x, by=brightness: np.minimum(x * by, 1)),
            (
                contrast_at,
                lambda x, by=contrast: np.clip((x - x.mean((0, 1))) * by + x.mean((0, 1)), 0, 1),
            ),
        ]
        for _, step in sorted(steps, key=lambda step: step[0]):
            image = step(image)
        orders.add(brightness_at < contrast_at)
        np.testing.assert_allclose(got, image, atol=1e-5)
    assert len(orders) == 2


@pytest.mark.parametrize("name", ["infomin", "pirl_photometric"])
def test_pillows_ops_are_refused_on_the_device(name, photographs):
    with pytest.raises(UserError, match="host only"):
        on_device(POLICIES[name], photographs)


def test_pirls_photometric_step_comes_between_jitter_and_gray(photographs):
    """To two thirds of the views, each with amounts of its own; what is grayed was stretched
    channel by channel before."""
    image = photographs[0]
    new = on_host(dataclasses.replace(OFF, photometric=0.66), tf.constant(image), 3, 200)
    happened = np.abs(new - image).max((1, 2, 3)) > 0
    assert abs(happened.mean() - 0.66) < 4 * (0.66 * 0.34 / 600) ** 0.5
    assert len(np.unique(new[happened].mean((1, 2, 3)))) > 0.9 * happened.sum()
    by_hand = dataclasses.replace(OFF, photometric=1.0), dataclasses.replace(OFF, gray=1.0)
    both = on_host(dataclasses.replace(OFF, photometric=1.0, gray=1.0), tf.constant(image), 1, 5)
    for i, got in enumerate(both):
        draws = HostDraws(tf.constant([0, i], tf.int64), 1)
        want = by_hand[1].apply(by_hand[0].apply(tf.constant(image[None]), draws), draws)[0]
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_host_views_are_crops_and_colours(photographs):
    """Of an encoded image: with nothing but crops, those of `crop` before it rounds; in the order
    of the policies."""
    image = (255 * photographs[0]).astype(np.uint8)
    seed = tf.constant([3, 9], tf.int64)
    policies = (
        OFF,
        dataclasses.replace(OFF, crop_area=(0.3, 0.5)),
        dataclasses.replace(OFF, gray=1.0),
    )
    views = augmentation.host_views(tf.io.encode_png(image), seed, policies, 16)
    assert views.shape == (3, 16, 16, 3) and views.dtype == tf.float32
    for view in (0, 1):
        rounded = policies[view].crop(image, fork(seed, view), 16)
        np.testing.assert_allclose(255 * views[view], rounded, atol=0.51)
    assert np.ptp(views[2], axis=-1).max() < 1e-6 < np.ptp(views[0], axis=-1).max()


def test_crops_have_the_areas_of_the_policy():
    """On an image whose red rises to the right and whose green rises downwards, a crop's corners
    tell its area."""
    size = 200
    ramp = np.arange(size, dtype=np.uint8)
    image = np.stack([*np.meshgrid(ramp, ramp), np.zeros([size, size], np.uint8)], -1)
    policy = dataclasses.replace(POLICIES["swav"], crop_area=(0.05, 0.14))
    crops = tf.data.Dataset.range(300).map(
        lambda i: policy.crop(image, tf.stack([tf.constant(0, tf.int64), i]), 50)
    )
    crops = np.stack(list(crops.as_numpy_iterator())).astype(float)
    assert crops.shape == (300, 50, 50, 3)
    width = (crops[:, 25, -1, 0] - crops[:, 25, 0, 0]) * 50 / 49
    height = (crops[:, -1, 25, 1] - crops[:, 0, 25, 1]) * 50 / 49
    areas = width * height / size**2
    assert 0.045 < areas.min() < 0.06 and 0.125 < areas.max() < 0.15
    assert 0.7 < (width / height).min() < 0.8 and 1.25 < (width / height).max() < 1.45


@pytest.mark.parametrize("size", [96, 32])
def test_the_blur_of_torchs_policies_is_as_wide_as_pillows(size):
    """The standard deviation of a point under sigma = 2: Pillow's is 1.996; SimCLR's window leaves
    1.85 at 96 and 0.8 at 32."""
    policy = dataclasses.replace(
        POLICIES["swav"], flip=0.0, jitter=0.0, gray=0.0, blur=1.0, blur_sigma=(2.0, 2.0)
    )
    point = np.zeros([1, size, size, 3], np.float32)
    point[0, size // 2, size // 2] = 1
    profile = on_device(policy, point)[0, :, :, 0].sum(1)
    place = np.arange(size) - size // 2
    assert 1.94 < (profile @ place**2 / profile.sum()) ** 0.5 < 2.0


def test_a_policy_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"jitter": 1, "crop_area": [0.5, 1], "hue": 0, "gray_at": "last"}')
    wanted = Policy(jitter=1, crop_area=(0.5, 1), hue=0, gray_at="last")
    assert augmentation.per_view(str(path), 2) == (wanted, wanted)
    path.write_text('[{"blur": 1.0}, {}]')
    assert augmentation.per_view(str(path), 3) == (Policy(blur=1.0), Policy(), Policy(blur=1.0))
    for text, reason in (
        ('{"jiter": 1}', "no field 'jiter'; there are crop_area, "),
        ('{"jitter": "often"}', 'jitter is "often", and takes a number, such as 0.8'),
        ('{"additive": 1}', "additive is 1, and takes true or false"),
        ('{"crop_area": [1, 0.5]}', "takes two numbers, the smaller first"),
        ('{"blur_taps": 2.5}', "an integer"),
        ('{"flip": 2}', "flip=2: it is a probability"),
        ("[1]", "no object"),
        ("{", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(reason)) as error:
            augmentation.per_view(str(path), 2)
        assert "\n" not in str(error.value) and "mine.json" in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        augmentation.per_view(str(tmp_path / "none.json"), 2)

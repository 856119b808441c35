"""Views of images: their areas, policies, what is refused, and the alarm of a collapse."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import task, tiny, train
from sequences import Sequences

import tfssl
from tfssl import pretext
from tfssl.data import augmentation
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.parts.views import Views, cell_centers


def test_views_are_crops_of_one_image(source):
    """Two groups of sizes; the first two views differ; the same seed, the same views; evaluation is
    deterministic."""
    model = task(
        "swav", projection_hidden=8, projection_size=4, prototypes=5, small_crops=3, small_size=8
    )
    record = tf.io.encode_png(
        tf.cast(tf.random.stateless_uniform([20, 24, 3], [0, 1], 0, 256, tf.int32), tf.uint8)
    )
    large, small = model.example({"image": record}, tf.constant([1, 2], tf.int64))["image"]
    assert large.shape == (2, 16, 16, 3) and small.shape == (3, 8, 8, 3)
    assert np.any(large[0] != large[1])
    again = model.example({"image": record}, tf.constant([1, 2], tf.int64))["image"][0]
    np.testing.assert_array_equal(large, again)
    np.testing.assert_array_equal(
        model.example({"image": record}, None)["image"][0],
        model.example({"image": record}, None)["image"][0],
    )


@functools.lru_cache
def drawn(area, sampler, covered):
    """Areas of 60 crops, as shares of the image's."""
    policy, areas = augmentation.Policy(area, sampler, covered), []
    for seed in range(60):
        _, extent = policy.sample_crop(tf.constant([375, 500, 3]), tf.constant([seed, 1], tf.int64))
        areas.append(int(extent[0] * extent[1]) / (375 * 500))
    return areas


@pytest.mark.parametrize("policy", augmentation.POLICIES)
@pytest.mark.parametrize(
    "name, settings",
    [
        ("swav", {"prototypes": 5}),
        ("swav", {"prototypes": 5, "min_area": 0.06}),
        ("pirl", {"num_images": 2}),
    ],
)
def test_crops_have_the_areas_that_are_asked_for(name, settings, policy):
    """In each group of views, whatever the policy wants covered: never the whole image in a group
    of small ones."""
    model = pretext.build(name, tiny(), image_size=224, augmentation=policy, **settings)
    groups = model.crops()
    assert len(groups) == 2
    for group, first in model._numbered(groups):
        low, high = group.area or (model.min_area or model.policies()[0].crop_area[0], 1.0)
        for region in model.regions(group, first)[:2]:
            policy = region.policy
            areas = drawn(policy.crop_area, policy.crop_sampler, policy.crop_covered)
            assert low - 0.002 <= min(areas) and max(areas) <= high + 0.002
            assert np.ptp(areas) > 0.6 * (high - low)


def test_the_policy_acts_on_host_and_device_alike(source):
    """As distributions: means and deviations of pixels over many draws."""
    found = {}
    for where in ("host", "device"):
        model = pretext.build(
            "simclr", tiny(), image_size=12, augmentation="simclr", augment_on=where
        )
        images = []
        for batch in model.dataset(source, 48, seed=3, steps=6):
            images.append(model.augment(model.to_float(batch), Draws(batch))["image"][0])
        images = tf.concat(images, 0).numpy()
        found[where] = (images.mean(), images.std(), images.mean((1, 2, 3)).std())
    np.testing.assert_allclose(found["host"], found["device"], atol=0.02)


def test_labels_are_never_required(source, photos, tmp_path):
    for path in photos.rglob("*.jpg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    history = train(task("simclr", projection_size=4), tfssl.open_source(f"folder:{tmp_path}"), 1)
    assert np.isfinite(history["loss"][0])


def test_a_collapse_is_told():
    model = task("simsiam", projection_size=8, prediction_size=4)
    assert "collapsed" in model.alarm({"spread": 0.01}) and model.alarm({"spread": 0.8}) is None


def test_a_model_that_cannot_be_made_twice_is_refused():
    class Own(tf.keras.Model):
        def __init__(self, dense):
            super().__init__()
            self.dense = dense

        def call(self, images):
            return self.dense(tf.reduce_mean(images, [1, 2]))

    with pytest.raises(UserError, match="cannot be made twice"):
        pretext.build("byol", Own(tf.keras.layers.Dense(3)), image_size=16)


@pytest.mark.parametrize(
    "name,settings,message",
    [
        ("simclr", {"augmentation": "none"}, "no augmentation policy 'none'"),
        ("simclr", {"augment_on": "gpu"}, "augment_on=gpu: choose one of device, host"),
        ("byol", {"momentum_schedule": "linear"}, "momentum_schedule=linear"),
        ("instance_discrimination", {}, "num_images is missing"),
        ("instance_discrimination", {"num_images": 5, "negatives": 0}, "take form=cross_entropy"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        pretext.build(name, tiny(), **{"image_size": 16, **settings})


class Located(Views):
    """Nothing is learned: its views say where they lie."""

    located = True

    def call(self, batch, training=False):
        return self.embed(batch["image"][0], {}, training)


def coordinates(height, width):
    """A picture whose red and green are y and x: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(y + 0.5) / height, (x + 0.5) / width, 0 * y], -1)


@pytest.mark.parametrize("where", ["device", "host"])
def test_boxes_and_flips_tell_where_each_pixel_of_a_view_lies(where, tmp_path):
    """In the mean to a third of a pixel of the smaller image; to two pixels at the edges of crops
    that a JPEG's decoder reduces."""
    for i, size in enumerate([(60, 90), (200, 120)] * 4):
        encoded = tf.io.encode_jpeg(
            np.round(255 * coordinates(*size)).astype(np.uint8), quality=100
        )
        (tmp_path / f"{i}.jpg").write_bytes(encoded.numpy())
    source = tfssl.open_source(f"folder:{tmp_path}")
    model = Located(tiny(), image_size=24, augmentation="crop", augment_on=where)
    batch = model.to_float(next(iter(model.dataset(source, 8, seed=1))))
    tf.nest.assert_same_structure(batch, model.zero_batch(8))
    augmented = model.augment(batch, Draws(batch))
    seen, boxes, flipped = (augmented[name][0] for name in ("image", "crop_box", "flipped"))
    assert 3 < flipped.numpy().sum() < 13 and boxes.shape == (8, 2, 4)
    error = np.abs(seen[..., :2] - cell_centers(boxes, flipped, 24))
    assert error.max() < 2 / 60 and error.mean() < 0.005, (error.max(), error.mean())
    assert np.abs(seen[..., :2] - cell_centers(boxes, ~flipped, 24)).max() > 0.2

    for rows in (slice(0, 4), slice(4, 8)):  # of two replicas
        own = tf.nest.map_structure(lambda x: x[rows], batch)  # noqa: B023
        other = model.augment(own, Draws(own, replicas=2))
        for name in ("image", "crop_box", "flipped"):
            np.testing.assert_array_equal(other[name][0], augmented[name][0][rows])
    still = next(iter(model.evaluation_dataset(source, 8)))
    assert not still["flipped"][0].numpy().any()
    error = np.abs(
        model.to_float(still)["image"][0][..., :2]
        - cell_centers(still["crop_box"][0], still["flipped"][0], 24)
    )
    assert error.max() < 2 / 60


@pytest.mark.parametrize("policy", [{"rotate": 0.5}, {"randaugment": 2}])
def test_turned_views_have_no_box(policy, monkeypatch):
    monkeypatch.setitem(augmentation.POLICIES, "turning", augmentation.Policy(**policy))
    with pytest.raises(UserError, match="augmentation=turning turns or moves what views show"):
        Located(tiny(), image_size=16, augmentation="turning")


class Colored(Sequences):
    """Each frame of one color, which is its index."""

    def fetch(self, record):
        example = super().fetch(record)
        return {**example, "image": tf.fill([20, 20, 3], tf.cast(record["index"], tf.uint8))}


@pytest.mark.parametrize(
    "name, settings",
    [
        ("simclr", {}),
        ("swav", {"prototypes": 5, "small_crops": 3, "small_size": 8}),
        ("deepcluster_v2", {"clusters": 5, "small_crops": 3, "small_size": 8, "num_images": 40}),
        ("infomin", {"jigsaw_size": 24, "jigsaw_patch_size": 7, "jigsaw_augmentation": "crop"}),
        ("simclr", {"augment_on": "host"}),
    ],
)
def test_views_are_cut_in_turn_from_two_frames_of_a_sequence(name, settings):
    """That of the row and another one, uniform among those within the gap."""
    lengths, gap = [9, 1, 30], 3
    model = task(name, max_gap=gap, **{"projection_size": 4, **settings})
    source = Colored(lengths)
    rows = np.concatenate([np.arange(n) for n in lengths]), np.repeat(lengths, lengths)
    numbers = np.repeat(np.arange(3), lengths)
    begin = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    steps = 100 if name == "simclr" else 5
    counts = {}
    for batch in model.dataset(source, 40, steps=steps).as_numpy_iterator():
        groups = [x[..., 0].reshape(40, x.shape[1], -1) for x in batch["image"]]
        assert all((x == x[..., :1]).all() for x in groups)
        assert (batch["sequence"] == numbers[batch["index"]]).all()
        if name == "infomin":  # whose patches are of one crop
            assert (groups[1][..., 0] == groups[1][:, :1, 0]).all()
            groups[1] = groups[1][:, :1]
        colors = np.concatenate([x[..., 0] for x in groups], 1).astype(int)
        own, other = colors[:, ::2], colors[:, 1::2]
        assert (own == batch["index"][:, None]).all() and (other == other[:, :1]).all()
        for index, color in zip(batch["index"], other[:, 0]):
            place, length = rows[0][index], rows[1][index]
            reached = range(max(0, place - gap), min(length, place + gap + 1))
            assert color - begin[index] in reached
            counts.setdefault(len(reached), []).append(color - begin[index] - reached[0])
    if steps == 100:
        for reach, drawn in counts.items():
            observed = np.bincount(drawn, minlength=reach)
            expected = len(drawn) / reach
            assert ((observed - expected) ** 2 / expected).sum() < reach + 5 * (2 * reach) ** 0.5


def test_without_a_gap_frames_are_images_like_others():
    """Bit by bit those of the same images from a source that knows of no sequences."""

    class Images(Sequences):
        provides = ()

    model = task("simclr", projection_size=4)
    ours, theirs = (
        next(iter(model.dataset(cls([9, 7]), 8, seed=5))) for cls in (Sequences, Images)
    )
    tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_one_sequence_has_no_negatives(caplog):
    model = task("simclr", max_gap=3, projection_size=4)
    model.evaluation_dataset(Colored([9, 4]), 4)
    assert not caplog.text
    model.evaluation_dataset(Colored([9]), 4)
    assert "is one sequence, whose frames are not each other's negatives" in caplog.text


def test_where_two_frames_make_no_views(source):
    with pytest.raises(UserError, match="instance_discrimination' has one view of each image"):
        task("instance_discrimination", num_images=3, max_gap=1)
    with pytest.raises(UserError, match="pixpro' compares locations of one image: leave it out"):
        task("pixpro", max_gap=1)
    with pytest.raises(UserError, match="'rotation': got an unexpected keyword .*'max_gap'"):
        pretext.build("rotation", tiny(), max_gap=1)
    with pytest.raises(
        UserError, match="'simclr' with max_gap=1 needs 'frames' .* take frames:PATH$"
    ):
        task("simclr", max_gap=1).dataset(source, 4)

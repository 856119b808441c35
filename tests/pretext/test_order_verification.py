"""Order verification: its tuples against their definition, closed forms, and that it learns."""

import math

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import tiny
from scipy import stats
from sequences import Sequences

import tfssl
from tfssl import backbones, pretext
from tfssl.errors import UserError


def task(**settings):
    model = pretext.build(
        "order_verification", tiny(), **{"image_size": 16, "resize": 18, **settings}
    )
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.prepare()
    return model


def tuples(model, length, count, position=None):
    """int [count, 3], positions of tuples in a sequence, as a pipeline draws them."""
    examples = tf.data.Dataset.range(count).map(
        lambda n: model.clip(
            n % length if position is None else tf.constant(position, tf.int64),
            tf.constant(length, tf.int64),
            tf.stack([tf.constant(7, tf.int64), n]),
        )
    )
    return np.array(list(examples.as_numpy_iterator()))


@pytest.mark.parametrize("max_span, min_gap", [(60, 15), (8, 3), (2, 1)])
@pytest.mark.parametrize("length", [4, 5, 11, 30, 200])
def test_tuples_are_those_of_the_paper(length, max_span, min_gap):
    model = task(max_span=max_span, min_gap=min_gap)
    drawn = tuples(model, length, 3000)
    assert drawn.min() >= 0 and drawn.max() < length
    forward = drawn[:, 0] < drawn[:, 2]
    b, d = np.minimum(drawn[:, 0], drawn[:, 2]), np.maximum(drawn[:, 0], drawn[:, 2])
    middle, span = drawn[:, 1], d - b
    assert span.min() >= 2 and span.max() <= max_span
    positive = (b < middle) & (middle < d)
    outside = np.where(middle < b, b - middle, middle - d)[~positive]
    least = min(min_gap, length - 3)
    assert outside.min() >= least and outside.max() <= max(least, min(max_span, length - 3))
    for event, share in ((forward, 0.5), (positive, 0.25), (middle[~positive] < b[~positive], 0.5)):
        assert stats.binomtest(int(event.sum()), len(event), share).pvalue > 1e-4
    # The ends tell nothing of the middle one.
    for ends in (b, d, span):
        if len(set(ends)) > 1:
            assert stats.ks_2samp(ends[positive], ends[~positive]).pvalue > 1e-4
    assert stats.binomtest(int((positive & forward).sum()), int(positive.sum())).pvalue > 1e-4
    # The example's own frame is the first one, where the window fits.
    if length == 200:
        assert (tuples(model, length, 200, position=70).min(1) >= 70 - max_span).all()
        inner = tuples(model, length, 200, position=70)
        assert (np.minimum(inner[:, 0], inner[:, 2]) == 70).all()


def test_the_dataset_has_these_tuples_and_one_crop_of_each():
    """In training and in evaluation; a run that goes on sees what the whole one does."""
    source, model = Sequences([40, 3, 25]), task(max_span=9, min_gap=2)
    pixels = np.stack([e["image"] for e in source.records().map(source.fetch).as_numpy_iterator()])
    whole = list(model.dataset(source, 8, seed=4, steps=6).as_numpy_iterator())
    later = list(model.dataset(source, 8, seed=4, start_step=4, steps=2).as_numpy_iterator())
    for one, other in zip(later, whole[4:]):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    own = task(max_span=9, min_gap=2, min_area=1.0, flip=False, image_size=20, resize=20)
    begins = np.repeat([0, 40, 43], [40, 3, 25])
    for data in (own.dataset(source, 8, steps=4), own.evaluation_dataset(source, 8)):
        for batch in data.as_numpy_iterator():
            for row in np.flatnonzero(batch["weight"]):
                shown = pixels[begins[batch["index"][row]] + batch["positions"][row]]
                np.testing.assert_array_equal(batch["image"][row], shown)

    class Still(Sequences):
        def fetch(self, record):
            return {**super().fetch(record), "image": tf.constant(pixels[5])}

    for batch in model.dataset(Still([40]), 8, steps=2).as_numpy_iterator():
        np.testing.assert_array_equal(batch["image"][:, 0], batch["image"][:, 1])
        np.testing.assert_array_equal(batch["image"][:, 0], batch["image"][:, 2])


def test_levels():
    """A network that tells nothing: ln 2; one that knows the ratio: its entropy."""
    model = task(positives=0.25)
    positions = tf.constant(
        [[0, 3, 7], [7, 3, 0], [5, 3, 9], [5, 9, 7], [9, 3, 5], [0, 0, 0]], tf.int64
    )
    batch = {"positions": positions}
    loss, measured = model.objective(batch, tf.zeros([6, 2]))
    np.testing.assert_allclose(loss, [math.log(2)] * 5 + [0], rtol=1e-6)
    np.testing.assert_array_equal(measured["loss"][1], [1, 1, 1, 1, 1, 0])
    known = tf.math.log([[0.75, 0.25]] * 4)
    batch = {"positions": tf.constant([[1, 2, 3], [1, 0, 3], [3, 4, 1], [3, 0, 1]], tf.int64)}
    loss, measured = model.objective(batch, known)
    assert model.chance()["loss"] == pytest.approx(float(tf.reduce_mean(loss)))
    assert model.chance()["loss"] == pytest.approx(stats.entropy([0.25, 0.75]))
    right, weights = (x.numpy() for x in measured["accuracy"])
    assert (right * weights).sum() / weights.sum() == pytest.approx(model.chance()["accuracy"])
    assert task(positives=0.5).chance() == pytest.approx({"loss": math.log(2), "accuracy": 0.5})
    data = model.evaluation_dataset(Sequences([40, 40]), 8)
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(
        math.log(2), abs=0.01
    )


def test_short_sequences_have_no_part():
    """The loss is that of the others alone; none but short ones are refused."""
    model = task(max_span=8, min_gap=3)
    batch = next(iter(model.evaluation_dataset(Sequences([3, 1, 12]), 16)))
    assert batch["positions"].numpy()[:4].tolist() == [[0, 0, 0]] * 4
    logits = tf.random.stateless_normal([16, 2], [1, 2])
    loss, _ = model.objective(batch, logits)
    np.testing.assert_array_equal(loss[:4], 0)
    assert np.all(loss[4:] > 0)
    with pytest.raises(
        UserError, match="'order_verification' takes 4 frames .* sequences .train. has 3"
    ):
        model.dataset(Sequences([3, 2]), 4)
    with pytest.raises(UserError, match="needs 'frames' of each image"):
        model.dataset(tfssl.open_source("glyphs:3"), 4)


def test_settings_are_checked():
    for settings in ({"max_span": 1}, {"min_gap": 0}, {"min_gap": 9, "max_span": 8}):
        with pytest.raises(UserError, match="max_span="):
            task(**settings)
    with pytest.raises(UserError, match="positives=1"):
        task(positives=1.0)


class Dawn(Sequences):
    """It grows light from frame to frame."""

    def fetch(self, record):
        example = super().fetch(record)
        length = int((self._numbers == 0).sum())
        light = tf.cast(record["index"] % length, tf.float32) * (170 / length)
        image = 0.3 * tf.cast(example["image"], tf.float32) + light
        return {**example, "image": tf.cast(image, tf.uint8)}


def test_it_learns_what_is_between():
    """With a hidden layer, of held-out sequences."""
    model = pretext.build(
        "order_verification",
        backbones.build("resnet18_v2", 0.125, "small", bn_momentum=0.8),
        **{"image_size": 16, "resize": 16, "min_area": 1.0, "max_span": 8, "min_gap": 3},
        **{"positives": 0.5, "head_layers": 1, "head_units": 64},
    )
    model.compile(tf.keras.optimizers.Adam(3e-3))
    data = model.dataset(Dawn([24] * 40, size=16, seed=1), 16)
    model.fit(data, epochs=1, steps_per_epoch=240, verbose=0)
    held_out = Dawn([24] * 8, size=16, seed=2)
    result = model.evaluate(model.evaluation_dataset(held_out, 16), verbose=0, return_dict=True)
    assert result["accuracy"] > 0.75, result
    batch = next(iter(model.evaluation_dataset(held_out, 16)))
    seen = model.pictures(batch).numpy().reshape(16, 3, 16, 16, 3)
    logits = model(model.to_float(batch))
    between = np.sort(batch["positions"], 1)[:, 1] == batch["positions"][:, 1]
    right = np.argmax(logits, 1) == between
    expected = np.where(right[:, None], [0, 1, 0], [1, 0, 0])  # green, red
    np.testing.assert_array_equal(seen[:, 0, 0, 0], expected)
    np.testing.assert_allclose(
        seen[:, :, 1:-1, 1:-1], model.to_float(batch)["image"][:, :, 1:-1, 1:-1], atol=1e-6
    )

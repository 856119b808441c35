"""The whole example crosses the pipeline: a small task that learns from masks."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext
from tfssl.errors import UserError
from tfssl.pretext.task import Pretext
from tfssl.runtime import strategy as strategies


class Coverage(Pretext):
    """How much of the image is covered by its letter, as a regression; it keeps the letter's box and class beside the mask."""

    task = "coverage"
    needs = ("mask", "boxes")

    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.head = tf.keras.layers.Dense(1, name="head", dtype=tf.keras.backend.floatx())

    def example(self, example, seed):
        mask = tf.image.resize(example["mask"][..., None], [self.image_size] * 2, "nearest")
        box = {"corners": example["boxes"][0], "class": example["classes"][0]}
        image = tf.ensure_shape(example["image"], [self.image_size, self.image_size, 3])
        return {"image": image, "mask": tf.cast(mask, tf.int32), "box": box}

    def call(self, batch, training=False):
        return self.head(self.encode(batch["image"], training)["pre_logits"])[:, 0]

    def objective(self, batch, covered):
        return (covered - tf.reduce_mean(tf.cast(batch["mask"], covered.dtype), [1, 2, 3])) ** 2, {}

    def chance(self):
        return {"loss": 0.0}


@pytest.fixture(scope="module")
def glyphs():
    return tfssl.open_source("glyphs:40", image_size=16)


def build(**compiled):
    network = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2, name="conv")])
    model = pretext.build(Coverage, backbones.build(network), image_size=16)
    model.compile(tf.keras.optimizers.SGD(0.1), **compiled)
    return model


def test_all_of_an_example_is_in_the_batch_and_bytes_alone_are_scaled(glyphs):
    model = build()
    batch = next(iter(model.dataset(glyphs, 8, seed=1)))
    assert batch.keys() == model.zero_batch(8).keys()
    tf.nest.assert_same_structure(batch, model.zero_batch(8))
    floats = model.to_float(batch)
    for record, row in zip(glyphs.records(seed=1), range(8)):
        fetched = glyphs.fetch(record)
        np.testing.assert_allclose(floats["image"][row], fetched["image"].numpy() / 255, rtol=1e-6)
        np.testing.assert_array_equal(floats["mask"][row, ..., 0], fetched["mask"])
        np.testing.assert_array_equal(floats["box"]["corners"][row], fetched["boxes"][0])
        assert floats["box"]["class"][row] == floats["label"][row] == fetched["label"]
    dtypes = [
        floats["image"].dtype,
        floats["mask"].dtype,
        floats["box"]["corners"].dtype,
        floats["label"].dtype,
    ]
    assert dtypes == [tf.float32, tf.int32, tf.float32, tf.int64]


def test_replicas_and_parts_train_like_one(glyphs, replicas, float64):
    results = []
    for strategy, parts in (
        (tf.distribute.get_strategy(), 1),
        (replicas, 1),
        (tf.distribute.get_strategy(), 2),
    ):
        tf.keras.utils.set_random_seed(1)
        with strategy.scope():
            model = build(accumulate_steps=parts)
        data = strategies.training_data(strategy, model, glyphs, 8, 1, 0, 2)
        history = model.fit(data, steps_per_epoch=2, verbose=0).history
        results.append([history["loss"][0], *(v.numpy() for v in model.trainable_variables)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)


def test_evaluation_has_it_too(glyphs):
    results = build().evaluate(build().evaluation_dataset(glyphs, 16), return_dict=True, verbose=0)
    assert np.isfinite(results["loss"])


def test_a_source_without_what_is_needed_is_refused(source):
    with pytest.raises(
        UserError,
        match="task 'coverage' needs 'mask' .* has none: take masks:PATH or glyphs or glyphs:N",
    ):
        build().dataset(source, 8)


def test_examples_without_a_static_shape_are_refused(glyphs):
    model = build()
    model.example = lambda example, seed: {
        "boxes": tf.zeros([tf.cast(example["label"], tf.int32), 4])
    }
    with pytest.raises(
        UserError,
        match=r"Coverage.example\(\) returns 'boxes' of \(None, 4\): give all examples one shape",
    ):
        model.dataset(glyphs, 8)


def test_tasks_of_before_are_told_of_examples():
    with pytest.raises(
        UserError,
        match=r"Mine: example\(image, seed\) is example\(example, seed\) now.*example\[\"image\"\]",
    ):
        type("Mine", (Pretext,), {"example": lambda self, image, seed: image})
    mine = type("Mine", (Coverage,), {"example": lambda self, example, seed: example["image"]})
    with pytest.raises(UserError, match=r"returns EagerTensor, not a dict, such as {'image': ...}"):
        pretext.build(mine, "resnet18_v2", image_size=16).zero_batch(2)

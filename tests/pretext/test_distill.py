"""Distillation of a module: the contract, whose features are matched, and what is refused."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_modules
from joint_embedding import task

from tfssl import backbones, export, pretext
from tfssl.errors import UserError
from tfssl.losses import distillation
from tfssl.pretext.distill import Distill
from tfssl.testing import check_task


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_modules.save_ours(tmp_path_factory.mktemp("teacher"))


def test_keeps_the_contract(teacher, replicas):
    """But for XLA, under which the teacher, a graph of float32, sums in another order: its features
    are compared below."""
    check_task(Distill, replicas=replicas, teacher=teacher, projection_layers=1, skip=["xla"])


def test_distance_to_standardized_features():
    """torch's smooth_l1_loss(x, layer_norm(y), beta), and quadratic and linear parts by hand."""

    def normal(seed, *shape):
        x = np.random.default_rng(seed).normal(size=shape).astype("float32")
        return tf.constant(x.astype(float))

    x, y = normal(0, 32, 64), 0.8 * normal(0, 32, 64) + 0.6 * normal(1, 32, 64)
    tokens = (tf.reshape(normal(seed, 4, 5, 8), [20, 8]) for seed in (15, 16))
    for pair, beta, expected in (
        ((x, y), 1.0, 0.20621222544240236),
        ((x, y), 2.0, 0.10804768108305587),
        (tokens, 1.0, 0.6327370767),
    ):
        found = distillation.of_features(*pair, beta=beta)
        assert float(tf.reduce_mean(found)) == pytest.approx(expected, abs=1e-9)
    features = tf.constant([[-1.0, 1.0]], tf.float64)
    near, far = (
        distillation.of_features(features + d, features, beta=2.0).numpy() for d in (0.5, 3.0)
    )
    np.testing.assert_allclose([near[0], far[0]], [0.5**2 / 4, 3 - 1], rtol=1e-4)


def test_the_teacher_is_neither_trained_nor_saved(teacher):
    """Its features are those of the module; checkpoints hold the student alone."""
    model = task("distill", teacher=teacher, teacher_endpoint="block")
    model.prepare()
    batch = model.to_float(model.zero_batch(3))
    batch["image"] = (tf.random.stateless_uniform(batch["image"][0].shape, [0, 1]),)
    outputs = model(batch, training=False)
    module = tf.saved_model.load(teacher)
    expected = tf.reduce_mean(module.endpoints(batch["image"][0][:, 0])["block"], [1, 2])
    np.testing.assert_allclose(outputs["target"], expected, rtol=1e-5)
    compiled = tf.function(lambda x: model({"image": (x,)})["target"], jit_compile=True)
    np.testing.assert_allclose(compiled(batch["image"][0]), expected, rtol=1e-4, atol=1e-5)
    student = {id(v) for v in (*model.backbone.variables, *model.projection.variables)}
    assert {id(v) for v in model.trainable_variables} <= student
    saved = tf.train.Checkpoint(model=model)
    shapes = [v.shape for v in tf.nest.flatten(saved.model.variables)]
    assert tf.TensorShape([3, 3, 8, 16]) not in shapes


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"beta": 0.0}, "beta=0"),
        ({"teacher_endpoint": "none"}, "teacher_endpoint"),
    ],
)
def test_what_is_refused(teacher, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        task("distill", **{"teacher": teacher, **settings})


def test_without_a_teacher_there_is_the_network_alone(source):
    """For an untrained one beside a published one: it does not train."""
    model = task("distill")
    model.prepare()
    assert model.backbone.variables and model.projection is None
    with pytest.raises(UserError, match="give --teacher=MODULE"):
        model.dataset(source, 4)


def test_its_network_is_published_when_the_teacher_is_gone(tmp_path):
    (tmp_path / "teacher").mkdir()
    module = tiny_modules.save_ours(tmp_path / "teacher")
    network = backbones.build("resnet18_v2", 1 / 16, "small")
    model = pretext.build("distill", network, teacher=module, image_size=16, augmentation="crop")
    model.prepare()
    shutil.rmtree(module)
    published = tf.saved_model.load(export.save(model, tmp_path / "student"))
    x = tf.random.stateless_uniform([2, 16, 16, 3], [0, 1])
    expected = model.encode(x)["pre_logits"]
    np.testing.assert_allclose(published(x), expected, rtol=1e-4, atol=1e-5)

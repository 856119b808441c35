"""SupCon: whose views are positives."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import task

import tfssl
from tfssl.errors import UserError


def test_images_of_one_class_are_positives_and_those_without_label_are_by_themselves():
    model = task("sup_con", projection_size=4)
    z = tf.constant(np.random.default_rng(0).normal(size=[6, 2, 4]).astype(np.float32))

    def loss(labels):
        batch = {"weight": tf.ones([6]), "label": tf.constant(labels)}
        return model.contrast(batch, {"z": z})[0].numpy()

    np.testing.assert_allclose(loss([-1] * 6), loss([0, 1, 2, 3, 4, 5]), rtol=1e-6)
    half = loss([0, 0, -1, -1, 1, 1])
    np.testing.assert_allclose(half[2:4], loss([-1] * 6)[2:4], rtol=1e-6)
    assert (np.abs(half[[0, 1, 4, 5]] - loss([-1] * 6)[[0, 1, 4, 5]]) > 1e-4).all()


def test_frames_of_a_sequence_are_no_negatives():
    model = task("sup_con", projection_size=4)
    z = tf.constant(np.random.default_rng(0).normal(size=[4, 2, 4]).astype(np.float32))

    def loss(rows, **more):
        batch = {"weight": tf.ones([len(rows)]), "label": tf.fill([len(rows)], -1), **more}
        return model.contrast(batch, {"z": tf.gather(z, rows)})[0].numpy()

    found = loss([0, 1, 2, 3], sequence=tf.constant([7, 7, 8, 9]))
    np.testing.assert_allclose(found[0], loss([0, 2, 3])[0], rtol=1e-5)
    np.testing.assert_allclose(found[2:], loss([0, 1, 2, 3])[2:], rtol=1e-5)


def test_images_without_any_label_are_refused(tmp_path):
    tf.io.write_file(str(tmp_path / "a.png"), tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8)))
    with pytest.raises(UserError, match="has no labels: take simclr"):
        task("sup_con").require(tfssl.open_source(f"folder:{tmp_path}"))

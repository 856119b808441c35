"""Checkpoints that TensorFlow wrote: of version 1, and of objects."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.interop.formats import weights


def test_version_1_and_its_folder(tmp_path):
    values = {"base_model/conv2d/kernel": np.ones([3, 3, 3, 4], np.float32), "global_step": 7}
    prefix = str(tmp_path / "model.ckpt-7")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(n, initializer=v) for n, v in values.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, prefix)
    for path in (prefix, f"{prefix}.index", str(tmp_path)):
        found = weights.read(path)
        assert found.kind == "tensorflow" and set(found.tensors) == set(values)
        np.testing.assert_array_equal(found.tensors["base_model/conv2d/kernel"], 1)


def test_objects_by_the_names_of_their_variables(tmp_path):
    model = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(2, 1, name="first"), tf.keras.layers.Conv2D(2, 1)]
    )
    model.build([None, 4, 4, 3])
    tf.saved_model.save(model, str(tmp_path / "saved"))
    found = weights.read(str(tmp_path / "saved")).tensors
    np.testing.assert_array_equal(found["first/kernel"], model.layers[0].kernel)


def test_damaged(tmp_path):
    tf.train.Checkpoint(x=tf.Variable(tf.zeros([64]))).write(str(tmp_path / "x"))
    data = tmp_path / "x.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(UserError, match="claim 256 bytes|damaged"):
        weights.read(str(tmp_path / "x"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder without a checkpoint"):
        weights.read(str(tmp_path / "folder"))

"""What is kept, what is refused, and what a killed or damaged writer leaves."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.runtime.checkpoints import Checkpoints, saved


def compiled(value=1.0):
    model = tf.keras.Sequential([tf.keras.layers.Dense(2, kernel_initializer=tf.keras.initializers.Constant(value))])
    model.build([None, 3])
    model.compile(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def steps(folder):
    return [step for step, _ in saved(str(folder))]


def test_the_newest_and_every_kth_are_kept(tmp_path):
    checkpoints = Checkpoints(compiled(), str(tmp_path), keep=2, keep_every=20)
    for step in range(10, 80, 10):
        checkpoints.save(step)
    assert steps(tmp_path) == [20, 40, 60, 70]
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("ckpt-70")


def test_restore_brings_back_weights_and_slots(tmp_path):
    model = compiled()
    model.optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    Checkpoints(model, str(tmp_path)).save(1)
    other = compiled(5.0)
    assert Checkpoints(other, str(tmp_path)).restore() == 1
    for a, b in zip([*model.variables, *model.optimizer.variables], [*other.variables, *other.optimizer.variables]):  # noqa: B905
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_nothing_to_restore_is_step_zero(tmp_path):
    assert Checkpoints(compiled(), str(tmp_path / "absent")).restore() == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "index"])
def test_damage_gives_way_to_the_one_before(damage, tmp_path):
    model = compiled()
    checkpoints = Checkpoints(model, str(tmp_path))
    checkpoints.save(1)
    model.layers[0].kernel.assign_add(tf.ones([3, 2]))
    checkpoints.save(2)
    data, index = tmp_path / "ckpt-2.data-00000-of-00001", tmp_path / "ckpt-2.index"
    if damage == "flip":
        content = data.read_bytes()
        data.write_bytes(bytes(b ^ 1 for b in content))
    elif damage == "truncate":
        data.write_bytes(data.read_bytes()[:8])
    elif damage == "remove":
        data.unlink()
    else:
        index.write_bytes(index.read_bytes()[:20])
    said, other = [], compiled(5.0)
    again = Checkpoints(other, str(tmp_path))
    assert again.restore(said.append) == 1
    assert len(said) == 1 and "ckpt-2 is damaged" in said[0]
    np.testing.assert_array_equal(other.layers[0].kernel, np.ones([3, 2]))
    again.save(2)
    assert steps(tmp_path) == [1, 2] and Checkpoints(compiled(), str(tmp_path)).restore() == 2


def test_when_none_can_be_read_the_user_is_told(tmp_path):
    Checkpoints(compiled(), str(tmp_path)).save(1)
    (tmp_path / "ckpt-1.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        Checkpoints(compiled(), str(tmp_path)).restore(lambda _: None)


def test_states_that_are_not_finite_are_not_saved(tmp_path):
    model = compiled()
    checkpoints = Checkpoints(model, str(tmp_path))
    checkpoints.save(1)
    model.layers[0].bias.assign([1.0, np.nan])
    with pytest.raises(UserError, match="bias.*not finite after step 2; the last good checkpoint is step 1"):
        checkpoints.save(2)
    assert steps(tmp_path) == [1]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Its temporary folder, and data whose index was never written; complete checkpoints that nobody noted down are found."""
    Checkpoints(compiled(), str(tmp_path)).save(5)
    os.remove(tmp_path / "checkpoint")
    (tmp_path / "ckpt-9_temp").mkdir()
    (tmp_path / "ckpt-9_temp" / "part-00000-of-00001.data").write_bytes(b"half")
    (tmp_path / "ckpt-8.data-00000-of-00001").write_bytes(b"half")
    assert Checkpoints(compiled(5.0), str(tmp_path)).restore() == 5
    assert not [name for name in os.listdir(tmp_path) if name.startswith(("ckpt-8", "ckpt-9"))]


def test_a_refusing_file_system_ends_in_one_line(tmp_path):
    checkpoints = Checkpoints(compiled(), str(tmp_path / "folder"))
    checkpoints.save(1)
    with pytest.raises(UserError, match="cannot save step 2 .*last good checkpoint is step 1"):
        checkpoints._write = full_disk
        checkpoints.save(2)


def full_disk(*_):
    raise tf.errors.ResourceExhaustedError(None, None, "no space left on device")


def test_of_several_workers_one_writes(tmp_path):
    """The others go through the same save, elsewhere: nothing of theirs is left, and nothing of the writer's is touched."""
    writer, other = Checkpoints(compiled(), str(tmp_path)), Checkpoints(compiled(2.0), str(tmp_path), writes=False)
    writer.save(1)
    other.save(2)
    assert [step for step, _ in saved(str(tmp_path))] == [1]
    assert other.restore() == 1

"""What is kept, what is refused, and what a killed or damaged writer leaves."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.training import checkpoints as module
from tfssl.training.checkpoints import Checkpoints, saved


def compiled(value=1.0):
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(2, kernel_initializer=tf.keras.initializers.Constant(value))]
    )
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
    for a, b in zip(
        [*model.variables, *model.optimizer.variables],
        [*other.variables, *other.optimizer.variables],
    ):
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
    left = {path: path.read_bytes() for path in (data, index) if path.exists()}
    said, other = [], compiled(5.0)
    again = Checkpoints(other, str(tmp_path))
    assert again.restore(said.append) == 1
    assert len(said) == 2 and "ckpt-2 is damaged" in said[0] and "ckpt-2 is set aside" in said[1]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "damaged" / "ckpt-2").iterdir()}
    assert kept == {path.name: content for path, content in left.items()}
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
    with pytest.raises(
        UserError, match="bias.*not finite after step 2; the last good checkpoint is step 1"
    ):
        checkpoints.save(2)
    assert steps(tmp_path) == [1]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Its temporary folder; complete checkpoints that nobody noted down are found, and data without
    an index are set aside."""
    Checkpoints(compiled(), str(tmp_path)).save(5)
    os.remove(tmp_path / "checkpoint")
    (tmp_path / "ckpt-9_temp").mkdir()
    (tmp_path / "ckpt-9_temp" / "part-00000-of-00001.data").write_bytes(b"half")
    (tmp_path / "ckpt-8.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "ckpt-5.index.tempstate77").write_bytes(b"half")
    assert Checkpoints(compiled(5.0), str(tmp_path)).restore() == 5
    assert sorted(os.listdir(tmp_path)) == ["ckpt-5.data-00000-of-00001", "ckpt-5.index", "damaged"]
    assert [p.read_bytes() for p in (tmp_path / "damaged" / "ckpt-8").iterdir()] == [b"half"]


def content_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def failing(checkpoints, error, times):
    """Reading the newest checkpoint fails so many times, as TensorFlow would say it."""
    real, left = checkpoints.checkpoint.restore, [times]

    def restore(path, *args, **kwargs):
        if path.endswith("ckpt-3") and left[0]:
            left[0] -= 1
            raise error
        return real(path, *args, **kwargs)

    checkpoints.checkpoint.restore = restore


@pytest.mark.parametrize("error", [
    tf.errors.UnavailableError(None, None, "NFS server not responding"),
    tf.errors.PermissionDeniedError(None, None, "ckpt-3.index; Permission denied"),
    tf.errors.ResourceExhaustedError(None, None, "Error executing an HTTP request: HTTP response code 503"),
    tf.errors.OpError(None, None, "ckpt-3.index; Input/output error", 2),
])  # fmt: skip
def test_what_cannot_be_read_is_tried_again_and_never_touched(error, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    checkpoints = Checkpoints(compiled(), str(tmp_path))
    for step in (1, 2, 3):
        checkpoints.save(step)
    before = content_of(tmp_path)

    passing = Checkpoints(compiled(5.0), str(tmp_path))
    failing(passing, error, 3)
    assert passing.restore(lambda _: None) == 3 and waited == [1, 5, 20]

    lasting = Checkpoints(compiled(5.0), str(tmp_path))
    failing(lasting, error, -1)
    with pytest.raises(
        UserError, match="ckpt-3 cannot be read .*nothing was changed.*same command again"
    ) as told:
        lasting.restore(lambda _: None)
    assert "\n" not in str(told.value) and content_of(tmp_path) == before


def test_a_checkpoint_that_cannot_be_looked_at_is_not_called_damaged(tmp_path, monkeypatch):
    """A folder in the place of its data: TensorFlow's own reader says no more than "error"."""
    monkeypatch.setattr(module, "PAUSES", ())
    checkpoints = Checkpoints(compiled(), str(tmp_path))
    checkpoints.save(1)
    checkpoints.save(2)
    data = tmp_path / "ckpt-2.data-00000-of-00001"
    data.rename(tmp_path / "away")
    data.mkdir()
    with pytest.raises(UserError, match="ckpt-2 cannot be read .*Is a directory"):
        Checkpoints(compiled(), str(tmp_path)).restore()
    data.rmdir()
    (tmp_path / "away").rename(data)
    assert Checkpoints(compiled(), str(tmp_path)).restore() == 2


def network(units=2, optimizer=None, layers=1):
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(units, name=name) for name in ("head", "more")[:layers]]
    )
    model.build([None, 3])
    model.compile(optimizer or tf.keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("other, told", [
    (lambda: network(3), r"head/bias has shape \(2,\) there and \(3,\) here; .*number of classes"),
    (lambda: network(2, layers=2), "variables of this network are not in it, .*more/"),
    (lambda: network(2, tf.keras.optimizers.Adam()), r"shape .* there and .* here; .*--optimizer"),
])  # fmt: skip
def test_another_network_is_told_by_name_and_not_called_damaged(other, told, tmp_path):
    Checkpoints(network(), str(tmp_path)).save(1)
    before = content_of(tmp_path)
    with pytest.raises(UserError, match=f"ckpt-1 is of another network: .*{told}"):
        Checkpoints(other(), str(tmp_path)).restore()
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("name", ["run[1]", "lr=[0.1]", "a*b?", "{x,y}", "a\\b"])
def test_characters_of_patterns_are_characters(name, tmp_path):
    """Decoys that a pattern would match stay as they are."""
    for decoy in ("run1", "lr=0", "aXbY", "x"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / "ckpt-9.index").write_bytes(b"decoy")
    folder = tmp_path / name
    checkpoints = Checkpoints(compiled(), str(folder), keep=2)
    for step in (1, 2, 3):
        checkpoints.model.layers[0].bias.assign([step, 0.0])
        checkpoints.save(step)
    other = compiled(5.0)
    assert Checkpoints(other, str(folder)).restore() == 3 and other.layers[0].bias[0] == 3
    assert (
        steps(folder) == [2, 3] and len(list(folder.iterdir())) == 5
    )  # two files each, and TensorFlow's note
    data = folder / "ckpt-3.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    assert (
        Checkpoints(other, str(folder)).restore(lambda _: None) == 2
        and other.layers[0].bias[0] == 2
    )
    assert [p.read_bytes() for p in tmp_path.glob("*/ckpt-9.index")] == [b"decoy"] * 4


def test_a_checkpoint_is_on_the_disk_before_its_index_has_its_name(tmp_path, monkeypatch):
    """What a cut of the power leaves is what was synced: the data and the index, then the data's
    name, then the index's."""
    checkpoints = Checkpoints(compiled(), str(tmp_path))
    checkpoints.save(1)
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(b), replace(a, b)))
    checkpoints.save(2)
    data, index = str(tmp_path / "ckpt-2.data-00000-of-00001"), str(tmp_path / "ckpt-2.index")
    unfinished = os.path.dirname(done[0])
    synced = [os.path.join(unfinished, os.path.basename(path)) for path in (data, index)]
    assert done[:6] == [*synced, data, str(tmp_path), index, str(tmp_path)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_the_kernel_is_asked_to_sync_three_times_a_checkpoint(tmp_path):
    program = (
        "import tensorflow as tf; from tfssl.training.checkpoints import Checkpoints; "
        "m = tf.keras.Sequential([tf.keras.layers.Dense(2)]); m.build([None, 3]); "
        "m.compile(tf.keras.optimizers.SGD(0.1)); "
        f"c = Checkpoints(m, {str(tmp_path / 'run')!r}); [c.save(step) for step in range(1, 6)]"
    )
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-e",
        "trace=fsync,fdatasync",
        "-o",
        trace,
        sys.executable,
        "-c",
        program,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert trace.read_text().count("sync(") >= 3 * 5


def test_checkpoints_of_tensorflows_own_manager_are_read(tmp_path):
    """As tfssl 0.1 wrote them."""
    model = compiled(3.0)
    model.optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    theirs = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    tf.train.CheckpointManager(theirs, str(tmp_path), max_to_keep=None).save(checkpoint_number=7)
    other = compiled(5.0)
    checkpoints = Checkpoints(other, str(tmp_path))
    assert checkpoints.restore() == 7
    for a, b in zip(
        [*model.variables, *model.optimizer.variables],
        [*other.variables, *other.optimizer.variables],
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    checkpoints.save(8)  # and what is written now, they read
    again = compiled(5.0)
    theirs = tf.train.Checkpoint(model=again, optimizer=again.optimizer)
    theirs.restore(tf.train.latest_checkpoint(str(tmp_path))).assert_existing_objects_matched()
    np.testing.assert_array_equal(again.layers[0].kernel, model.layers[0].kernel)


@pytest.mark.parametrize("name, after", [("remove", 0), ("move", 1)])
def test_a_kill_while_an_old_one_is_removed_leaves_no_damage(tmp_path, monkeypatch, name, after):
    """Before its bin is removed; between its index and its data."""
    Checkpoints(compiled(), str(tmp_path)).save(1)
    done, function = [], getattr(module.files, name)

    def killed(*paths):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(function(*paths))

    monkeypatch.setattr(module.files, name, killed)
    with pytest.raises(KeyboardInterrupt):
        module._delete(str(tmp_path / "ckpt-1"))
    monkeypatch.undo()
    said = []
    assert Checkpoints(compiled(), str(tmp_path)).restore(said.append) == 0 and not said
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_refusing_file_system_ends_in_one_line(tmp_path):
    checkpoints = Checkpoints(compiled(), str(tmp_path / "folder"))
    checkpoints.save(1)
    with pytest.raises(UserError, match="cannot save step 2 .*last good checkpoint is step 1"):
        checkpoints._write = full_disk
        checkpoints.save(2)


def full_disk(*_):
    raise tf.errors.ResourceExhaustedError(None, None, "no space left on device")


def test_of_several_workers_one_writes(tmp_path):
    """The others go through the same save, elsewhere: nothing of theirs is left, and nothing of the
    writer's is touched."""
    writer, other = (
        Checkpoints(compiled(), str(tmp_path)),
        Checkpoints(compiled(2.0), str(tmp_path), writes=False),
    )
    writer.save(1)
    other.save(2)
    assert [step for step, _ in saved(str(tmp_path))] == [1]
    assert other.restore() == 1

"""Checkpoints that survive: written atomically, finite states only, and a damaged one gives way to the one before."""

import os
import re
import tempfile

import tensorflow as tf

from tfssl.errors import UserError, one_line


class Checkpoints:
    """The checkpoints of one run, `directory/ckpt-STEP`.

    Args:
      model: a compiled model whose variables, and whose optimizer's, exist already: values are read when `restore` says so.
      directory: the folder; made at the first save.
      keep: how many of the newest to keep.
      keep_every: keep those whose step is a multiple of this for ever, too; 0: none of them.
      writes: whether this process writes into the folder. Of several workers the first does; the others have to take part in a save, since
        some variables are the mean of all workers' copies, and write theirs to a temporary place.
    """

    def __init__(self, model, directory, keep=3, keep_every=0, writes=True):
        self.model = model
        self.directory = directory
        self.keep, self.keep_every = keep, keep_every
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self.writes = writes
        if writes:
            _tidy(directory)

    def restore(self, say=print):
        """Restore the newest readable checkpoint; returns its step, 0 where there is none.

        Raises:
          UserError: there are checkpoints and none of them can be read.
        """
        paths = [path for _, path in saved(self.directory)]
        for path in reversed(paths):
            try:
                self.checkpoint.restore(path).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, ValueError, IndexError) as e:
                say(f"checkpoint {path} is damaged and is passed over: {one_line(e)}")
            else:
                # The damaged ones, which are newer, would shadow what this run will save.
                for damaged in paths[paths.index(path) + 1 :] if self.writes else ():
                    _delete(damaged)
                return _step(path)
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints in {self.directory!r} can be read: start anew in another --workdir"
            )
        return 0

    def save(self, step):
        """Save the state after `step` steps.

        Raises:
          UserError: a variable is NaN or infinite, or the file system refuses; what was saved before stays.
        """
        bad = self.first_nonfinite()
        if bad is not None:
            raise UserError(f"{bad} is not finite after step {step}; {self.last_good()}")
        if not self.writes:
            with tempfile.TemporaryDirectory() as folder:
                self._write(folder, step)
            return
        try:
            self._write(self.directory, step)
        except (tf.errors.OpError, OSError) as e:
            _tidy(self.directory)
            raise UserError(f"cannot save step {step} in {self.directory!r} ({one_line(e)}); {self.last_good()}") from e

        steps = [s for s, _ in saved(self.directory)]
        for old in steps[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                _delete(os.path.join(self.directory, f"ckpt-{old}"))

    def _write(self, directory, step):
        tf.train.CheckpointManager(self.checkpoint, directory, max_to_keep=None).save(checkpoint_number=step)

    def last_good(self):
        steps = [step for step, _ in saved(self.directory)]
        return f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"

    def first_nonfinite(self):
        """The name of a variable with a NaN or an infinity in it, or None. An online probe's may be so: nothing else depends on them."""
        probe = getattr(self.model, "probe", None)
        spared = {id(v) for v in probe.variables} if probe else set()
        floats = [
            v
            for v in [*self.model.variables, *_optimizer_variables(self.model.optimizer)]
            if v.dtype.is_floating and id(v) not in spared
        ]
        finite = tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in floats])
        return next((v.name for v, ok in zip(floats, finite.numpy()) if not ok), None)  # noqa: B905


def saved(directory):
    """[(step, path)] of the complete checkpoints in a folder, oldest first.

    TensorFlow writes a checkpoint's index last: where it is, the rest is. So this also finds one whose writer was killed before it could
    note it down in the folder's `checkpoint` file.
    """
    indices = tf.io.gfile.glob(os.path.join(directory, "ckpt-*.index"))
    return sorted((_step(path[: -len(".index")]), path[: -len(".index")]) for path in indices)


def _step(path):
    return int(re.search(r"ckpt-(\d+)$", path).group(1))


def _tidy(directory):
    """Remove what a killed writer left."""
    if not tf.io.gfile.isdir(directory):
        return
    complete = {os.path.basename(path) for _, path in saved(directory)}
    for name in tf.io.gfile.listdir(directory):
        match = re.match(r"(ckpt-\d+)(_temp|\.data-)", name)
        if match and match.group(1) not in complete:
            path = os.path.join(directory, name.rstrip("/"))
            tf.io.gfile.rmtree(path) if tf.io.gfile.isdir(path) else tf.io.gfile.remove(path)


def _delete(path):
    for name in tf.io.gfile.glob(path + ".*"):
        tf.io.gfile.remove(name)


def _optimizer_variables(optimizer):
    variables = optimizer.variables
    return variables() if callable(variables) else variables

"""Checkpoints that survive: complete and on the disk or absent, finite states only, and a damaged
one gives way to the one before.

Damaged means that the checkpoint's own checksums or its own list of parts say so. Such a one is set
aside, in `damaged/`, and nothing else is ever touched because it could not be read.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError, one_line
from tfssl.storage import files

PAUSES = (1, 5, 20)  # seconds before a read that failed is tried again
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # TensorFlow's name of the table of what is in a checkpoint

# What a variable's name says of the flags that made it another one.
_FLAGS_OF = (
    (r"^[mv]/|^(SGD|Adam|LARS|LAMB|LARC)", "--optimizer"),
    (r"projection|prediction|prototypes|queue|bank", "the settings of the task's head"),
    (r"(^|/)head", "the number of classes, --num_classes or that of --dataset"),
    ("", "--backbone, --width_multiplier, --stem, --sk_ratio or --representation_size"),
)


class Checkpoints:
    """The checkpoints of one run, `directory/ckpt-STEP`.

    Args:
      model: a compiled model whose variables, and whose optimizer's, exist already: values are read
        when `restore` says so.
      directory: the folder; made at the first save.
      keep: how many of the newest to keep.
      keep_every: keep those whose step is a multiple of this for ever, too; 0: none of them.
      writes: whether this process writes into the folder. Of several workers the first does; the
        others have to take part in a save, since some variables are the mean of all workers'
        copies, and write theirs to a temporary place.
      guard: function () called before each save; it may refuse with a `UserError`.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        directory: str,
        keep: int = 3,
        keep_every: int = 0,
        writes: bool = True,
        guard: Callable[[], object] = lambda: None,
    ) -> None:
        self.model = model
        self.directory = directory
        self.keep, self.keep_every = keep, keep_every
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self.writes, self.guard = writes, guard
        if writes:
            _tidy(directory)

    def restore(self, say: Callable[[str], object] = print) -> int:
        """Restore the newest checkpoint that is not damaged; returns its step, 0 where there is
        none.

        Raises:
          UserError: all are damaged; or one is whole and of another network; or one cannot be read,
            after several tries. Nothing was changed then.
        """
        found = saved(self.directory)
        damaged: list[str] = []
        for step, path in reversed(found):
            reason = load(path, self.checkpoint, say)
            if reason is None:
                # The damaged ones, which are newer, would shadow what this run will save.
                for other in damaged if self.writes else ():
                    say(f"{other} is set aside: {_set_aside(other)}")
                return step
            say(f"checkpoint {path} is damaged and is passed over: {reason}")
            damaged.append(path)
        if found:
            raise UserError(
                f"none of the {len(found)} checkpoints in {self.directory!r} can be read, they are "
                "damaged: start anew in another --workdir"
            )
        return 0

    def save(self, step: int) -> None:
        """Save the state after `step` steps.

        Raises:
          UserError: a variable is NaN or infinite, or the file system refuses; what was saved
            before stays.
        """
        self.guard()
        bad = self.first_nonfinite()
        if bad is not None:
            raise UserError(f"{bad} is not finite after step {step}; {self.last_good()}")
        if not self.writes:
            with tempfile.TemporaryDirectory() as folder:
                self._write(folder, step)
            return
        try:
            self._write(self.directory, step)
            steps = [s for s, _ in saved(self.directory)]
            old = [s for s in steps[: -self.keep] if not self.keep_every or s % self.keep_every]
            self._note(step, [s for s in steps if s not in old])
        except files.errors() as e:
            with contextlib.suppress(*files.errors()):
                _tidy(self.directory)
            raise UserError(
                f"cannot save step {step} in {self.directory!r} ({one_line(e)}); {self.last_good()}"
            ) from e
        for s in old:
            _delete(os.path.join(self.directory, f"ckpt-{s}"))

    def _write(self, directory: str, step: int) -> None:
        """Write `ckpt-STEP`: its data first, and the index, which makes it a checkpoint, when they
        are on the disk."""
        self.checkpoint.save_counter.assign_add(1)
        name = f"ckpt-{step}"
        if not files.is_local(directory):
            self.checkpoint.write(os.path.join(directory, name))
            return
        unfinished = os.path.join(directory, f"{name}_temp-{files.unique()}")
        try:
            self.checkpoint.write(os.path.join(unfinished, name))
            parts = sorted(os.listdir(unfinished), key=lambda part: part.endswith(".index"))
            for part in parts:
                files.sync(os.path.join(unfinished, part))
            for part in parts:
                if part.endswith(".index"):
                    files.sync(directory)
                files.move(os.path.join(unfinished, part), os.path.join(directory, part))
            files.sync(directory)
        finally:
            with contextlib.suppress(*files.errors()):  # what refused the one refuses the other
                files.remove(unfinished)

    def _note(self, step: int, steps: list[int]) -> None:
        """The file `checkpoint`, by which TensorFlow's own tools find the newest."""
        state = tf.compat.v1.train.generate_checkpoint_state_proto(
            self.directory, f"ckpt-{step}", [f"ckpt-{s}" for s in steps]
        )
        files.write_file(os.path.join(self.directory, "checkpoint"), str(state))

    def last_good(self) -> str:
        steps = [step for step, _ in saved(self.directory)]
        return (
            f"the last good checkpoint is step {steps[-1]}"
            if steps
            else "there is no checkpoint yet"
        )

    def first_nonfinite(self) -> str | None:
        """The name of a variable with a NaN or an infinity in it, or None. An online probe's may be
        so: nothing else depends on them."""
        probe = getattr(self.model, "probe", None)
        spared = {id(v) for v in probe.variables} if probe else set()
        variables = [*self.model.variables, *_optimizer_variables(self.model.optimizer)]
        floats = [v for v in variables if v.dtype.is_floating and id(v) not in spared]
        # By NumPy: on Python 3.11 TensorFlow 2.15 leaves 48 bytes behind for every eager tensor
        # (its issue 62551), and a traced function would take its time of a first save at SIGTERM.
        return next((v.name for v in floats if not np.isfinite(v.numpy()).all()), None)


def load(
    path: str, checkpoint: tf.train.Checkpoint, say: Callable[[str], object] = print
) -> str | None:
    """Restore a `tf.train.Checkpoint` from `path`: all of its objects, and it may hold more. A read
    that fails is tried again.

    Returns:
      None; or, of a damaged checkpoint, what is wrong with it.

    Raises:
      UserError: the checkpoint is whole and of another network; or it cannot be read now.
    """
    for pause in (*PAUSES, None):
        try:
            with files.plain(path) as plain:
                checkpoint.restore(plain).assert_existing_objects_matched().expect_partial()
            return None
        except Exception as e:
            # TensorFlow reports one and the same trouble in many ways: the checkpoint has to tell.
            error = e
        try:
            reason = damage(path)
        except files.errors() as e:
            error = e
        else:
            if reason:
                return reason
            if isinstance(error, (AssertionError, ValueError)):
                raise UserError(
                    f"checkpoint {path} is of another network: {_difference(error)}"
                ) from error
        if pause is not None:
            say(
                f"checkpoint {path} cannot be read just now ({_inner(error)}): once more in "
                f"{pause} s"
            )
            time.sleep(pause)
    raise UserError(
        f"checkpoint {path} cannot be read ({_inner(error)}); it is not damaged as far as can be "
        "seen, and nothing was changed: when "
        "its file system answers again, use the same command again"
    ) from error


def damage(path: str) -> str | None:
    """What is wrong with a checkpoint, by its own checksums and its own list of parts; None if it
    is whole.

    Raises:
      OSError, tf.errors.OpError: it cannot be read, which says nothing about that.
    """
    with files.plain(path) as plain, tf.device("CPU"):

        def read(name: str, dtype: tf.DType) -> None:
            # The op itself: TensorFlow's Python readers lose the kind of an error.
            tf.raw_ops.RestoreV2(
                prefix=plain, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
            )

        try:
            read(_GRAPH, tf.string)
            for name, dtype in tf.train.load_checkpoint(plain).get_variable_to_dtype_map().items():
                read(name, dtype)
        except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as e:
            return _inner(e)
        except tf.errors.NotFoundError:
            missing = _missing(path)
            if missing:
                return f"{missing} is missing"
            raise
    return None


def _missing(path: str) -> str | None:
    """The name of a part that is not there; None if all are."""
    folder, name = os.path.split(path)
    names = files.listdir(folder)
    shards = [re.fullmatch(re.escape(name) + r"\.data-\d+-of-(\d+)", other) for other in names]
    count = max((int(shard[1]) for shard in shards if shard), default=1)
    parts = [f"{name}.index", *(f"{name}.data-{i:05}-of-{count:05}" for i in range(count))]
    return next((part for part in parts if part not in names), None)


def _inner(error: object) -> str:
    """TensorFlow's text without the name of its op."""
    return one_line(re.sub(r"^\{\{.*?\}\} ?|\[Op:\w+\].*$", "", " ".join(str(error).split())))


def _difference(error: BaseException) -> str:
    """How a network differs from a whole checkpoint, by the exception that said so; and the flags
    that it usually comes from."""
    text = " ".join(str(error).split())
    if "a legacy TF-Keras optimizer" in text or "a legacy Keras optimizer" in text:
        return (
            "its optimizer is tensorflow-addons' LAMB under loss scaling, whose state cannot be "
            "taken over (without loss scaling it can): "
            "start anew in another --workdir"
        )
    shapes = re.search(
        r"tensor with shape (\(.*?\)) .* variable with shape (\(.*?\)) and name (\S+?)(:\d+)?\.?$",
        text,
    )
    absent = re.search(r"Found (\d+) Python objects .*?<tf\.Variable '([^']+?)(?::\d+)?'", text)
    if shapes:
        theirs, ours, name, _ = shapes.groups()
        what = f"{name} has shape {theirs} there and {ours} here"
    elif absent:
        count, name = absent.groups()
        what = f"{count} variables of this network are not in it, {name} for one"
    else:
        return one_line(text)
    return (
        f"{what}; what differs is probably "
        f"{next(flags for part, flags in _FLAGS_OF if re.search(part, name))}"
    )


def saved(directory: str) -> list[tuple[int, str]]:
    """[(step, path)] of the complete checkpoints in a folder, oldest first.

    A checkpoint's index is written last: where it is, the rest is. So this also finds one whose
    writer was killed before it could note it down in the folder's `checkpoint` file.
    """
    indices = [re.fullmatch(r"ckpt-(\d+)\.index", name) for name in files.listdir(directory)]
    return [
        (step, os.path.join(directory, f"ckpt-{step}"))
        for step in sorted(int(m[1]) for m in indices if m)
    ]


def _tidy(directory: str) -> None:
    """Remove what a killed writer or a killed `_delete` left; data without an index, of which more
    may have been there, are set aside."""
    complete = {os.path.basename(path) for _, path in saved(directory)}
    names = files.listdir(directory)
    for name in names:  # data whose index is in the bin already
        bin_ = re.match(r"(ckpt-\d+)_temp-", name)
        if bin_ and f"{bin_[1]}.index" in files.listdir(os.path.join(directory, name)):
            for part in set(_parts(os.path.join(directory, bin_[1]))) & set(names):
                files.remove(os.path.join(directory, part))
    for name in files.listdir(directory):
        match = re.match(r"(ckpt-\d+)(_temp|\.(?:data|index).*\.tempstate|\.data-)", name)
        if match and match[2] != ".data-":
            files.remove(os.path.join(directory, name))
        elif match and match[1] not in complete:
            _set_aside(os.path.join(directory, match[1]))
    files.sweep(directory)


def _parts(path: str) -> list[str]:
    folder, name = os.path.split(path)
    return [part for part in files.listdir(folder) if part.startswith(f"{name}.")]


def _set_aside(path: str) -> str:
    """Move a checkpoint out of the way, to a folder of its own, which is returned."""
    folder, name = os.path.split(path)
    taken = files.listdir(os.path.join(folder, "damaged"))
    free = next(
        n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken
    )
    target = os.path.join(folder, "damaged", free)
    tf.io.gfile.makedirs(target)
    for part in _parts(path):
        files.move(os.path.join(folder, part), os.path.join(target, part))
    return target


def _delete(path: str) -> None:
    """Remove a checkpoint, its index first: what a kill leaves is no checkpoint, and `_tidy` sees
    that it was on its way out."""
    folder, name = os.path.split(path)
    bin_ = os.path.join(folder, f"{name}_temp-{files.unique()}")
    parts = sorted(_parts(path), key=lambda part: not part.endswith(".index"))
    if not files.is_local(folder):
        for part in parts:
            files.remove(os.path.join(folder, part))
        return
    os.makedirs(bin_)
    for part in parts:
        files.move(os.path.join(folder, part), os.path.join(bin_, part))
    files.remove(bin_)


def _optimizer_variables(optimizer: tf.keras.optimizers.Optimizer) -> list[tf.Variable]:
    variables = optimizer.variables
    return variables() if callable(variables) else variables

"""Exceptions as one line each: with a remedy where a user can do something about it, else with a
file that has the traceback."""

import errno
import os
import re
import sys
import tempfile
import time
import traceback

import tensorflow as tf

from tfssl.errors import TROUBLES, one_line, trouble
from tfssl.storage import files


def explain(error: BaseException, workdir: str | None = None) -> str:
    """What to tell the user of an exception, in one line.

    Args:
      error: the exception.
      workdir: where the traceback of an unforeseen one is kept, if it is a folder that can be
        written; else among the temporary files.
    """
    from_within = re.search(
        r"\bUserError: (.*)", str(error)
    )  # raised in a pipeline or a traced function, and quoted by TensorFlow
    if from_within and isinstance(error, tf.errors.OpError):
        return from_within.group(1)
    text = " ".join(str(error).split())
    refused = (
        tf.errors.PermissionDeniedError,
        tf.errors.UnauthenticatedError,
    )  # of an object store, too
    found = trouble(error) or ((errno.EACCES, None) if isinstance(error, refused) else None)
    if found:
        (what, remedy), (number, path) = TROUBLES[found[0]], found
        which = f"{path}: {what} ({os.strerror(number)})" if path else f"{what} ({one_line(text)})"
        return f"{which}; {remedy}, and use the same command again: nothing complete was lost"
    if (
        isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError))
        or "RESOURCE_EXHAUSTED" in text
    ):
        return (
            "out of memory: --batch_size (smaller), --accumulate_steps (the same batch in parts), "
            "--rematerialize, "
            f"--precision=mixed_bfloat16 or a smaller --image_size helps ({one_line(text)})"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return (
            f"{error.filename} cannot be read or written ({error.strerror}): see to that, and use "
            "the same command again"
        )
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    if isinstance(error, lost) and "TF_CONFIG" in os.environ:
        return (
            "another worker has ended or cannot be reached; start all workers again with the same "
            "command: "
            f"they go on from the last checkpoint ({one_line(text)})"
        )
    return (
        f"unexpected {type(error).__name__}: {one_line(text)}; the traceback is in "
        f"{_keep_traceback(error, workdir)}"
    )


def _keep_traceback(error: BaseException, workdir: str | None) -> str:
    """Write it to a file, and return the file's name."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{files.unique()}.txt"
    for folder in (workdir, tempfile.gettempdir()):
        try:
            if folder and tf.io.gfile.isdir(folder):
                path = os.path.join(folder, name)
                files.write_file(path, text)
                return path
        except files.errors():
            continue
    print(text, file=sys.stderr)
    return "the lines above"

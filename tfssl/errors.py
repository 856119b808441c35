"""The one exception that users are meant to read, checks that raise it, and what is known of the
exceptions of others."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from typing import Any


class UserError(ValueError):
    """Something the user can mend: one line that names the cause and the remedy.

    The binaries print the line and exit with `status`, without a traceback; in a notebook it is a
    ValueError.
    """

    status = 1
    # whether nothing else can succeed either, so that it ends what goes on after other errors
    lasting = False
    # Keras adds to the text what a layer was called with, but to what it has added that to already.
    _keras_call_info_injected = True


def one_line(error: object, length: int = 200) -> str:
    """The text of an exception on one line, cut after `length` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " ..."


def check_choice(setting: str, value: object, allowed: Collection[str]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise UserError(f"{setting}={value}: choose one of {', '.join(allowed)}")


# Troubles of disks, file servers and rights, which are no property of what is read or written:
# errno -> (what is wrong, what to do).
TROUBLES = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: (
        "the disk is full, or takes no file of that size",
        "make room, or raise the limit (ulimit -f)",
    ),
    errno.EIO: ("the disk or its server has failed", "see that it is sound and connected"),
    errno.EROFS: ("the disk takes no writing", "mount it for writing"),
    errno.EACCES: ("this user has no right to it", "change its owner or its mode"),
    errno.EPERM: ("this user has no right to it", "change its owner or its mode"),
    errno.ESTALE: ("the file server has lost it", "mount it again"),
    errno.ENOTCONN: ("its file system is not connected", "mount it again"),
    errno.ENXIO: ("its disk is gone", "connect it again"),
    errno.ENODEV: ("its disk is gone", "connect it again"),
    errno.ETIMEDOUT: ("its server does not answer", "see that it can be reached"),
    errno.EHOSTDOWN: ("its server does not answer", "see that it can be reached"),
    errno.EHOSTUNREACH: ("its server does not answer", "see that it can be reached"),
    errno.ENFILE: ("too many files are open", "let other processes of this machine close some"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}


def trouble(error: BaseException) -> tuple[int, str | None] | None:
    """(errno, the path or None) where an exception, an OSError or one of TensorFlow's, is one of
    TROUBLES; else None."""
    if isinstance(error, OSError) and error.errno in TROUBLES:
        return error.errno, error.filename
    text = reason_of(error) if hasattr(error, "message") else str(error)
    for number in TROUBLES:
        before, found, _ = text.partition(os.strerror(number))
        if found:
            path = re.search(
                r"(?:^|[\s:])((?:/|[a-z0-9]+://)[^;]*|[^\s;]+); $", before
            )  # as TensorFlow has it
            return number, path and path[1]
    return None


# What TensorFlow puts before a reason: where in the user's code its graph was made, and what it was
# a part of.
_BEFORE = re.compile(
    r"\A\s*(Graph execution error:\s+Detected at node.*\n(\s*File \".*\n)*\s*(Node: .*\n)?|"
    r"(\{\{.*?\}\}\s*)?Error in user-defined function passed to.*? iterator: \S*: )"
)


def reason_of(error: Any) -> str:
    """The reason of a `tf.errors.OpError` in one line, without the names of graph nodes around
    it."""
    message = _BEFORE.sub("", error.message or "").strip().partition("\n")[0]
    message = re.sub(r"\{\{.*?\}\}|\[\[.*|\[Op:.*", "", message).strip()
    if message.startswith("assertion failed: ["):
        message = message[len("assertion failed: [") :].replace("] [", " ").rstrip("]")
    return message or type(error).__name__

"""Files that are complete or absent, and stay so when the power goes: written beside their place,
synced, renamed.

Local paths need no TensorFlow here; paths with a scheme (gs://...) go through `tf.io.gfile`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import IO, BinaryIO, Callable, Union

from tfssl.errors import UserError, one_line

# An object appears there whole when its upload ends, and a rename is a copy.
OBJECT_STORES = ("gs://", "s3://", "s3a://", "az://", "abfs://")

Content = Union[
    bytes, str, Callable[[BinaryIO], object]
]  # of a file: bytes, text, or what writes it

PATTERN = re.compile(r"[\[\]*?{}\\]")  # what TensorFlow takes for a pattern


def is_local(path: str) -> bool:
    return "://" not in path


def errors() -> tuple[type[Exception], ...]:
    """What a file system's refusals are, for `except`: OSError, and TensorFlow's errors where it is
    loaded."""
    tf = sys.modules.get("tensorflow")
    return (OSError, tf.errors.OpError) if tf else (OSError,)


def write_file(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file so that no reader, and no later start, ever sees half of it; one of that name
    stays until the new one is complete.

    Folders are made as needed; links are followed; a pipe or a device is written as it is.

    Args:
      path: local, or any that TensorFlow knows.
      content: bytes, text (written in UTF-8), or a function (binary file) that writes it, from
        start to end.

    Raises:
      OSError, tf.errors.OpError: it cannot be written; nothing is left of it.
    """
    path = os.fspath(path)
    if callable(content):
        write = content
    else:
        encoded = content.encode() if isinstance(content, str) else content
        write = lambda f: f.write(encoded)  # noqa: E731
    if not is_local(path):
        return _write_remote(path, write)
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as f:
            write(f)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = temporary(path)
    try:
        with open(unfinished, "xb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(unfinished)
        if isinstance(error, OSError) and error.errno:
            error.filename = path  # not that of the unfinished one, or none
        raise
    sync(os.path.dirname(path))


def _write_remote(path: str, write: Callable[[BinaryIO], object]) -> None:
    import tensorflow as tf

    with tempfile.TemporaryFile() as whole:
        write(whole)
        whole.seek(0)
        tf.io.gfile.makedirs(os.path.dirname(path))
        target = path if path.startswith(OBJECT_STORES) else temporary(path)
        try:
            with tf.io.gfile.GFile(target, "wb") as f:
                f.write(b"")  # or an empty file would not be made
                shutil.copyfileobj(whole, f)
            if target != path:
                tf.io.gfile.rename(target, path, overwrite=True)
        except BaseException:
            if target != path:
                with contextlib.suppress(*errors()):
                    remove(target)
            raise


def temporary(path: str) -> str:
    """A name beside `path` that no other process uses."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{name[:40]}.{unique()}.tmp")


_TEMPORARY = r"\.\d+-[0-9a-f]{8}\.tmp"  # what `temporary` appends, as a regular expression


def unique() -> str:
    """A part of a name: this process's number and a random one."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sweep(folder: str) -> None:
    """Remove what killed processes left of `write_file` in a folder; call it where no other process
    writes, under a lock."""
    for leftover in matching(folder, ".*" + _TEMPORARY):
        remove(leftover)


def scratch(prefix: str) -> str:
    """A new folder among the temporary files, which goes when this process ends; what processes
    left that were killed, goes now.

    Each holds its folders by a lock on a file in them, which the system takes away with the
    process.
    """
    for leftover in matching(tempfile.gettempdir(), re.escape(prefix) + ".*"):
        with contextlib.suppress(OSError, ImportError):  # somebody holds it, or it is not ours
            if time.time() - os.path.getmtime(leftover) > 60:  # younger ones may have no lock yet
                with _held(leftover):
                    remove(leftover)
    folder = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.suppress(OSError, ImportError):
        _SCRATCH.append(_held(folder))
    return folder


_SCRATCH: list[IO[bytes]] = []  # the lock files of this process's folders, open


def _held(folder: str) -> IO[bytes]:
    """The lock file of a `scratch` folder, open and locked.

    Raises:
      OSError: another process holds it, or it cannot be opened.
      ImportError: files cannot be locked here.
    """
    import fcntl

    file = open(os.path.join(folder, "owner"), "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError:
        file.close()
        raise


def sync(path: str) -> None:
    """Wait until a local file, or the list of names in a local folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        # Some file systems cannot sync a folder: they write its names by themselves.
        if not os.path.isdir(path) or e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str) -> None:
    """`sync` everything in a local folder, and the folder."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(root, name))
        sync(root)


def listdir(folder: str) -> list[str]:
    """The names in a folder; none where there is no folder.

    Raises:
      OSError, tf.errors.OpError: it is there, or may be, and cannot be listed.
    """
    if is_local(folder):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
    import tensorflow as tf

    try:
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    except tf.errors.NotFoundError:
        return []


def matching(folder: str, pattern: str) -> list[str]:
    """The paths in a folder whose names match a regular expression, sorted. Unlike in a glob, the
    folder's own name is no pattern."""
    return [
        os.path.join(folder, name) for name in listdir(folder or ".") if re.fullmatch(pattern, name)
    ]


def remove(path: str) -> None:
    """Remove a file or a folder with all in it; it may be gone already."""
    if is_local(path):
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
        return
    import tensorflow as tf

    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.rmtree(path) if tf.io.gfile.isdir(path) else tf.io.gfile.remove(path)


def move(path: str, target: str) -> None:
    """Rename a file; in an object store, copy and remove it."""
    if is_local(path):
        return os.replace(path, target)
    import tensorflow as tf

    tf.io.gfile.rename(path, target, overwrite=True)


def check_writable(folder: str, setting: str) -> None:
    """Refuse a folder in which nothing can be written, before any work is done for it; makes none.

    Args:
      folder: one that is there or can be made.
      setting: the flag that names it, for the message.

    Raises:
      UserError: something is in its way, or it is not permitted.
    """
    try:
        if not is_local(folder):
            probe = temporary(os.path.join(folder, "probe"))
            write_file(probe, b"")
            return remove(probe)
        there = os.path.abspath(folder)
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        # In the deepest folder that there is: what cannot be written there can be made no further
        # down.
        with tempfile.TemporaryDirectory(dir=there, prefix=".tfssl-"):
            pass
    except errors() as e:
        raise UserError(
            f"{setting}={folder} cannot be written ({one_line(e)}): choose another folder"
        ) from e


def check_file(path: str, setting: str) -> None:
    """The same for a file, which need not be there yet: its folder has to take it. What killed
    processes left of it goes, after a day."""
    if not path or path.endswith("/") or (is_local(path) and os.path.isdir(path)):
        raise UserError(f"{setting}={path} names a folder: give the name of a file")
    if (
        not is_local(path) or os.path.isfile(path) or not os.path.exists(path)
    ):  # others are pipes and devices
        folder, name = os.path.split(path)
        check_writable(folder or ".", f"{setting}, in")
        for leftover in (
            matching(folder, re.escape(name[:40]) + _TEMPORARY) if is_local(path) else ()
        ):
            with contextlib.suppress(OSError):
                if time.time() - os.path.getmtime(leftover) > 86_400:
                    remove(leftover)


@contextlib.contextmanager
def plain(path: str) -> Iterator[str]:
    """Another name of a path for as long as the context lasts, for readers that would take `[`,
    `*`, `?` or `{` in it for a pattern: TensorFlow's ops that restore variables. A path without
    them stays itself."""
    folder, name = os.path.split(os.path.abspath(path)) if is_local(path) else (path, "")
    if not PATTERN.search(folder) or not is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tfssl-") as links:
        link = os.path.join(links, "folder")
        os.symlink(folder, link)
        yield os.path.join(link, name)


def claim(file: IO[bytes]) -> None:
    """Have the disk set all bytes of a local file, open for reading and writing, aside: to write to
    its memory map cannot fail then, which would kill the process.

    Raises:
      OSError: there is no room.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # macOS: write what is there
        for begin in range(0, size, 1 << 24):
            os.pwrite(
                file.fileno(), os.pread(file.fileno(), min(1 << 24, size - begin), begin), begin
            )
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot promise it
            raise

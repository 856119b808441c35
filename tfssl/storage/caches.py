"""Where tfssl keeps what it can make again: unpacked archives, record counts, rendered glyphs."""

from __future__ import annotations

import os

import tensorflow as tf

from tfssl.storage.files import Content, write_file


def cache_dir(data_dir: str | None = None) -> str:
    """The local folder for such things: `data_dir`, else the environment's TFSSL_CACHE, else
    ~/.cache/tfssl.

    A remote `data_dir` (gs://...) is passed over: unpacked files are read one by one.
    """
    if data_dir and "://" not in data_dir:
        return os.path.abspath(os.path.expanduser(data_dir))
    return os.path.abspath(os.path.expanduser(os.environ.get("TFSSL_CACHE") or "~/.cache/tfssl"))


def stamp(path: str) -> list[int]:
    """[size, time of the last change in ns] of a file: what tells one version of it from the next;
    of local ones, and as a third the time of the last change of its entry (its owner, name or
    contents), which no program can set.

    Raises:
      tf.errors.OpError, OSError: if there is no such file.
    """
    path = path[len("file://") :] if path.startswith("file:///") else path
    if "://" in path:
        stat = tf.io.gfile.stat(path)
        return [stat.length, stat.mtime_nsec]
    stat = os.stat(path)  # TensorFlow rounds local times to seconds
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def try_write(path: str, content: Content) -> bool:
    """`write_file` for what can be made again: False where nothing can be written."""
    try:
        write_file(path, content)
        return True
    except (tf.errors.OpError, OSError):
        return False

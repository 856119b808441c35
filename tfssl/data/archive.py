"""Archives of images, unpacked once into the cache folder."""

import hashlib
import lzma
import os
import shutil
import tarfile
import uuid
import zipfile
import zlib

import tensorflow as tf
from absl import logging

from tfssl.data.cache import cache_dir, stamp
from tfssl.errors import UserError

_BROKEN = (
    OSError,
    KeyError,  # a link to nowhere
    EOFError,
    RuntimeError,  # a password
    tf.errors.OpError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz")


def unpack(path, data_dir=None):
    """The folder that holds the files of an archive; unpacked on first use, and again if the archive has changed.

    Only plain files are written, each below the folder. A name that would lead elsewhere ("../x", "/etc/x") is refused
    with a UserError, as is an archive that is broken.
    """
    try:
        size, changed, *_ = stamp(path)
    except (tf.errors.OpError, OSError):
        raise UserError(f"no such archive: {path!r}") from None
    path = path if "://" in path else os.path.abspath(path)
    key = hashlib.blake2b(f"{path} {size} {changed}".encode(), digest_size=8).hexdigest()
    name = os.path.basename(path)
    target = os.path.join(cache_dir(data_dir), "archives", f"{name}-{key}")
    if os.path.isdir(target):
        return target
    logging.warning("unpacking %s into %s, this once", path, target)
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        os.makedirs(temporary)
        with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as file:
            (_unzip if path.lower().endswith(".zip") else _untar)(file, temporary, path)
        os.rename(temporary, target)
    except _BROKEN as error:
        if not os.path.isdir(target):  # else another process was faster
            where = os.path.dirname(target)
            raise UserError(
                f"cannot unpack {path!r} into {where!r}: {error}; TFSSL_CACHE names another place"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _untar(file, folder, path):
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for member in archive:
            if member.isreg() or member.islnk():  # a hard link is one more file; symbolic links are left out
                _write(archive.extractfile(member), folder, member.name, path)


def _unzip(file, folder, path):
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                _write(archive.open(member), folder, member.filename, path)


def _write(content, folder, name, path):
    target = os.path.abspath(os.path.join(folder, name.replace("\\", "/")))
    if not target.startswith(folder + os.sep):
        raise UserError(f"{path!r} is not safe to unpack: it holds {name!r}, which lies outside of it")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with content, open(target, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)

"""Archives of images, unpacked once into the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from typing import IO

import tensorflow as tf
from absl import logging

from tfssl.errors import UserError
from tfssl.storage import files, locks
from tfssl.storage.caches import cache_dir, stamp

RATIO, LIMIT = 200, 1 << 30  # a JPEG of one color is 1/200 of its pixels; bytes
BROKEN = (  # what archives raise that are damaged
    OSError,
    KeyError,  # a link to nowhere
    EOFError,
    RuntimeError,  # a password
    ValueError,
    IndexError,
    struct.error,
    tf.errors.OpError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz")


def unpack(path: str, data_dir: str | None = None) -> str:
    """The folder that holds the files of an archive; unpacked on first use, and again if the
    archive has changed.

    Only plain files are written, each below the folder. One process unpacks, and others that need
    the same wait for it; what a killed one left goes at the next call.

    Raises:
      UserError: the archive is broken, or there is no room for it; or it holds what `Extraction`
        refuses.
    """
    try:
        size, changed, *_ = stamp(path)
    except (tf.errors.OpError, OSError):
        raise UserError(f"no such archive: {path!r}") from None
    path = path if "://" in path else os.path.abspath(path)
    key = hashlib.blake2b(f"{path} {size} {changed}".encode(), digest_size=8).hexdigest()
    where = os.path.join(cache_dir(data_dir), "archives")
    target, unfinished = (
        os.path.join(where, f"{os.path.basename(path)}-{key}"),
        os.path.join(where, f"{key}.tmp"),
    )
    _sweep(where)
    told = False
    while not os.path.isdir(target):
        try:
            os.makedirs(where, exist_ok=True)
            with locks.hold(
                _lock_of(unfinished),
                f"the unpacking of {path} (into --data_dir, or TFSSL_CACHE)",
                "it is waited for",
            ):
                if os.path.isdir(target):
                    break
                logging.warning("unpacking %s into %s, this once", path, target)
                files.remove(unfinished)
                try:
                    os.makedirs(unfinished)
                    with (
                        tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as file
                    ):
                        extract = _unzip if path.lower().endswith(".zip") else _untar
                        extract(file, Extraction(path, size, unfinished))
                    files.sync_tree(unfinished)
                    os.rename(unfinished, target)
                finally:
                    with contextlib.suppress(OSError):
                        files.remove(unfinished)
        except locks.Busy as busy:
            if not told:
                logging.warning("%s", busy)
            told = True
            time.sleep(1)
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(
                f"cannot unpack {path!r} into {where!r}: {error}; TFSSL_CACHE names another place"
            ) from error
    return target


def _lock_of(unfinished: str) -> str:
    return unfinished[: -len(".tmp")] + ".lock"


def _sweep(where: str) -> None:
    """Remove what killed processes left half unpacked."""
    try:
        leftovers = files.matching(where, r".*\.tmp")
    except OSError:
        return
    for leftover in leftovers:
        with contextlib.suppress(
            UserError, OSError
        ):  # somebody is at work there, or it is not ours
            with locks.hold(_lock_of(leftover), leftover, ""):
                # Older versions hold no lock, and write other names: what changed today may be
                # theirs.
                if (
                    re.fullmatch(r"[0-9a-f]{16}\.tmp", os.path.basename(leftover))
                    or time.time() - os.path.getmtime(leftover) > 86_400
                ):
                    logging.warning("removing %s, which a process left half unpacked", leftover)
                    files.remove(leftover)


class Extraction:
    """The files of one archive, on their way into a folder.

    Refused with a `UserError`: a name that would lead elsewhere ("../x", "/etc/x"), or that no file
    can have; more than there is room for; and more than LIMIT bytes if that is more than RATIO
    times the archive, which no images are.

    Args:
      path: the archive, for messages.
      size: its bytes.
      folder: where the files go.
    """

    def __init__(self, path: str, size: int, folder: str) -> None:
        self.path, self.size, self.folder, self.written = path, size, os.path.abspath(folder), 0
        self.expect(size)

    def expect(self, size: int) -> None:
        """So many more bytes are to come, at least."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"cannot unpack {self.path!r} into {self.folder!r}: No space left on device for "
                f"{size / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free; make room, or name another place: TFSSL_CACHE, "
                "TMPDIR"
            )
        total = self.written + size
        if total > max(LIMIT, RATIO * self.size):
            raise UserError(
                f"{self.path!r} is not unpacked: its {self.size:,} bytes become {total:,} or more, "
                f"over {RATIO} times as many, "
                "which neither images nor weights do; if you trust it, unpack it yourself and give "
                "the folder"
            )

    def write(self, content: IO[bytes], name: str) -> None:
        """Write a file of the archive, of open `content`."""
        try:
            name.encode()
            odd = "\0" in name
        except UnicodeEncodeError:
            odd = True
        if odd:
            raise UserError(
                f"{self.path!r} is not unpacked: it holds {name!r}, a name that is not text in "
                "UTF-8: rename that file"
            )
        target = os.path.abspath(os.path.join(self.folder, name.replace("\\", "/")))
        if not target.startswith(self.folder + os.sep):
            raise UserError(
                f"{self.path!r} is not safe to unpack: it holds {name!r}, which lies outside of it"
            )
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with content, open(target, "wb") as file:
            while block := content.read(1 << 20):
                self.expect(len(block))
                file.write(block)
                self.written += len(block)

    def member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Write a regular file, or a hard link, of a `tarfile`."""
        if member.issparse():
            raise UserError(
                f"{self.path!r} is not unpacked: it holds {member.name!r}, a sparse file: pack it "
                "again without --sparse"
            )
        self.expect(member.size)
        content = archive.extractfile(member)
        if content is None:
            raise UserError(
                f"{self.path!r} is not unpacked: it holds {member.name!r}, a link to what is no "
                "file"
            )
        self.write(content, member.name)


def _untar(file: IO[bytes], extraction: Extraction) -> None:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for member in archive:
            if (
                member.isreg() or member.islnk()
            ):  # a hard link is one more file; symbolic links are left out
                extraction.member(archive, member)


def _unzip(file: IO[bytes], extraction: Extraction) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        extraction.expect(sum(member.file_size for member in members))
        for member in members:
            extraction.write(archive.open(member), member.filename)

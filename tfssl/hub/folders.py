"""From a module's handle to the folder of its SavedModel: local, gs://, a tarball, or https."""

from __future__ import annotations

import os
import tarfile

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.hub import messages, remote
from tfssl.storage import archive, files

_ARCHIVES = (".tar.gz", ".tgz", ".tar")


def resolve(handle: str) -> str:
    """The folder that holds a handle's saved_model.pb.

    Raises:
      UserError: there is none, or it cannot be reached or unpacked.
    """
    if handle.startswith(("http://", "https://")):
        return _unpack(remote.fetch(handle))
    exists = tf.io.gfile.exists
    folder = os.path.expanduser(handle) if files.is_local(handle) else handle
    try:
        if handle.endswith(_ARCHIVES) and exists(folder) and not tf.io.gfile.isdir(folder):
            return _unpack(folder)
        if exists(os.path.join(folder, "saved_model.pb")):
            return folder
        is_there = exists(folder)
        parents = (folder, os.path.join(folder, "module")) if tf.io.gfile.isdir(folder) else ()
        inside = [
            inner
            for parent in parents
            for inner in files.matching(parent, ".*")
            if exists(os.path.join(inner, "saved_model.pb"))
        ]
    except files.errors() as e:
        raise UserError(f"module {handle!r} cannot be opened: {messages.complaint(e)}") from e
    if inside:
        raise UserError(
            f"module {handle!r} has no saved_model.pb, but these folders in it have: "
            f"{', '.join(sorted(inside)[:5])}"
        )
    if is_there and not tf.io.gfile.isdir(folder):
        raise UserError(
            f"module {handle!r} is a file, not a SavedModel's folder: {_way_from(handle)}"
        )
    what = "has no saved_model.pb" if is_there else "does not exist"
    raise UserError(
        f"module {handle!r} {what}; give the folder of a SavedModel (tfssl-export makes one), a "
        ".tar.gz of it, or a URL"
    )


def _way_from(file: str) -> str:
    """How to make a SavedModel of a file."""
    stem, ending = os.path.splitext(file)
    if ending in (".keras", ".h5", ".hdf5"):
        load = f"keras.saving.load_model({file!r}, compile=False).export({stem!r})"
        command = f'python -c "import keras; {load}"'
        return f"{command} writes one to {stem}; it then gets RGB images in [0, 1]"
    if os.path.basename(file) == "saved_model.pb":
        return f"give the folder, {os.path.dirname(file) or '.'}"
    return "give the folder of one (tfssl-export makes one), a .tar.gz of it, or a URL"


def _unpack(path: str) -> str:
    """Extract a tarball into a folder that is removed at exit; it may hold plain files and folders
    only."""
    folder = files.scratch("tfssl-module-")
    try:
        extraction = archive.Extraction(path, tf.io.gfile.stat(path).length, folder)
        with tf.io.gfile.GFile(path, "rb") as f, tarfile.open(fileobj=f, mode="r|*") as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise UserError(
                        f"module {path!r}: the archive holds {member.name!r}, which is a link or a "
                        "device"
                    )
                if member.isfile():
                    extraction.member(tar, member)
    except UserError:
        raise
    except archive.BROKEN as e:
        raise UserError(f"module {path!r} cannot be unpacked: {messages.complaint(e)}") from e
    roots = [root for root, _, names in os.walk(folder) if "saved_model.pb" in names]
    if len(roots) != 1:
        raise UserError(
            f"module {path!r}: expected one SavedModel in the archive, found {len(roots)} files "
            "saved_model.pb"
        )
    return roots[0]


def plain(folder: str) -> str:
    """A link to a folder whose name TensorFlow would read as a pattern. It exists until the process
    ends: a module's functions may read assets at any time."""
    if not files.is_local(folder) or not files.PATTERN.search(os.path.abspath(folder)):
        return folder
    link = os.path.join(files.scratch("tfssl-module-"), "module")
    os.symlink(os.path.abspath(folder), link)
    return link

"""A published folder: complete or absent under its name, and never changed."""

import contextlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any, Optional, Union

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.storage import files, locks

FACTS = "tfssl.json"
Path = Union[str, "os.PathLike[str]"]
Made = tuple[Any, dict[str, Any], dict[str, Any]]  # a module, its signatures, facts


def publish(
    path: Path,
    made: Callable[[], Made],
    facts: Mapping[str, Any],
    assets: Optional[Mapping[str, str]] = None,
    tarball: bool = False,
) -> str:
    """Write a SavedModel, which is complete or absent under its name, and holds nothing of an
    earlier try.

    Args:
      path: the folder, which must not exist yet; or, with `tarball`, the same module, which then is
        packed.
      made: a function () -> (the object to save, its signatures, what only it knows of the facts).
      facts: for tfssl.json.
      assets: {name: text} of further ones.
      tarball: also write `path.tar.gz`.
    """
    path = str(path).rstrip("/")
    lock = path + ".lock"
    with locks.hold(
        lock,
        path,
        f"wait for it, choose another folder, or remove {lock} if there is no such process",
    ):
        _publish(path, made, facts, assets or {}, tarball)
    return path


def _publish(
    path: str,
    made: Callable[[], Made],
    facts: Mapping[str, Any],
    assets: Mapping[str, str],
    tarball: bool,
) -> None:
    """Under the lock of `path`: what unfinished things there are, are those of processes that are
    gone."""
    _remove_unfinished(path)
    there = tf.io.gfile.exists(path)
    packed = tarball and tf.io.gfile.exists(path + ".tar.gz")
    if packed or (there and not tarball):
        raise UserError(
            f"{path + '.tar.gz' if packed else path} exists, and published versions never change: "
            "choose another folder"
        )
    module, signatures, more = made()
    facts = {**facts, **more}
    if there:
        _check_same(path, facts)
        _write_tarball(path)
        return
    # Renamed when complete. Where that would be a copy, file by file, saved_model.pb, which
    # TensorFlow writes after the rest, is the mark.
    local = files.is_local(path)
    unfinished = f"{path}.{files.unique()}.unfinished" if local else path
    with tempfile.TemporaryDirectory() as folder:
        module.assets = []
        for name, text in {FACTS: json.dumps(facts, indent=1), **assets}.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
                f.write(text)
            module.assets.append(tf.saved_model.Asset(f.name))
        try:
            tf.saved_model.save(module, unfinished, signatures=signatures)
            if local:
                files.sync_tree(unfinished)
                os.rename(unfinished, path)  # refused where another module is by now
                files.sync(os.path.dirname(path) or ".")
        except BaseException:
            with contextlib.suppress(*files.errors()):
                _remove_unfinished(path)
            raise
    if tarball:
        _write_tarball(path)


def _remove_unfinished(path: str) -> None:
    """Remove what an export left that did not come to its end: folders beside `path`; or, in an
    object store, its parts in that place."""
    parent, name = os.path.split(path)
    own, packed = re.escape(name), re.escape(f"{name}.tar.gz")
    for leftover in files.matching(
        parent, rf"{own}(\.\d+-[0-9a-f]{{8}})?\.unfinished|{packed}\.\d+-[0-9a-f]{{8}}\.tmp"
    ):
        files.remove(leftover)
    if (
        not files.is_local(path)
        and tf.io.gfile.isdir(path)
        and set(files.listdir(path)) <= {"assets", "variables"}
    ):
        files.remove(path)


def _check_same(path: str, facts: Mapping[str, Any]) -> None:
    """Refuse to pack a module under a name that would promise another one."""
    try:
        with tf.io.gfile.GFile(os.path.join(path, "assets", FACTS)) as f:
            published = json.load(f)
    except (tf.errors.OpError, ValueError):
        published = None
    expected = json.loads(json.dumps(facts))
    if isinstance(published, dict):  # of before they were told
        published = {"channels": 3, "value_range": "", **published}
    told = [
        key
        for key in expected
        if key not in ("versions", "training_flags", "network", "normalization")
    ]  # what a run, or a newer tfssl, may change without making another one
    if not isinstance(published, dict) or any(published.get(key) != expected[key] for key in told):
        raise UserError(
            f"{path} exists and is another module, and published versions never change: choose "
            "another folder"
        )


def _write_tarball(path: str) -> None:
    """`path.tar.gz` with the module at its root."""
    with tempfile.TemporaryDirectory() as folder:
        local = path
        if "://" in path:
            local = os.path.join(folder, "module")
            for root, _, names in tf.io.gfile.walk(path):
                inside = os.path.join(local, os.path.relpath(root, path))
                os.makedirs(inside, exist_ok=True)
                for name in names:
                    tf.io.gfile.copy(os.path.join(root, name), os.path.join(inside, name))

        def pack(file: IO[bytes]) -> None:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                for name in sorted(os.listdir(local)):
                    tar.add(os.path.join(local, name), arcname=name)

        files.write_file(path + ".tar.gz", pack)

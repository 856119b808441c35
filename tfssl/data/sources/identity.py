"""What a data set is: the one notion of its identity, by which a run that goes on and a cache that
answers know their data again.

Not the text of `--dataset`, and not the path: the files themselves. An identity has these parts,
each a digest of all images, not of some:

    names      of all files in the order of the split, from their common folder on: images (and
               masks or depth beside them), or shards
    contents   their sizes in bytes; of what has no files of its own (glyphs), the pixels
    labels     labels, boxes or marks of all images, where they are known without reading the
               images, and the names of the classes
    reading    how the files are read: record keys, the range of each shard, the choice of a subset
    times      of the last change of each file, and of its entry on the disk (which no program can
               set)
    folder     the common folder
    sample     bytes of SAMPLE files at most, where that is asked for: of each the first, middle and
               last PIECE

Two uses, which ask for different things:

- A run that goes on (`differences`) compares all but `times` and `folder`: a copy on another disk
  is the same data. Files that were rewritten with as many bytes are noticed if the sample meets
  them: all of a set that is no larger, and of one in which a hundredth is other, 99.4 times in 100.
  For the rest `same_place_other_times` tells of them where the folder is the same.
- A cache (`key`) compares everything but the sample: in doubt it computes again.

Files are asked for by 16 threads (64 where they are remote): 3.5 s of processor time for a million
local files, which is less than it takes to open their folder (4.3 s). Nothing is read but the
sample, 100 MB at most.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from tfssl.errors import UserError, one_line
from tfssl.storage.caches import stamp
from tfssl.version import __version__

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source

_THREADS, _REMOTE_THREADS, _CHUNK = 16, 64, 1000
SAMPLE, PIECE = 512, 1 << 16  # files, bytes


@dataclasses.dataclass
class Parts:
    """What a source is made of: what `Source.parts` returns.

    Attributes:
      files: paths of all files whose change would change an example, in split order: list of str.
      labels: arrays of the images' labels, boxes or classes shown, int or float; empty where they
        are read from the files alone.
      pixels: arrays of images that have no files.
      reading: JSON-able, how files become examples.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    pixels: list[np.ndarray] = dataclasses.field(default_factory=list)
    reading: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Sampled(TypedDict, total=False):
    sample: str


class Identity(_Sampled):
    """What `of` returns; hex digests unless said otherwise."""

    num_examples: int
    num_classes: int | None
    class_names: list[str] | None
    names: str
    contents: str
    labels: str
    reading: str
    times: str | None
    folder: str  # a path


def of(source: Source, sample: bool = False) -> Identity:
    """The identity of a `tfssl.data.Source`, as it is on the disk now: a JSON-able dict; see the
    module.

    Beside the parts it has "num_examples", "num_classes" and "class_names". "times" is None for a
    source of one's own that does not say what it is made of (see `Source.parts`).

    Raises:
      UserError: the file system does not answer, or no file is there for a while.
    """
    parts = source.parts()
    folder, names = relative(parts.files)
    stamps = _there(parts.files)
    classes = list(source.class_names) if source.class_names else None
    identified = parts.files or parts.pixels
    reading: dict[str, Any] = parts.reading
    if not source.pixels.plain:
        reading = {"of": reading, "pixels": dataclasses.asdict(source.pixels)}
    identity: Identity = {
        "num_examples": source.num_examples,
        "num_classes": source.num_classes,
        "class_names": classes,
        "names": _digest("\0".join(names).encode("utf-8", "surrogateescape")),
        "contents": _digest(stamps[:, 0], *parts.pixels),
        "labels": _digest(json.dumps(classes).encode(), *parts.labels),
        "reading": _digest(json.dumps(reading, sort_keys=True, default=str).encode()),
        "times": _digest(stamps[:, 1:]) if identified else None,
        "folder": folder,
    }
    if sample:
        identity["sample"] = sampled(parts.files)
    return identity


def _there(paths: Sequence[str]) -> np.ndarray:
    """`stat_all`; where not one file is there, they are away, and waited for: they are no other
    data."""
    from tfssl.data.gaps import Patience

    patience, tries = Patience(), 0
    while (stamps := stat_all(paths)).size and (stamps[:, 0] < 0).all():
        gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), paths[0])
        patience.wait(paths[0], gone, tries)
        tries += 1
    return stamps


def described(source: Source) -> dict[str, Any]:
    """What results say of the data that they are about: {"digest": in hex, "num_examples",
    "num_classes"}."""
    identity = of(source, sample=True)
    return {
        "digest": text(identity),
        **{name: identity[name] for name in ("num_examples", "num_classes")},
    }


def sampled(paths: Sequence[str]) -> str:
    """A digest of the bytes of some files, spread evenly over all.

    Raises:
      UserError: the file system does not answer.
    """
    some = [paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE))]
    remote = any("://" in path for path in paths[:1])
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS if remote else _THREADS) as pool:
        return _digest(*pool.map(_pieces, some))


def _pieces(path: str) -> bytes:
    """The digest of a file's first, middle and last bytes; of one that is not there, that of
    none."""
    import tensorflow as tf

    digest, size = hashlib.blake2b(digest_size=16), _stat(path)[0]
    if "://" not in path and os.path.exists(path) and not os.path.isfile(path):
        return b""  # to open a pipe would wait for its writer
    try:
        with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as file:
            for begin in sorted({0, max(0, size // 2 - PIECE // 2), max(0, size - PIECE)}):
                file.seek(begin)
                digest.update(file.read(PIECE))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, tf.errors.NotFoundError):
        return b""
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"{path!r} cannot be read ({one_line(error)}): use the same command again when it can "
            "be"
        ) from error
    return digest.digest()


def stat_all(paths: Sequence[str]) -> np.ndarray:
    """int64 [N, 3]: size, and times of the last change of contents and of the entry in ns, of all
    files; -1 of one that is not there.

    Raises:
      UserError: the file system does not answer.
    """
    remote = any("://" in path for path in paths[:1])
    size = 1 if remote else _CHUNK
    chunks = [paths[i : i + size] for i in range(0, len(paths), size)]
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS if remote else _THREADS) as pool:
        rows = [row for part in pool.map(_stat_some, chunks) for row in part]
    return np.array(rows, np.int64).reshape(-1, 3)


def _stat_some(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """The rows of a few files; the short way for most, the long one where one of them is remote or
    missing."""
    try:
        return [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in map(os.stat, paths)]
    except OSError:
        return [_stat(path) for path in paths]


def _stat(path: str) -> tuple[int, ...]:
    import tensorflow as tf

    try:
        return (*stamp(path), 0)[:3]
    except (FileNotFoundError, NotADirectoryError, tf.errors.NotFoundError):
        return (
            -1,
            -1,
            -1,
        )  # a list may name what is not there: an image that cannot be read, like others
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"{path!r} cannot be asked for its size ({one_line(error)}): use the same command "
            "again when its file system answers"
        ) from error


def relative(paths: list[str]) -> tuple[str, list[str]]:
    """(the common folder of paths, the paths from there on). One file lies in its folder."""
    folder = os.path.dirname(os.path.commonprefix(paths)) if paths else ""
    start = len(folder) + 1 if folder and folder != "/" else len(folder)
    return os.path.abspath(folder) if paths and "://" not in folder else folder, [
        path[start:] for path in paths
    ]


def text(identity: Identity) -> str:
    """The same of the same data wherever they are, as `differences` compares them: a digest in
    hex."""
    same = {name: value for name, value in identity.items() if name not in ("times", "folder")}
    return _digest(json.dumps(same, sort_keys=True).encode())


def key(identity: Identity) -> Identity | None:
    """What a cache's key holds of an identity; None where it cannot know its data again."""
    return None if identity["times"] is None else identity


# What a difference of each part means, the most telling first.
_TELLING: tuple[tuple[Literal["names", "contents", "labels", "reading", "sample"], str], ...] = (
    ("names", "other files: some were renamed, moved or replaced"),
    ("contents", "files of the same names, but some have other sizes: they were written anew"),
    ("labels", "other labels, or boxes"),
    ("reading", "the same files, of which others are chosen, or which are read in another way"),
    (
        "sample",
        "files of the same names and sizes, but some have other contents: they were written anew",
    ),
)


def differences(old: Identity, new: Identity) -> list[str]:
    """How data differ from those of an earlier identity, in words: list of str, the plainest first;
    empty where they are the same.

    A copy in another folder, with other times, is the same.
    """
    found = []
    if old["num_examples"] != new["num_examples"]:
        found.append(f"{old['num_examples']} images then, {new['num_examples']} now")
    if old["class_names"] != new["class_names"] or old["num_classes"] != new["num_classes"]:
        found.append(_classes(old, new))
    if not found:
        if "sample" in new and "sample" not in old:  # of before there was one
            old = {**old, "sample": new["sample"]}
        found = [text for part, text in _TELLING if old.get(part) != new.get(part)][:1]
    return found


def _classes(old: Identity, new: Identity) -> str:
    before, after = old["class_names"] or [], new["class_names"] or []
    gone, added = (
        [name for name in one if name not in other]
        for one, other in ((before, after), (after, before))
    )
    if gone or added:
        parts = [
            f"{word}: {', '.join(some[:5])}"
            for word, some in (("gone", gone), ("new", added))
            if some
        ]
        return f"other classes ({'; '.join(parts)})"
    if before and after:
        return f"the classes in another order ({', '.join(after[:5])})"
    return f"{old['num_classes'] or 'no'} classes then, {new['num_classes'] or 'none'} now"


def renumbered(old: Identity, new: Identity) -> list[tuple[int, str, str]]:
    """Labels that stand for another class than before: list of (number, earlier class, class)."""
    before, after = old["class_names"] or [], new["class_names"] or []
    return [(i, a, b) for i, (a, b) in enumerate(zip(before, after)) if a != b]


def same_place_other_times(old: Identity, new: Identity) -> bool:
    """Whether the very files have been written again since, with as many bytes: nobody but their
    owner knows whether they are the same."""
    return (
        old["folder"] == new["folder"]
        and None not in (old["times"], new["times"])
        and old["times"] != new["times"]
    )


def versions() -> dict[str, str]:
    """What of ours and of our libraries shapes what is computed from data: {"tfssl", "tensorflow",
    "python"}."""
    import tensorflow as tf

    return {"tfssl": __version__, "tensorflow": tf.__version__, "python": platform.python_version()}


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    content: bytes | memoryview
    for part in parts:
        if isinstance(part, bytes):
            content, kind = part, "bytes"
        else:
            part = np.ascontiguousarray(part)
            content, kind = (
                part.view(np.uint8).data if part.size else b"",
                f"{part.dtype.str}{part.shape}",
            )
        digest.update(
            f"{kind} {len(content) if isinstance(content, bytes) else content.nbytes} ".encode()
        )
        digest.update(content)
    return digest.hexdigest()

"""`folder:PATH`: image files in folders, or in an archive of folders.

    PATH/train/cat/x.jpg  PATH/test/dog/y.jpg    by split and class
    PATH/cat/x.jpg  PATH/dog/y.jpg               by class; all is the split `train`
    PATH/x.jpg  PATH/2019/y.jpg                  unlabelled; all is the split `train`
    PATH/train/x.jpg  PATH/test/y.jpg            by split, unlabelled

Splits may have other people's names, and lie deeper: see `tfssl.data.listing.layout`, which also
says what is passed over. Classes are the folders of a split, and what lies deeper belongs to them;
there are none if there is but one. A lone outer folder (PATH/photos/train/..., as archives have it)
is stepped through. Hidden files and folders do not count, nor do those that systems put there
(@eaDir, __MACOSX, $RECYCLE.BIN), nor what tfssl itself wrote (`tfssl.data.listing.outputs`).
Whatever else is not used is in `Source.left_out`.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tensorflow as tf

from tfssl.data.listing import layout, outputs
from tfssl.data.ops import formats
from tfssl.data.sources.base import IndexedSource, first
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError, reason_of
from tfssl.storage import archive

# What tf.io.decode_image reads, and other endings of the same formats; and what `formats` does.
FORMATS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".jfif",
    ".jpe",
    ".jif",
    ".jfi",
    ".pjpeg",
    ".pjp",
    ".apng",
    ".dib",
    *formats.ENDINGS,
)
_VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
_SPECIAL = "pipes, sockets or devices"  # which to open may wait for ever
_ARRAYS = ".npy"  # are images where there are no others; beside such, labels or the like
UNREAD = (  # images in formats that are not read
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".psd",
    ".svg", ".ico", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
    ".raw",
)  # fmt: skip
# folders of Synology and QNAP, Windows, macOS, Linux, Android, Python; in lower case
_OF_SYSTEMS = {
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@sharesnap",
    "$recycle.bin", "$winreagent", "recycler", "recycled", "system volume information", "found.000",
    "__macosx", "network trash folder", "temporary items", "lost+found", "lost.dir", "__pycache__",
}  # fmt: skip


class Files(IndexedSource):
    """Image files at `paths`, in that order.

    `labels`: int, -1 for none; none by default. `shown`: (folder, what names begin with in its
    place).
    """

    def __init__(
        self,
        spec: str,
        split: str,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        shown: tuple[str, str] = ("", ""),
    ) -> None:
        super().__init__(spec, split, len(paths), num_classes, class_names)
        self._shown = shown
        self.foreign = any(path.lower().endswith(formats.ENDINGS) for path in paths)
        with tf.device(
            "CPU"
        ):  # a pipeline's functions capture them as they are: a graph never holds them
            self._paths = tf.constant(paths)
            self._labels = tf.constant([-1] * len(paths) if labels is None else labels, tf.int64)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = record["index"]
        image = tf.io.read_file(tf.gather(self._paths, index))
        label = tf.gather(self._labels, index)
        return {"image": self.read(image), "label": label, "index": index}

    def parts(self) -> Parts:
        return Parts([path.decode() for path in self._paths.numpy()], [self._labels.numpy()])

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        (folder, shown), path = self._shown, tf.gather(self._paths, record["index"])
        return (
            path
            if folder == shown
            else tf.strings.join([shown, tf.strings.substr(path, len(folder.encode()), 1 << 20)])
        )

    def name(self, index: int) -> str:
        return self._called(self._paths[index].numpy())

    def names(self) -> list[str]:
        return [self._called(path) for path in self._paths.numpy()]

    def _called(self, path: bytes) -> str:
        folder, shown = self._shown
        return shown + path.decode()[len(folder) :]


def unlabelled(path: str, data_dir: str | None = None) -> Files:
    """All images below a folder, or in an archive, by name; or one image file: `Files`.

    Raises:
      UserError: there is none.
    """
    root, shown = _open(path, path, data_dir)
    if not tf.io.gfile.isdir(root) and tf.io.gfile.exists(root):
        return Files(root, "all", [root])
    found = _list(root, path)
    source = Files(
        path, "all", sorted(f"{root}/{name}" for name in found.images), shown=(root, shown)
    )
    source.unread = sorted(f"{shown}/{name}" for name in found.unread)
    source.ignored = found.ignored()
    _tell_left_out(source, found)
    return source


class FolderSource(Files):
    """Image files. The classes are those of all splits together, sorted by name.

    Within a split the files are in the order of a hash of their path, so that a slice is a fair
    sample of all classes, and the order of the images does not change when others are added.
    """

    form = "folder:PATH"
    unit = "images"  # what is counted, sliced and sorted

    def __init__(
        self, spec: str, path: str, split: str = "train", data_dir: str | None = None
    ) -> None:
        root, _ = _open(path, spec, data_dir)
        found = _list(root, spec)
        arranged = self._arrange(found.images)
        of_all = {c for parts in arranged.splits.values() for part in parts for c in part.classes()}
        names = sorted(c for c in of_all if c is not None)
        number: dict[str | None, int] = (
            {name: label for label, name in enumerate(names)} if len(names) > 1 else {}
        )

        left = _folders(arranged.passed, self.unit)
        passed = f"; passed over: {first(left)}" if left else ""
        sizes = {
            name: [sum(len(part.names) for part in parts)]
            for name, parts in arranged.splits.items()
        }
        unit = "examples" if self.unit == "images" else self.unit
        ranges = resolve(split, sizes, spec, beside=passed, unit=unit)
        units, of_units = [], []
        for name, start, stop in ranges:
            files: list[tuple[str, str, int]] = []
            for part in arranged.splits[name]:
                of_classes = [number.get(of_class, -1) for of_class in part.classes()]
                files += zip(
                    [part.key + n for n in part.names],
                    [part.folder + n for n in part.names],
                    of_classes,
                )
            for _, file, label in sorted(files, key=lambda file: order_key(file[0]))[start:stop]:
                units.append(file)
                of_units.append(label)
        paths, labels = [], []
        for image, unit_number in self._images(units):
            paths.append(f"{root}/{image}")
            labels.append(of_units[unit_number])
        named = (len(names), names) if max(labels) >= 0 else (None, None)
        super().__init__(spec, split, paths, labels, *named)
        self.ranges, self.ignored = ranges, found.ignored()
        for reason, those in (
            ("folders that are no split", left),
            (f"{self.unit} beside the splits", arranged.beside_splits),
            (f"{self.unit} beside the classes", arranged.stray),
        ):
            if those:
                self.left_out[reason] = those
        _tell_left_out(self, found)
        if arranged.taken:
            self.remarks.append(
                "taken for a class, not a split, like the folders beside it: "
                f"{', '.join(arranged.taken)}"
            )
        loose = [image for name, *_ in ranges for image in arranged.loose.get(name, [])]
        if loose:
            self.unlabelled_because = (
                f"{len(loose)} {self.unit} lie beside the class folders: move each into one, or "
                f"out of there: {first(loose)}"
            )

    def _arrange(self, images: list[str]) -> layout.Layout:
        """The splits and classes of the paths of all images."""
        return layout.arrange(images)

    def _images(self, units: Sequence[str]) -> Iterable[tuple[str, int]]:
        """(image, the position of its unit among these) in the order of the split."""
        return ((unit, i) for i, unit in enumerate(units))


def _folders(passed: Mapping[str, int], unit: str) -> list[str]:
    """What is said of folders: {folder: images} -> list."""
    return [f"{folder} ({count} {unit})" for folder, count in sorted(passed.items())]


def _tell_left_out(source: Files, found: _Found) -> None:
    if found.own:
        source.left_out["what tfssl itself wrote there"] = sorted(found.own)
    if found.special:
        source.left_out[_SPECIAL] = sorted(found.special)
    by_remedy: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(found.unread):
        install = formats.absent(_ending(name))
        remedy = f"need {install}" if install else "that are not read: convert them to .jpg or .png"
        by_remedy[remedy].append(name)
    for remedy, names in by_remedy.items():
        endings = collections.Counter(map(_ending, names))
        counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
        source.left_out[f"{counts} (formats {remedy})"] = names


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def order_key(path: str) -> bytes:
    """What decides the order of a split: a hash of a path."""
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


def _open(path: str, spec: str, data_dir: str | None) -> tuple[str, str]:
    """(the folder to read, what its files are shown below): of an archive, the folder that it is
    unpacked to, and its own name."""
    root = (os.path.expanduser(path) if "://" not in path else path).rstrip("/") or "/"
    try:
        if root.lower().endswith(archive.ENDINGS) and not tf.io.gfile.isdir(root):
            return archive.unpack(root, data_dir), root
        tf.io.gfile.exists(root)  # raises for a place that cannot be looked at
    except tf.errors.OpError as error:
        raise UserError(f"{spec}: {reason_of(error)}") from error
    return root, root


@dataclasses.dataclass
class _Found:
    """Paths below a folder: images, images in formats that are not read, what is called like an
    image and is no file, and what tfssl itself wrote; and how many others there are by ending."""

    images: list[str] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)
    special: list[str] = dataclasses.field(default_factory=list)
    own: list[str] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def sort_out(self) -> None:
        """Of the images, those that are none here: arrays beside pictures, and formats whose
        package is absent."""
        endings = [_ending(name) for name in self.images]
        arrays = endings.count(_ARRAYS)
        beside = {_ARRAYS} if arrays < len(endings) else set()
        if beside:
            self.others[_ARRAYS] += arrays
        lacking = {e for e in formats.EXTRAS if formats.absent(e)} - beside
        known = list(zip(self.images, endings))
        self.unread += [name for name, ending in known if ending in lacking]
        self.images = [name for name, ending in known if ending not in lacking | beside]

    def ignored(self) -> dict[str, int]:
        return dict(
            self.others
            + collections.Counter(os.path.splitext(name)[1].lower() for name in self.unread)
        )


def _list(root: str, spec: str) -> _Found:
    """What lies below `root`."""
    if not tf.io.gfile.isdir(root):
        what = (
            f"{root!r} is neither a folder nor an archive"
            if tf.io.gfile.exists(root)
            else f"no such folder: {root!r}"
        )
        raise UserError(
            f"{spec}: {what}; expected a folder of images, or one of {' '.join(archive.ENDINGS)}"
            f"{_of_videos([_ending(root)])}"
        )
    found = _Found()
    try:
        _walk(root, found)
    except tf.errors.OpError as error:
        raise UserError(f"{spec}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{spec}: a file name below it is not UTF-8: {error.object!r}") from error
    except OSError as error:
        raise UserError(f"{spec}: {error}") from error
    found.sort_out()
    if not found.images:
        seen = sorted(found.ignored().items(), key=lambda item: -item[1])[:5]
        listed = (
            ", ".join(f"{number} {ending or 'without ending'}" for ending, number in seen)
            or "no file"
        )
        if found.special:
            listed += f"; left out: {_SPECIAL}: {first(sorted(found.special))}"
        raise UserError(
            f"{spec}: no images in {root!r}: expected {' '.join(FORMATS)} (in any case), found "
            f"{listed}{_of_videos(found.others)}"
        )
    return found


def _of_videos(endings: Iterable[str]) -> str:
    """What to do with videos, if there are any, as the end of a line."""
    if _VIDEOS.isdisjoint(endings):
        return ""
    return "; make a folder of frames of each video: ffmpeg -i walk.mp4 -q:v 2 PATH/walk/%06d.jpg"


def _walk(root: str, found: _Found) -> None:
    pending: list[tuple[str, tuple[str, ...]]] = [
        ("", (os.path.realpath(root),))
    ]  # with the real folders above: a link may lead back into one of them
    while pending:
        folder, above = pending.pop()
        entries = list(_entries(f"{root}/{folder}" if folder else root))
        own = outputs.own(name for name, *_ in entries)
        found.own += [folder + name for name in own]
        for name, is_folder, is_special in entries:
            if name.startswith(".") or name in own:
                continue
            ending, may_be_link = os.path.splitext(name)[1].lower(), is_folder is None
            if may_be_link:  # a name that ends like an image is taken for a file, without asking
                is_folder = ending not in FORMATS and tf.io.gfile.isdir(f"{root}/{folder}{name}")
            if is_folder:
                real = (
                    os.path.realpath(f"{root}/{folder}{name}")
                    if may_be_link
                    else f"{above[-1]}/{name}"
                )
                if name.lower() not in _OF_SYSTEMS and real not in above:
                    pending.append((f"{folder}{name}/", (*above, real)))
            elif is_special and ending in FORMATS + UNREAD:
                found.special.append(folder + name)
            elif ending in FORMATS:
                found.images.append(folder + name)
            elif ending in UNREAD:
                found.unread.append(folder + name)
            else:
                found.others[ending] += 1


def _entries(folder: str) -> Iterator[tuple[str, bool | None, bool]]:
    """(name, whether it is a folder; None where to know that takes another question, whether it is
    a pipe, a socket or a device) of all that lies in a folder."""
    if "://" in folder:
        for name in tf.io.gfile.listdir(folder):
            yield name.rstrip("/"), name.endswith("/") or None, False  # as buckets mark a folder
        return
    with os.scandir(
        folder.encode()
    ) as entries:  # in bytes: names are UTF-8, whatever the locale says
        for entry in entries:
            name = entry.name.decode()
            if entry.is_symlink():
                yield name, None, _leads_to_special(entry.path)
            else:  # which the list itself tells
                is_folder = entry.is_dir(follow_symlinks=False)
                yield name, is_folder, not is_folder and not entry.is_file(follow_symlinks=False)


def _leads_to_special(link: bytes) -> bool:
    try:
        mode = os.stat(link).st_mode
    except OSError:  # what is not there may come back
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)

"""`folder:PATH`: image files in folders, or in an archive of folders.

    PATH/train/cat/x.jpg  PATH/test/dog/y.jpg    by split and class
    PATH/cat/x.jpg  PATH/dog/y.jpg               by class; all is the split `train`
    PATH/x.jpg  PATH/2019/y.jpg                  unlabelled; all is the split `train`
    PATH/train/x.jpg  PATH/test/y.jpg            by split, unlabelled

Splits are folders called train, val, validation, valid, test, dev or trainval, in any case; other folders beside them
are passed over. A single such folder that holds nothing but images, next to other folders, is a class (a railway).
Classes are the folders of a split, and what lies deeper belongs to them. A split with an image outside of them is
unlabelled, as is everything if there is but one class. A lone outer folder (PATH/photos/train/..., as archives have it)
is stepped through. Hidden files and __MACOSX do not count.
"""

import collections
import hashlib
import os

import tensorflow as tf

from tfssl.data import archive
from tfssl.data.checks import reason_of
from tfssl.data.source import IndexedSource
from tfssl.data.splits import resolve
from tfssl.errors import UserError

FORMATS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")  # what tf.io.decode_image reads
SPLITS = ("train", "val", "validation", "valid", "test", "dev", "trainval")


class Files(IndexedSource):
    """Image files at `paths`, in that order; `labels`: int, -1 for none; none by default."""

    def __init__(self, spec, split, paths, labels=None, num_classes=None, class_names=None):
        super().__init__(spec, split, len(paths), num_classes, class_names)
        with tf.device("CPU"):  # a pipeline's functions capture them as they are: a graph never holds them
            self._paths = tf.constant(paths)
            self._labels = tf.constant([-1] * len(paths) if labels is None else labels, tf.int64)

    def fetch(self, record):
        index = record["index"]
        image = tf.io.read_file(tf.gather(self._paths, index))
        return {"image": image, "label": tf.gather(self._labels, index), "index": index}

    def name_in_graph(self, record):
        return tf.gather(self._paths, record["index"])

    def name(self, index):
        return self._paths[index].numpy().decode()

    def names(self):
        return [path.decode() for path in self._paths.numpy()]


def unlabelled(path):
    """All images below a folder, by name, or one image file: `Files`.

    Raises:
      UserError: there is none.
    """
    root = os.path.expanduser(path) if "://" not in path else path
    if tf.io.gfile.exists(root) and not tf.io.gfile.isdir(root):
        return Files(root, "all", [root])
    return Files(root, "all", sorted(f"{root.rstrip('/')}/{name}" for name in _list(root, path)[0]))


class FolderSource(Files):
    """Image files. The classes are those of all splits together, sorted by name.

    Within a split the files are in the order of a hash of their path, so that a slice is a fair sample of all classes,
    and the order of the images does not change when others are added.
    """

    def __init__(self, spec, path, split="train", data_dir=None):
        root = os.path.expanduser(path) if "://" not in path else path
        try:
            if root.lower().endswith(archive.ENDINGS) and not tf.io.gfile.isdir(root):
                root = archive.unpack(root, data_dir)
            images, ignored = _list(root, spec)
        except tf.errors.OpError as error:
            raise UserError(f"{spec}: {reason_of(error)}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{spec}: a file name below it is not UTF-8: {error.object!r}") from error
        found = _arrange(images)
        classes = {name: _classes(files) for name, (_, files) in found.items()}
        names = sorted({c for of_files in classes.values() for c in of_files if c is not None})
        number = {name: label for label, name in enumerate(names)} if len(names) > 1 else {}

        sizes = {name: [len(files)] for name, (_, files) in found.items()}
        paths, labels = [], []
        for name, start, stop in resolve(split, sizes, spec):
            below, files = found[name]
            for i in sorted(range(len(files)), key=lambda i, files=files: _hash(files[i]))[start:stop]:
                paths.append(f"{root.rstrip('/')}/{below}{files[i]}")
                labels.append(number.get(classes[name][i], -1))
        named = (len(names), names) if max(labels) >= 0 else (None, None)
        super().__init__(spec, split, paths, labels, *named)
        self.ignored = ignored


def _hash(path):
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


def _list(root, spec):
    """All images below `root`, as paths relative to it, and a dict of ending -> number of other files.

    A name that ends like an image is taken for a file, without asking: in a bucket each question is a request.
    """
    if not tf.io.gfile.isdir(root):
        what = (
            f"{root!r} is neither a folder nor an archive" if tf.io.gfile.exists(root) else f"no such folder: {root!r}"
        )
        raise UserError(f"{spec}: {what}; expected a folder of images, or one of {' '.join(archive.ENDINGS)}")
    images, others = [], collections.Counter()
    pending = [("", (os.path.realpath(root),))]  # with the real folders above: a link may lead back into one of them
    while pending:
        folder, above = pending.pop()
        for name in tf.io.gfile.listdir(f"{root.rstrip('/')}/{folder}" if folder else root):
            name = name.rstrip("/")  # as buckets mark a folder
            if name.startswith(".") or name == "__MACOSX":
                continue
            if name.lower().endswith(FORMATS):
                images.append(folder + name)
            elif tf.io.gfile.isdir(f"{root.rstrip('/')}/{folder}{name}"):
                real = os.path.realpath(os.path.join(root, folder, name))
                if real not in above:
                    pending.append((f"{folder}{name}/", (*above, real)))
            else:
                others[os.path.splitext(name)[1].lower() or name] += 1
    if not images:
        seen = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5)) or "no file"
        raise UserError(f"{spec}: no images in {root!r}: expected {' '.join(FORMATS)} (in any case), found {seen}")
    return images, dict(others)


def _arrange(images):
    """{split: (its folder, paths within it)}."""
    outer = ""
    while True:
        folders, loose = collections.defaultdict(list), []
        for path in images:
            top, slash, rest = path.partition("/")
            (folders[top] if slash else loose).append(rest or path)
        splits = sorted(name for name in folders if name.lower() in SPLITS)
        if splits or loose or len(folders) > 1:
            break
        ((only, images),) = folders.items()
        outer += f"{only}/"
    railway = len(splits) == 1 and len(folders) > 1 and all("/" not in path for path in folders[splits[0]])
    if not splits or railway:
        return {"train": (outer, images)}
    return {name: (f"{outer}{name}/", folders[name]) for name in splits}


def _classes(files):
    """The class name of each file of a split; None for all if a file lies outside of the class folders."""
    if any("/" not in path for path in files):
        return [None] * len(files)
    return [path.partition("/")[0] for path in files]

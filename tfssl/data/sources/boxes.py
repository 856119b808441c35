"""`boxes:PATH`: images with objects in boxes, in Pascal VOC's layout.

    PATH/JPEGImages/x.jpg  PATH/Annotations/x.xml
    PATH/ImageSets/Main/train.txt    a line for each image, whose first word is its name

PATH is such a folder (VOCdevkit/VOC2007), or one that holds no other. Its splits are the lists
without a class's name.
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
import xml.etree.ElementTree

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.listing.text import read_lines
from tfssl.data.ops import orientation
from tfssl.data.sources.base import IndexedSource, first
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.splits import resolve
from tfssl.data.sources.voc import find
from tfssl.errors import UserError
from tfssl.storage.files import matching

_THREADS = 16


class BoxSource(IndexedSource):
    """Beside what every source has (label -1), an example has
      "boxes": float32 [n, 4], (ymin, xmin, ymax, xmax) as parts of the image's sides;
      "classes": int64 [n], of `class_names`, which are all that any split shows, in alphabetical
        order;
      "difficult": bool [n].
    Boxes without area in the image are left out, and counted in `degenerate`.
    """

    splits_overlap = True
    form = "boxes:PATH"
    provides = ("boxes",)

    def __init__(self, spec: str, path: str, split: str = "train") -> None:
        root = find(path, spec)
        folder, lists, repeated = f"{root}/ImageSets/Main", {}, {}
        files = {
            os.path.basename(file)[: -len(".txt")]: file for file in matching(folder, r".*\.txt")
        }
        for name, file in sorted(files.items()):
            if "_" not in name or name.rpartition("_")[2] not in files:  # others are a class's
                counts = collections.Counter(
                    line.split()[0] for line in read_lines(file, spec) if line.strip()
                )
                lists[name] = list(counts)
                repeated[name] = [image for image, count in counts.items() if count > 1]
        if not lists:
            raise UserError(
                f"{spec}: no lists of images in {folder}; expected files such as train.txt"
            )
        ranges = resolve(split, {name: [len(names)] for name, names in lists.items()}, spec)
        everything = sorted({name for names in lists.values() for name in names})
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(
                lambda name: _objects(f"{root}/Annotations/{name}.xml", spec), everything
            )
            objects = dict(zip(everything, read))
        names = [name for part, start, stop in ranges for name in lists[part][start:stop]]
        classes = sorted({kind for found in objects.values() for kind, *_ in found})
        super().__init__(spec, split, len(names), class_names=classes)
        rows = [[o for o in objects[name] if o[1] is not None] for name in names]
        self.degenerate = sum(len(objects[name]) for name in names) - sum(map(len, rows))
        if self.degenerate:
            logging.warning(
                "%s %s: left out %d boxes without area in the image", spec, split, self.degenerate
            )
        for part in dict.fromkeys(part for part, *_ in ranges):
            if repeated[part]:
                self.remarks.append(
                    f"named more than once in {part}.txt, and counted once: {first(repeated[part])}"
                )
        number = {name: i for i, name in enumerate(classes)}
        ends = np.cumsum([0, *map(len, rows)])
        flat = [o for row in rows for o in row]
        with tf.device("CPU"):
            self._paths = tf.constant([f"{root}/JPEGImages/{name}.jpg" for name in names])
            self._ends = tf.constant(ends, tf.int64)
            self._flat = {
                "boxes": tf.constant(np.array([o[1] for o in flat], np.float32).reshape(-1, 4)),
                "classes": tf.constant(np.array([number[o[0]] for o in flat], np.int64)),
                "difficult": tf.constant(np.array([o[2] for o in flat], bool)),
            }

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = record["index"]
        image = orientation.as_stored(tf.io.read_file(self.name_in_graph(record)))
        begin, end = tf.gather(self._ends, index), tf.gather(self._ends, index + 1)
        its = {key: value[begin:end] for key, value in self._flat.items()}
        return {
            "image": self.read(image),
            "label": tf.constant(-1, tf.int64),
            "index": index,
            **its,
        }

    def parts(self) -> Parts:
        boxes = [value.numpy() for value in (self._ends, *self._flat.values())]
        return Parts([path.decode() for path in self._paths.numpy()], boxes)

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.gather(self._paths, record["index"])

    def name(self, index: int) -> str:
        return self._paths[index].numpy().decode()


def _text(element: xml.etree.ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path} in {element.tag}")
    return text


def _objects(path: str, spec: str) -> list[tuple[str, tuple[float, ...] | None, bool]]:
    """[(class, (ymin, xmin, ymax, xmax) as parts of the sides or None without area in the image,
    difficult)] of an annotation."""
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            tree = xml.etree.ElementTree.fromstring(f.read())
        width, height = (float(_text(tree, f"size/{side}")) for side in ("width", "height"))
        if not (0 < width < np.inf and 0 < height < np.inf):
            raise ValueError(f"its size is {width:g} x {height:g}")
        found = []
        for item in tree.iterfind("object"):
            left, top, right, bottom = (
                float(_text(item, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")
            )
            if not np.isfinite([left, top, right, bottom]).all():
                raise ValueError(f"a box is from ({left:g}, {top:g}) to ({right:g}, {bottom:g})")
            # The first pixel has number 1, and both ends belong to the box.
            ends = np.clip(
                [(top - 1) / height, (left - 1) / width, bottom / height, right / width], 0, 1
            ).astype(np.float32)
            has_area = left < right and top < bottom and (ends[:2] < ends[2:]).all()
            name = " ".join(_text(item, "name").split())
            found.append(
                (name, tuple(ends) if has_area else None, item.findtext("difficult") == "1")
            )
        return found
    except tf.errors.NotFoundError as error:
        raise UserError(
            f"{spec}: {path!r} is missing: each image of a list needs its boxes"
        ) from error
    except (xml.etree.ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"{spec}: {path!r} is no annotation of Pascal VOC: {str(error)[:100]}"
        ) from error

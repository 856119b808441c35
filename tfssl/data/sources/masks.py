"""`masks:PATH`: images with a class for each pixel, in pictures of the same name.

    PATH/train/x.png  PATH/trainannot/x.png                                     a folder of masks
                      beside each split's images (CamVid)
    PATH/JPEGImages/x.jpg  PATH/SegmentationClass/x.png
    PATH/ImageSets/Segmentation/train.txt                                       Pascal VOC

A mask is a gray or a palette PNG, whose numbers are the classes; which of them stands for no class
is the reader's affair (255 in VOC). Names are read from PATH/classes.txt, a line each, where there
is one.
"""

from __future__ import annotations

import io
import os

import numpy as np
import tensorflow as tf

from tfssl.data.listing.text import read_lines
from tfssl.data.ops import orientation
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.folder import FORMATS, UNREAD
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError
from tfssl.storage.files import matching


class MaskSource(IndexedSource):
    """Beside what every source has (label -1), an example has "mask": uint8 [H, W], as large as the
    image."""

    form = "masks:PATH"
    provides = ("mask",)

    def __init__(self, spec: str, path: str, split: str = "train") -> None:
        root = (os.path.expanduser(path) if "://" not in path else path).rstrip("/")
        if not tf.io.gfile.isdir(root):
            raise UserError(f"{spec}: no such folder: {root!r}")
        voc = tf.io.gfile.isdir(f"{root}/SegmentationClass")
        found, alone = (_voc(root, spec), []) if voc else beside(root, "annot")
        if not found:
            raise UserError(
                f"{spec}: no images with masks: expected SPLIT and SPLITannot side by side, or "
                "Pascal VOC's JPEGImages, SegmentationClass "
                "and ImageSets/Segmentation"
            )
        pairs = []
        ranges = resolve(split, {name: [len(its)] for name, its in found.items()}, spec)
        for name, start, stop in ranges:
            pairs += found[name][start:stop]
        super().__init__(spec, split, len(pairs))
        self.ranges, self.left_out = ranges, {"images without a mask": alone} if alone else {}
        self.splits_overlap = voc  # trainval is train and val
        classes = f"{root}/classes.txt"
        if tf.io.gfile.exists(classes):
            self.class_names = [name for name in read_lines(classes, spec) if name]
        with tf.device("CPU"):
            self._images, self._masks = (tf.constant(list(paths)) for paths in zip(*pairs))

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = record["index"]
        image = orientation.as_stored(tf.io.read_file(tf.gather(self._images, index)))
        mask = tf.ensure_shape(
            tf.numpy_function(_decode, [tf.gather(self._masks, index)], tf.uint8), [None, None]
        )
        return {
            "image": self.read(image),
            "label": tf.constant(-1, tf.int64),
            "index": index,
            "mask": mask,
        }

    def parts(self) -> Parts:
        return Parts(
            [path.decode() for paths in (self._images, self._masks) for path in paths.numpy()]
        )

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.gather(self._images, record["index"])

    def name(self, index: int) -> str:
        return self._images[index].numpy().decode()


def _decode(path: bytes) -> np.ndarray:
    """The numbers of a gray or palette picture; TensorFlow would give a palette's colors."""
    from PIL import Image

    name = np.asarray(path).item().decode()
    with tf.io.gfile.GFile(name, "rb") as f:
        picture = Image.open(io.BytesIO(f.read()))
    if picture.mode not in ("L", "P", "1"):
        raise ValueError(
            f"{name} is no mask: its mode is {picture.mode}, not gray or palette of 8 bits"
        )
    return np.asarray(picture, np.uint8)


def beside(root: str, ending: str) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """{split: [(image, PNG of the same name)]} of folders S and S + ending, and the images that
    have none."""
    found, alone = {}, []
    for name in sorted(name.rstrip("/") for name in tf.io.gfile.listdir(root)):
        other = f"{root}/{name}{ending}"
        if not tf.io.gfile.isdir(other):
            continue
        pictures = {
            os.path.splitext(file)[0]: file
            for file in tf.io.gfile.listdir(other)
            if file.lower().endswith(".png")
        }
        images = sorted(
            f for f in tf.io.gfile.listdir(f"{root}/{name}") if f.lower().endswith(FORMATS + UNREAD)
        )
        pairs = [
            (image, pictures.get(os.path.splitext(image)[0]))
            for image in images
            if image.lower().endswith(FORMATS)
        ]
        found[name] = [
            (f"{root}/{name}/{image}", f"{other}/{file}") for image, file in pairs if file
        ]
        paired = {image for image, file in pairs if file}
        alone += [
            f"{name}/{image}"
            for image in images
            if image not in paired and not image.startswith(".")
        ]
    return {name: pairs for name, pairs in found.items() if pairs}, alone


def _voc(root: str, spec: str) -> dict[str, list[tuple[str, str]]]:
    """{split: [(image, mask)]} of the lists in ImageSets/Segmentation."""
    found = {}
    for path in matching(f"{root}/ImageSets/Segmentation", r".*\.txt"):
        pairs = [
            (f"{root}/JPEGImages/{name}.jpg", f"{root}/SegmentationClass/{name}.png")
            for line in read_lines(path, spec)
            for name in line.split()
        ]
        found[os.path.basename(path)[: -len(".txt")]] = pairs
    return {name: pairs for name, pairs in found.items() if pairs}

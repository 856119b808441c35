"""Where images come from, one file for each kind of source; `open_source` opens any of them by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tfssl.errors import UserError

_SCHEMES = (
    "tfds:NAME[/CONFIG], folder:PATH, masks:PATH, boxes:PATH, normals:PATH, voc:PATH, tfrecord:GLOB, glyphs or glyphs:N"
)

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source


def open_source(
    spec: str,
    split: str = "train",
    data_dir: str | None = None,
    *,
    image_key: str = "image/encoded",
    label_key: str = "image/class/label",
    label_offset: int = 0,
    download: bool = False,
    image_size: int = 32,
    shuffle_buffer: int = 10_000,
    skip_damaged_shards: bool = False,
) -> Source:
    """Opens one split of a data set.

    Args:
      spec: one of
        "folder:PATH": images by split and class, by class, or unlabelled; or an archive of them (.tar, .tgz, .zip);
        "masks:PATH": images with a class for each pixel (see tfssl/data/sources/masks.py);
        "boxes:PATH": images with objects in boxes, in Pascal VOC's layout (see tfssl/data/sources/boxes.py);
        "normals:PATH": images with surface normals, or depth (see tfssl/data/sources/normals.py);
        "tfrecord:GLOB": files of tf.train.Example, or their folder; the split is in their name (train-00000-of-01024);
        "tfds:NAME[/CONFIG]": a data set that tensorflow-datasets has prepared;
        "voc:PATH": Pascal VOC's layout, such as VOCdevkit/VOC2007: several classes in an image (see Source.targets);
        "glyphs" or "glyphs:N": letters over photographs, rendered on first use: N (6,000) to train on, 2,000 to test.
      split: TFDS's grammar, for every kind: train, train[:90%], train[100:200], train+test.
      data_dir: where TFDS's data are (its own default if None). For archives and glyphs, the folder to cache them in,
        by default TFSSL_CACHE of the environment or ~/.cache/tfssl.
      image_key, label_key: tfrecord's features: the encoded image, and the label (int64), which may be absent.
      label_offset: tfrecord's smallest label, subtracted from all: 1 for ImageNet, whose records count from 1.
      download: tfds may download and prepare what is missing.
      image_size: side of a glyph image, in pixels.
      shuffle_buffer: how many undecoded records tfds and tfrecord hold to shuffle; folder and glyphs shuffle all.
      skip_damaged_shards: tfds and tfrecord: a file that ends early, or is damaged from some record on, does not end a pass. In training
        its readable records take the places of the others, and whatever else is read keeps its number; evaluation leaves them out.

    Raises:
      UserError: if there is no such thing, in one line that says what was expected.
    """
    scheme, _, rest = str(spec).partition(":")
    if scheme == "folder" and rest:
        from tfssl.data.sources.folder import FolderSource

        return FolderSource(spec, rest, split, data_dir)
    if scheme == "masks" and rest:
        from tfssl.data.sources.masks import MaskSource

        return MaskSource(spec, rest, split)
    if scheme == "boxes" and rest:
        from tfssl.data.sources.boxes import BoxSource

        return BoxSource(spec, rest, split)
    if scheme == "normals" and rest:
        from tfssl.data.sources.normals import NormalSource

        return NormalSource(spec, rest, split)
    if scheme == "tfrecord" and rest:
        from tfssl.data.sources.records import TFRecordSource

        return TFRecordSource(
            spec, rest, split, image_key, label_key, label_offset, shuffle_buffer, skip_damaged_shards
        )
    if scheme == "voc" and rest:
        from tfssl.data.sources.voc import VOCSource

        return VOCSource(spec, rest, split)
    if scheme == "tfds" and rest:
        from tfssl.data.sources.records import TFDSSource

        return TFDSSource(spec, rest, split, data_dir, download, shuffle_buffer, skip_damaged_shards)
    if scheme == "glyphs":
        from tfssl.data.sources.glyphs import GlyphSource

        return GlyphSource(spec, rest, split, data_dir, image_size)
    hint = f" (did you mean 'folder:{spec}'?)" if scheme == spec and os.path.exists(os.path.expanduser(spec)) else ""
    raise UserError(f"unknown data set {spec!r}{hint}: expected {_SCHEMES}")

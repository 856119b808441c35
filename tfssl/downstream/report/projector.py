"""Embeddings for TensorBoard's projector, which turns and searches them: `tensorboard --logdir
WORKDIR/projector`."""

import io
import math
import os
from collections.abc import Mapping

import numpy as np

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import neighbors
from tfssl.storage import files

IMAGES, _THUMB = 2000, 48  # at most so many images; pixels of each in the sprite


def write(folder: str, tests: Mapping[str, tuple[str, Features]]) -> list[str]:
    """Write vectors and metadata as TSV, a sprite of the images, and projector_config.pbtxt.

    Args:
      folder: on any file system that TensorFlow knows.
      tests: {module: (endpoint, `Features` of the test images)}; the images are the first one's.

    Returns:
      the paths.
    """
    from google.protobuf import text_format
    from PIL import Image
    from tensorboard.plugins import projector

    written: dict[str, bytes] = {}
    config = projector.ProjectorConfig()
    for module, (endpoint, test) in tests.items():
        rows = _rows(test)
        stem = module.replace("/", "_")
        vectors = np.asarray(test.endpoints[endpoint][rows], np.float64)
        written[f"{stem}.tsv"] = _tsv(["\t".join(f"{v:.6g}" for v in row) for row in vectors])
        entry = config.embeddings.add()
        entry.tensor_name, entry.tensor_path = f"{module} {endpoint}", f"{stem}.tsv"
        entry.metadata_path = f"{stem}_labels.tsv"
        source = test.images.source if test.images else None
        names = [source.name(int(i)) if source else str(i) for i in test.index[rows]]
        classes = [_class(test, row) for row in rows]
        lines = [f"{_cell(c)}\t{_cell(n)}" for c, n in zip(classes, names)]
        written[f"{stem}_labels.tsv"] = _tsv(["class\timage", *lines])
        if source:
            entry.sprite.image_path = f"{stem}.png"
            entry.sprite.single_image_dim.extend([_THUMB, _THUMB])
            written[f"{stem}.png"] = _sprite(
                [
                    np.asarray(Image.fromarray(image).resize((_THUMB, _THUMB)))
                    for image in neighbors.pictures(test, rows)
                ]
            )
    written["projector_config.pbtxt"] = text_format.MessageToString(config).encode()
    for name, content in written.items():
        files.write_file(os.path.join(folder, name), content)
    return [os.path.join(folder, name) for name in written]


def _rows(test: Features) -> np.ndarray:
    count = len(test.index)
    return np.unique(np.linspace(0, count - 1, min(count, IMAGES)).round().astype(np.int64))


def _sprite(images: list[np.ndarray]) -> bytes:
    """A square grid, row by row, as the projector reads it."""
    from PIL import Image

    side = math.isqrt(len(images) - 1) + 1
    canvas = np.zeros([side * _THUMB, side * _THUMB, 3], np.uint8)
    for i, image in enumerate(images):
        top, left = divmod(i, side)
        canvas[top * _THUMB :, left * _THUMB :][:_THUMB, :_THUMB] = image
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG")
    return buffer.getvalue()


def _class(test: Features, row: int) -> str:
    label = int(test.labels[row])
    return "" if label < 0 else test.class_names[label] if test.class_names else str(label)


def _cell(text: str) -> str:
    return " ".join(text.split())


def _tsv(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()

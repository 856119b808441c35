"""`glyphs`: letters over photographs, the data set that is always at hand.

Ten letters without rotational symmetry, upright, in the twelve DejaVu text fonts that matplotlib
ships, of random size, place and color, over random crops of the two photographs that scikit-learn
ships. The crops are flipped and turned at random: over upright ones a network would read a rotation
off the background, and learn nothing about letters.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import io
import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tensorflow as tf

from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError
from tfssl.storage import files
from tfssl.storage.caches import cache_dir, try_write

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

LETTERS = "AEFGJKPRTY"
TRAIN, TEST = 6000, 2000
_VERSION = 1  # of the drawings: a change of `draw` needs another number
_HEIGHT = (
    0.4,
    0.7,
)  # of a capital letter, in image sides; with its descender the longest J is 1.3 times as high
_CROP = (
    1.0,
    4.0,
)  # side of the photograph's crop, in image sides (as far as the photograph reaches)
_CONTRAST = 80  # least difference in luma (0..255) between the letter and what lies behind it
_LUMA = np.array([0.299, 0.587, 0.114])


class GlyphSource(IndexedSource):
    """Splits `train` (6,000 images, or N of `glyphs:N`) and `test` (2,000, drawn independently).

    Label i is LETTERS[i], and the labels take turns: every slice is balanced. Beside image and
    label, an example has
      "boxes": float32 [1, 4], (ymin, xmin, ymax, xmax) of the letter as parts of the image's sides;
      "classes": int64 [1], its label;
      "mask": uint8 [image_size, image_size], 1 on the letter, 0 elsewhere.
    """

    form = "glyphs or glyphs:N"
    provides = ("mask", "boxes")

    def __init__(
        self,
        spec: str,
        count: str = "",
        split: str = "train",
        data_dir: str | None = None,
        image_size: int = 32,
    ) -> None:
        if count and not (count.isdecimal() and int(count) > 0):
            raise UserError(
                f"unknown data set {spec!r}: write glyphs, or glyphs:20000 for 20,000 training "
                "images"
            )
        if image_size < 16:
            raise UserError(
                f"glyphs cannot be drawn {image_size} pixels wide: image_size must be 16 or more"
            )
        sizes = {"train": [int(count or TRAIN)], "test": [TEST]}
        parts = []
        ranges = resolve(split, sizes, spec)
        for name, start, stop in ranges:
            drawn = _drawn(name, sizes[name][0], image_size, data_dir)
            parts.append({key: value[start:stop] for key, value in drawn.items()})
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        super().__init__(spec, split, len(arrays["label"]), len(LETTERS), list(LETTERS))
        self.ranges = ranges
        with tf.device(
            "CPU"
        ):  # captured by a pipeline's functions as they are: a graph never holds them
            self._arrays = {key: tf.constant(value) for key, value in arrays.items()}

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = {key: tf.gather(value, record["index"]) for key, value in self._arrays.items()}
        boxes = example.pop("box")[None]
        return {
            "index": record["index"],
            "boxes": boxes,
            "classes": example["label"][None],
            **example,
            "image": self.read(example["image"]),
        }

    def parts(self) -> Parts:
        arrays = {key: value.numpy() for key, value in self._arrays.items()}
        return Parts(pixels=[arrays.pop("image")], labels=list(arrays.values()))

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.strings.join(["glyph ", tf.strings.as_string(record["index"])])

    def name(self, index: int) -> str:
        return f"glyph {index}"


def _drawn(split: str, count: int, size: int, data_dir: str | None) -> dict[str, np.ndarray]:
    """The arrays of a split, from the cache folder if they are there and whole."""
    path = os.path.join(cache_dir(data_dir), "glyphs", f"v{_VERSION}-{split}-{count}x{size}.npz")
    shapes = {
        "image": (count, size, size, 3),
        "label": (count,),
        "box": (count, 4),
        "mask": (count, size, size),
    }
    try:
        with np.load(path) as file:
            arrays = dict(file)
        if {key: value.shape for key, value in arrays.items()} == shapes:
            return arrays
    except Exception:  # absent, unreadable or damaged in one of many ways: draw again
        pass
    arrays = draw(count, size, stream=("train", "test").index(split))
    content = io.BytesIO()
    np.savez(content, **cast(dict[str, Any], arrays))
    try_write(path, content.getvalue())
    return arrays


def draw(count: int, size: int = 32, seed: int = 0, stream: int = 0) -> dict[str, np.ndarray]:
    """Draws glyphs; the i-th depends on (size, seed, stream, i) alone, so that more images begin
    with the same ones.

    Returns:
      {"image": uint8 [count, size, size, 3], "label": int64 [count], "box": float32 [count, 4],
      "mask": uint8 [count, size, size]}
    """
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    boxes = np.empty((count, 4), np.float32)
    labels = np.arange(count, dtype=np.int64) % len(LETTERS)
    fonts, photographs = _fonts(), _photographs()
    for i in range(count):
        rng = np.random.default_rng([seed, stream, i])
        image = _background(rng, photographs, size)
        ink, mask = _letter(rng, fonts, LETTERS[labels[i]], size)
        rows, columns = ink.shape
        y, x = rng.integers(size - rows + 1), rng.integers(size - columns + 1)
        place = image[y : y + rows, x : x + columns]  # a view into the image
        behind = (place * ink[..., None]).sum((0, 1)) / ink.sum()
        place[:] = np.rint(
            place + ink[..., None] * (_colour(rng, behind) - place.astype(np.float32))
        )
        images[i], masks[i] = image, 0
        masks[i, y : y + rows, x : x + columns] = mask
        boxes[i] = np.array([y, x, y + rows, x + columns]) / size
    return {"image": images, "label": labels, "box": boxes, "mask": masks}


def _background(rng: np.random.Generator, photographs: list[Image], size: int) -> np.ndarray:
    """uint8 [size, size, 3]: a random square of a photograph, in one of its eight positions."""
    photograph = photographs[rng.integers(len(photographs))]
    side = min(size * rng.uniform(*_CROP), *photograph.size)
    left, top = rng.uniform(0, photograph.width - side), rng.uniform(0, photograph.height - side)
    # Bilinear (2) over all pixels of the box, as Pillow reduces.
    image = np.asarray(
        photograph.resize((size, size), resample=2, box=(left, top, left + side, top + side))
    )
    image = np.rot90(image, rng.integers(4))
    return np.array(image[:, ::-1] if rng.integers(2) else image)


def _letter(
    rng: np.random.Generator, fonts: list[str], letter: str, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ink, mask) of a letter in a frame that touches the mask on all sides.

    ink: float32 [h, w] in [0, 1], how much of each pixel is covered; mask: bool [h, w], pixels
    covered half or more.
    """
    height = rng.uniform(*_HEIGHT) * size
    path = fonts[rng.integers(len(fonts))]
    drawn = _font(path, round(height / 0.729)).getmask(
        letter
    )  # DejaVu's capitals are 0.729 em high
    ink = np.asarray(drawn, np.float32).reshape(drawn.size[::-1]) / 255
    mask = ink >= ink.max() / 2  # thin strokes between two pixels cover neither
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    frame = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ink[frame], mask[frame]


def _colour(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A random RGB color that differs clearly from `behind` (RGB, 0..255), the mean of what the
    letter will cover."""
    luma = behind @ _LUMA
    colours = rng.integers(0, 256, (64, 3))
    clear = np.flatnonzero(np.abs(colours @ _LUMA - luma) >= _CONTRAST)
    if len(clear):
        return colours[clear[0]]
    return np.full(3, 0 if luma > 127.5 else 255)


@functools.cache
def _fonts() -> list[str]:
    """Paths of the DejaVu text fonts, in the order of their names; its Display fonts lack
    letters."""
    return [
        path
        for path in _shipped("matplotlib", "mpl-data", "fonts", "ttf", pattern="DejaVu*.ttf")
        if "Display" not in path
    ]


@functools.cache
def _font(path: str, points: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, points)


@functools.cache
def _photographs() -> list[Image]:
    from PIL import Image

    return [
        Image.open(path).convert("RGB")
        for path in _shipped("sklearn", "datasets", "images", pattern="*.jpg")
    ]


def _shipped(library: str, *folders: str, pattern: str) -> list[str]:
    """Paths of files that a library ships, in the order of their names, without its import, which
    takes seconds."""
    spec = importlib.util.find_spec(library)
    assert spec and spec.submodule_search_locations, f"{library} is installed with tfssl"
    (folder,) = spec.submodule_search_locations
    return files.matching(os.path.join(folder, *folders), fnmatch.translate(pattern))

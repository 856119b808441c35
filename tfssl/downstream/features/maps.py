"""Maps of whole images, by the endpoints of a frozen module: what heads of dense protocols learn from.

The module sees each image once, resized to one size; its maps are kept, in memory or, where they are large, in a file that is
memory-mapped. Where the trunk learns too, the images themselves are kept instead.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfssl.data import segments
from tfssl.data.gaps import Gaps
from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream.features import extract as features
from tfssl.errors import UserError, one_line
from tfssl.hub.load import Module
from tfssl.storage import files

Example = dict[str, tf.Tensor]
PIXELS = "pixels"
IMAGES = "images"  # what is kept for a trunk that learns
SHOWN = 6  # images of a picture
BLOCK = 8  # side, in pixels, of what an entry of the baseline's map sees
_RESIDENT = 4 << 30  # bytes of maps that are kept in memory


def check_endpoints(
    module: Module,
    size: tuple[int, int],
    protocol: str,
    endpoints: Optional[Sequence[str]] = None,
    skip_pixels: bool = False,
) -> list[str]:
    """The endpoints that are maps of more than one place, and "pixels"; of those that are named, vectors are left out.

    UserError where there is none, or the module has not one that is named.
    """
    shapes = module.shapes(size)
    maps = [name for name, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1]
    if not maps:
        raise UserError(
            f"module {module.handle!r} has no endpoint that is a map [N, h, w, C], which {protocol} needs: its endpoints are "
            f"{', '.join(shapes)}"
        )
    wanted = [*maps, PIXELS] if endpoints is None else list(endpoints)
    found = [name for name in wanted if name in maps or name == PIXELS]
    odd = [name for name in wanted if name not in shapes and name != PIXELS]
    if odd or not found:
        raise UserError(
            f"module {module.handle!r}: {', '.join(odd or wanted)} is no map; there is {', '.join(maps)}, pixels"
        )
    return [name for name in found if name != PIXELS or not skip_pixels]


def image_sides(source: Source, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width): `size`, or where that is (0, 0) those of the first image that can be read."""
    if all(size):
        return size
    images = Gaps(source, lambda record: image.image_size(source.fetch(record)["image"]))
    for record in source.first_records(source.num_examples):
        sides, _ = images.read(record)
        if sides is not None:
            height, width = sides
            return int(height), int(width)
    raise UserError(f"{source.spec} {source.split}: no image could be read")


class Maps:
    """What heads learn from, of all images of a source that can be read.

    Args:
      module: a loaded `modules.Module`.
      source: a `tfssl.data.Source`.
      names: endpoints; "pixels": blocks of the image; "images": the image itself, uint8.
      read: graph function of an example -> (image uint8 [height, width, 3], all of one size; dict of its annotations).
      others: graph functions of what `read` gave, and the image's number in the split -> the same for another view of the image, such as
        its mirror image, which follows it as one more row.
      batch_size: images at a time through the module.

    Attributes:
      arrays: {name: [R, h, w, C]}, with a row for each view of each image.
      answers: list of R dicts of NumPy arrays.
      views: rows of each image, 1 + len(others).
      dropped: names of the images that could not be read.
      shown: {number of an image: uint8 [height, width, 3]}, of about SHOWN that are spread over the source.
    """

    def __init__(
        self,
        module: Module,
        source: Source,
        names: Sequence[str],
        read: Callable[[Example], tuple[tf.Tensor, Example]],
        others: Sequence[Callable[..., tuple[tf.Tensor, Example]]] = (),
        batch_size: int = 8,
    ) -> None:
        self.views = 1 + len(others)
        self.answers: list[dict[str, np.ndarray]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.shown: dict[int, np.ndarray] = {}
        self._files, self._filled = contextlib.ExitStack(), 0

        def load(record: Any) -> tuple[tf.Tensor, Any]:
            example = source.fetch(record)
            one = read(example)
            all_views = [one, *(other(*one, example["index"]) for other in others)]
            stacked = tf.nest.map_structure(lambda *views: tf.stack(views), *all_views)
            kinds.append(tf.nest.map_structure(lambda x: x.dtype, stacked))
            # Rows of equal shape, whatever the number of boxes: a data set's batches.
            return example["index"], tf.nest.map_structure(tf.io.serialize_tensor, stacked)

        def parse(index: tf.Tensor, stacked: Any) -> tuple[tf.Tensor, Any]:
            return index, tf.nest.map_structure(tf.io.parse_tensor, stacked, kinds[-1])

        source.probe()
        kinds: list[Any] = []
        waiting: list[np.ndarray] = []
        index: list[int] = []
        loaded = segments.readable(source, load, batch_size).unbatch().map(parse)
        for i, (views, answers) in loaded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            if len(self) % max(1, source.num_examples // SHOWN) == 0 and len(self.shown) < SHOWN:
                self.shown[len(self)] = views[0]
            index.append(i)
            self.answers += [{key: value[v] for key, value in answers.items()} for v in range(self.views)]
            waiting += list(views)
            if len(waiting) >= batch_size:
                self._keep(module, names, waiting[:batch_size], source)
                waiting = waiting[batch_size:]
        if waiting:
            self._keep(module, names, waiting, source)
        if not self.answers:
            raise UserError(f"{source.spec} {source.split}: no image could be read with its annotation")
        self.arrays = {name: array[: len(self.answers)] for name, array in self.arrays.items()}
        self.dropped = features.lost(source, index).tolist()
        features.warn_of(self.dropped, source)

    def __len__(self) -> int:
        """Images."""
        return len(self.answers) // self.views

    def rows(self, images: npt.ArrayLike, all_views: bool = False) -> np.ndarray:
        """Rows of some images (int [n]): the images themselves, and with `all_views` their other views where there are any."""
        views = self.views if all_views else 1
        return (np.asarray(images)[:, None] * self.views + np.arange(views)).reshape(-1)

    def _keep(self, module: Module, names: Sequence[str], images: Sequence[np.ndarray], source: Source) -> None:
        images = np.stack(images)
        floats, begin = tf.cast(images, tf.float32) / 255, self._filled
        found = module.endpoints(floats) if set(names) - {PIXELS, IMAGES} else {}
        found = {**found, PIXELS: blocks(floats) if PIXELS in names else None, IMAGES: images}
        for name in names:
            value = np.asarray(found[name])
            if name not in self.arrays:
                self.arrays[name] = self._room((self.views * source.num_examples, *value.shape[1:]), value.dtype)
            self.arrays[name][begin : begin + len(value)] = value
        self._filled = begin + len(images)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in memory, or in a file that goes with this object."""
        if np.prod(shape, dtype=np.int64) * dtype.itemsize <= _RESIDENT:
            return np.empty(shape, dtype)
        file = self._files.enter_context(tempfile.TemporaryFile(prefix="tfssl-maps-"))
        array = np.memmap(file, dtype, "w+", shape=shape)
        try:
            files.claim(file)
        except OSError as error:
            raise UserError(
                f"maps of {array.nbytes / 1e9:.1f} GB have no room in {tempfile.gettempdir()!r} ({one_line(error)}): name another "
                "folder by the environment's TMPDIR"
            ) from error
        return array


def blocks(images: tf.Tensor) -> tf.Tensor:
    """[N, H, W, 3] -> [N, h, w, 192]: each place the pixels of a block."""
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:3])
    return tf.nn.space_to_depth(tf.image.resize(images, [height, width]), BLOCK)

"""Feature maps of whole images by a frozen module: the inputs of dense protocols' heads.

The module encodes each image once, resized to one size; the maps are kept in memory or, where they
are large, in a memory-mapped file. Where the backbone is fine-tuned, the images are kept instead.
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
IMAGES = "images"  # the input of a fine-tuned backbone
SHOWN = 6  # images in a report
BLOCK = 8  # side, in pixels, of the receptive field of the baseline's map
_RESIDENT = 4 << 30  # bytes of maps that are kept in memory


def check_endpoints(
    module: Module,
    size: tuple[int, int],
    protocol: str,
    endpoints: Optional[Sequence[str]] = None,
    skip_pixels: bool = False,
) -> list[str]:
    """The endpoints that are maps of more than one location, and "pixels"; vectors among
    `endpoints` are dropped.

    Raises:
      UserError: no endpoint remains, or the module lacks a named one.
    """
    shapes = module.shapes(size)
    maps = [name for name, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1]
    if not maps:
        raise UserError(
            f"module {module.handle!r} has no endpoint that is a map [N, h, w, C], which "
            f"{protocol} needs: its endpoints are "
            f"{', '.join(shapes)}"
        )
    wanted = [*maps, PIXELS] if endpoints is None else list(endpoints)
    chosen = [name for name in wanted if name in maps or name == PIXELS]
    unknown = [name for name in wanted if name not in shapes and name != PIXELS]
    if unknown or not chosen:
        raise UserError(
            f"module {module.handle!r}: {', '.join(unknown or wanted)} is no map; there is "
            f"{', '.join(maps)}, pixels"
        )
    return [name for name in chosen if name != PIXELS or not skip_pixels]


def image_sides(source: Source, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width): `size`, or where that is (0, 0) the sides of the first readable image;
    UserError for one side without the other."""
    if any(size) != all(size) or min(size) < 0:
        raise UserError(f"size={size[0]},{size[1]}: give both sides in pixels, or 0,0")
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
    """Maps and annotations of all readable images of a source.

    Args:
      module: a loaded `modules.Module`.
      source: a `tfssl.data.Source`.
      names: endpoints; "pixels": blocks of the image; "images": the image itself, uint8.
      read: graph function of an example -> (image uint8 [height, width, 3], all of one size; dict
        of annotations).
      others: graph functions (image, annotations, the image's number in the split) -> (image,
        annotations) of a further view, such as its horizontal flip, which follows it as one more
        row.
      batch_size: images per forward pass of the module.

    Attributes:
      arrays: {name: [R, h, w, C]}, with a row for each view of each image.
      annotations: list of R dicts of NumPy arrays.
      views: rows of each image, 1 + len(others).
      dropped: names of the unreadable images.
      shown: {number of an image: uint8 [height, width, 3]}, of about SHOWN that are spread over the
        source.
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
        if not source.pixels.plain:
            raise UserError(
                f"module {module.handle!r} takes images of {source.pixels.channels} channels in "
                "full depth, and protocols of maps (segmentation, detection, fcos, "
                "surface_normals) read RGB of 8 bits"
            )
        self.views = 1 + len(others)
        self.annotations: list[dict[str, np.ndarray]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.shown: dict[int, np.ndarray] = {}
        self._files, self._filled = contextlib.ExitStack(), 0

        def load(record: Any) -> tuple[tf.Tensor, Any]:
            example = source.fetch(record)
            one = read(example)
            all_views = [one, *(other(*one, example["index"]) for other in others)]
            stacked = tf.nest.map_structure(lambda *views: tf.stack(views), *all_views)
            kinds.append(tf.nest.map_structure(lambda x: x.dtype, stacked))
            # Serialized: rows of equal shape, whatever the number of boxes, as batches require.
            return example["index"], tf.nest.map_structure(tf.io.serialize_tensor, stacked)

        def parse(index: tf.Tensor, stacked: Any) -> tuple[tf.Tensor, Any]:
            return index, tf.nest.map_structure(tf.io.parse_tensor, stacked, kinds[-1])

        source.check_readable()
        kinds: list[Any] = []
        waiting: list[np.ndarray] = []
        index: list[int] = []
        loaded = segments.readable(source, load, batch_size).unbatch().map(parse)
        for i, (views, annotations) in loaded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            if len(self) % max(1, source.num_examples // SHOWN) == 0 and len(self.shown) < SHOWN:
                self.shown[len(self)] = views[0]
            index.append(i)
            self.annotations += [
                {key: value[v] for key, value in annotations.items()} for v in range(self.views)
            ]
            waiting += list(views)
            while len(waiting) >= batch_size:
                self._keep(module, names, waiting[:batch_size], source)
                waiting = waiting[batch_size:]
        if waiting:
            self._keep(module, names, waiting, source)
        if not self.annotations:
            raise UserError(
                f"{source.spec} {source.split}: no image could be read with its annotation"
            )
        self.arrays = {name: array[: len(self.annotations)] for name, array in self.arrays.items()}
        self.dropped = features.lost(source, index).tolist()
        features.warn_of(self.dropped, source)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.annotations) // self.views

    def rows(self, images: npt.ArrayLike, all_views: bool = False) -> np.ndarray:
        """Rows of some images (int [n]); with `all_views` also those of their further views."""
        views = self.views if all_views else 1
        return (np.asarray(images)[:, None] * self.views + np.arange(views)).reshape(-1)

    def _keep(
        self, module: Module, names: Sequence[str], images: Sequence[np.ndarray], source: Source
    ) -> None:
        images = np.stack(images)
        floats, begin = tf.cast(images, tf.float32) / 255, self._filled
        endpoints = module.endpoints(floats) if set(names) - {PIXELS, IMAGES} else {}
        endpoints = {
            **endpoints,
            PIXELS: blocks(floats) if PIXELS in names else None,
            IMAGES: images,
        }
        for name in names:
            value = np.asarray(endpoints[name])
            if name not in self.arrays:
                self.arrays[name] = self._room(
                    (self.views * source.num_examples, *value.shape[1:]), value.dtype
                )
            self.arrays[name][begin : begin + len(value)] = value
        self._filled = begin + len(images)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in memory, or in a file that is removed with this object."""
        if np.prod(shape, dtype=np.int64) * dtype.itemsize <= _RESIDENT:
            return np.empty(shape, dtype)
        file = self._files.enter_context(tempfile.TemporaryFile(prefix="tfssl-maps-"))
        array = np.memmap(file, dtype, "w+", shape=shape)
        try:
            files.claim(file)
        except OSError as error:
            raise UserError(
                f"maps of {array.nbytes / 1e9:.1f} GB have no room in {tempfile.gettempdir()!r} "
                f"({one_line(error)}): name another "
                "folder by the environment's TMPDIR"
            ) from error
        return array


def blocks(images: tf.Tensor) -> tf.Tensor:
    """[N, H, W, 3] -> [N, h, w, 192]: at each location the pixels of a block."""
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:3])
    return tf.nn.space_to_depth(tf.image.resize(images, [height, width]), BLOCK)

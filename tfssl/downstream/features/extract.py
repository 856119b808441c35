"""Feature extraction: one forward pass of a Hub module over a source gives arrays of all
endpoints."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import logging
from tqdm.auto import tqdm

from tfssl.data import pipeline, segments
from tfssl.data.ops import formats, image, orientation, pixels
from tfssl.data.sources import identity
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream.features import encoder as images_module
from tfssl.downstream.features import pooling
from tfssl.downstream.features.cache import FeatureCache, Rows
from tfssl.downstream.features.encoder import PIXELS, Encode, Encoder, pixels_shape
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.hub.load import Module
from tfssl.storage import npz


@dataclasses.dataclass
class Features:
    """Features of the images of a source, by endpoint.

    Attributes:
      endpoints: {name: float [N, D]} in depth order.
      labels: int64 [N], -1 where there is none.
      index: int64 [N], the images' positions in the split; a missing number is an unreadable image.
      num_classes, class_names: of the source, or None.
      source: name of the images: data set and split.
      dropped: names of the images that could not be read.
      seconds: of the forward passes; 0 if all came from the cache.
      images: the `Encoder` behind the features, for protocols that draw new crops; None without
        images.
      targets: int8 [N, C] of multi-label images: 1 positive, -1 negative, 0 difficult; None where
        images have one label each, or none.
    """

    endpoints: dict[str, np.ndarray]
    labels: np.ndarray
    index: np.ndarray
    num_classes: Optional[int] = None
    class_names: Optional[Sequence[str]] = None
    source: str = "these features"
    dropped: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    images: Optional[Encoder] = None
    targets: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        self._sound: set[str] = set()  # endpoints that have passed `check`

    def check(self, names: Iterable[str]) -> None:
        """Raise UserError unless these endpoints are finite [N, D], with a row for each label."""
        for name in set(names) - self._sound:
            shape = np.shape(self.endpoints[name])
            if len(shape) != 2 or shape[0] != len(self.labels):
                raise UserError(
                    f"{self.source}: endpoint {name} has shape {shape}, and not "
                    f"({len(self.labels)} labels, features)"
                )
            parts = [
                part.start + np.flatnonzero(~np.isfinite(self.endpoints[name][part]).all(1))
                for part in self._parts(name)
            ]
            bad = np.concatenate([*parts, np.array([], int)])
            if len(bad):
                raise UserError(self._unsound(name, len(bad), bad[0]))
            self._sound.add(name)

    def largest(self, name: str) -> float:
        """The largest absolute value of an endpoint."""
        return max(
            (
                float(np.abs(self.endpoints[name][part]).max(initial=0))
                for part in self._parts(name)
            ),
            default=0.0,
        )

    def _parts(self, name: str, values: int = 1 << 24) -> list[slice]:
        size = max(1, values // max(1, self.endpoints[name].shape[1]))
        return [slice(i, i + size) for i in range(0, len(self.labels), size)]

    def _unsound(self, name: str, count: int, first: int) -> str:
        module = f"module {self.images.module.handle!r}: " if self.images and name != PIXELS else ""
        row = self.images.source.name(int(self.index[first])) if self.images else f"row {first}"
        half = self.endpoints[name].dtype == np.float16
        remedy = (
            "float16 ends at 65504: use float32"
            if half
            else "leave the endpoint out, or these images"
        )
        return (
            f"{module}endpoint {name} is infinite or not a number for {count} of "
            f"{len(self.labels)} images of {self.source} "
            f"(the first: {row}); {remedy}"
        )

    def save(self, path: str) -> str:
        """Write a .npz (any file system that TensorFlow knows): an array [N, D] for each endpoint
        under its name; `labels` [N], -1 where there is none; `index` and `names` [N], of the images
        in the split; `class_names`. Returns `path`."""
        self.check(self.endpoints)
        names = [self.images.source.name(int(i)) for i in self.index] if self.images else []
        facts: dict[str, npt.ArrayLike] = {
            "labels": self.labels,
            "index": self.index,
            "names": names,
            "class_names": self.class_names or [],
        }
        npz.write(path, **self.endpoints, **facts)
        return path


def extract(
    module: Union[str, Module],
    source: Source,
    endpoints: Optional[Sequence[str]] = None,
    image_size: Optional[int] = None,
    resize: Optional[int] = None,
    batch_size: int = 64,
    pool: str = "max",
    target: int = 9000,
    dtype: str = "float32",
    cache_dir: Optional[str] = None,
    progress: bool = True,
    verify: bool = False,
) -> Features:
    """Features of all images of a source: each is resized, center-cropped and encoded once.

    Memory: the features (none with `cache_dir`), and a batch.

    Args:
      module: a Hub module's handle (see `modules.load`), or a loaded `modules.Module`.
      source: a `tfssl.data.Source`; unreadable images are dropped, and named in a warning.
      endpoints: names; None for all of the module's. "pixels" is one more: the module's input in
        [0, 1], averaged to at most floor(sqrt(target / 3)) = 54 pixels a side. An empty list:
        labels only, without a forward pass; images are not decoded then, so that an undecodable
        image is not noticed.
      image_size, resize: side of the central crop, and of the shorter side before it, in pixels; by
        default what the module's tfssl.json says, else its fixed input size, and size * 256 / 224.
      batch_size: images per forward pass.
      pool, target: pooling of maps with more than `target` values: see `pooling.pool`.
      dtype: "float32", or "float16" for half the memory.
      cache_dir: a local folder to cache the features in, memory-mapped; later calls with the same
        module, data and settings read them there, if their checksums match.
        `tfssl.data.sources.identity` defines "the same data".
      progress: show a progress bar (on a terminal or in a notebook).
      verify: compute cached features of 64 images again (of records, the first), and all of them
        where these differ.

    Returns:
      Features.

    Raises:
      UserError: for whatever the caller can fix. Endpoints with infinite values or NaNs are
        rejected here if all endpoints have them, else where they are used (`Features.check`).
    """
    pooling.check(pool)
    if dtype not in ("float32", "float16"):
        raise UserError(f"feature dtype {dtype!r}; there is: float32, float16")
    if not isinstance(module, Module):
        module = modules.load(module)
    if source.pixels.channels != module.pixels["channels"]:
        raise UserError(
            f"module {module.handle!r} takes images of {module.pixels['channels']} channels, and "
            f"{source.spec} has {source.pixels.channels}: open it with "
            f"channels={module.pixels['channels']}"
        )
    size, resize = module.sizes(image_size, resize)
    images = Encoder(module, source, size, resize, pool, target, dtype, batch_size)
    available = {
        **{n: pooling.pooled_shape(s, pool, target) for n, s in module.shapes(size).items()},
        PIXELS: pixels_shape(size, target, source.pixels.channels),
    }
    wanted = check_endpoints(module, size, endpoints) if endpoints is None or len(endpoints) else []
    dims = {name: math.prod(available[name]) for name in wanted}

    def compute(images_of: Source, arrays: Mapping[str, np.ndarray], batch_size: int) -> Rows:
        batch_size = min(batch_size, images_of.num_examples)
        return _fill(
            arrays,
            images.encoder(list(arrays), batch_size),
            images_of,
            batch_size,
            size,
            resize,
            progress,
        )

    cache = None
    if cache_dir and wanted:
        settings = {
            "image_size": size,
            "resize": resize,
            "pool": pool,
            "target": target,
            "dtype": dtype,
        }
        cache = open_cache(cache_dir, module, source, settings)
    start, passes = time.time(), 0
    arrays: dict[str, np.ndarray] = {}
    if not wanted:
        rows = read_labels(source)
    elif not cache:
        arrays, passes = (
            {name: np.empty((source.num_examples, dims[name]), dtype) for name in wanted},
            1,
        )
        rows = compute(source, arrays, batch_size)
    else:
        rows, arrays = cache.read(wanted)
        if verify and arrays and not _as_computed(rows, arrays, source, compute, batch_size, dtype):
            cache.drop(list(arrays))
            rows, arrays = cache.read(wanted)
        while len(arrays) < len(wanted):  # twice where an earlier pass read other rows
            if passes == 3:
                raise UserError(
                    f"features do not stay in {cache_dir!r} as they were written: use another "
                    "disk, or no cache"
                )
            missing = [name for name in wanted if name not in arrays]
            try:
                made = {
                    name: cache.create(name, (source.num_examples, dims[name]), dtype)
                    for name in missing
                }
                cache.commit(made, compute(source, made, batch_size))
            finally:
                cache.discard()
            rows, arrays = cache.read(wanted)
            passes += 1
    dropped = [str(name) for name in rows["dropped"]]
    warn_of(dropped, source)
    targets = source.targets()
    extracted = Features(
        endpoints={name: arrays[name][: len(rows["index"])] for name in wanted},
        labels=rows["labels"],
        index=rows["index"],
        num_classes=source.num_classes,
        class_names=source.class_names,
        source=f"{source.spec} {source.split}",
        dropped=dropped,
        seconds=time.time() - start if passes else 0.0,
        images=images,
        targets=None if targets is None else targets[rows["index"]],
    )
    refused = [line for line in (_reason(extracted, name) for name in wanted) if line]
    if refused and len(refused) == len([name for name in wanted if name != PIXELS]):
        raise UserError(refused[0])
    for line in refused:
        _warn_once(line)
    return extracted


def _reason(features: Features, name: str) -> Optional[str]:
    """Why `Features.check` rejects an endpoint; None if it does not."""
    try:
        features.check([name])
        return None
    except UserError as error:
        return str(error)


@functools.cache
def _warn_once(text: str) -> None:
    """Once for all modules that read the same images."""
    logging.warning("%s", text)


def check_endpoints(
    module: Module, image_size: int, endpoints: Optional[Sequence[str]] = None
) -> list[str]:
    """Names of the endpoints as a list, by default all of the module's; UserError if one is
    missing."""
    available = [*module.shapes(image_size), PIXELS]
    if endpoints is None:
        return available[:-1]
    unknown = [name for name in endpoints if name not in available]
    if unknown or not endpoints:
        what = (
            f"no endpoint {', '.join(unknown)}" if unknown else "endpoints, and none was asked for"
        )
        raise UserError(f"module {module.handle!r} has {what}; it has: {', '.join(available)}")
    return list(dict.fromkeys(endpoints))


def read_labels(source: Source) -> Rows:
    """{"labels", "index": int64 [N], "dropped": names} of all undamaged records; images are not
    decoded (of a folder, not read)."""
    source.check_readable()

    def pair(record: Any) -> tuple[tf.Tensor, tf.Tensor]:
        example = source.fetch(
            record
        )  # in one function, from which TensorFlow drops what nobody asks for: to read files
        return example["label"], example["index"]

    pairs = segments.readable(source, pair, 1024)
    labels, index = (np.concatenate(part) for part in zip(*pairs.as_numpy_iterator()))
    return {"labels": labels, "index": index, "dropped": lost(source, index)}


def _fill(
    arrays: Mapping[str, np.ndarray],
    compute: Encode,
    source: Source,
    batch_size: int,
    size: int,
    resize: int,
    progress: bool,
) -> Rows:
    """Encode all images into the first rows of `arrays`; returns {"labels", "index", "dropped"}."""
    source.check_readable()
    batches = pipeline.evaluation_crops(source, size, resize, batch_size)
    labels, index, done = [], [], 0
    seen = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)  # not in a log file
    with tqdm(
        total=source.num_examples,
        unit=" images",
        desc=f"{source.spec} {source.split}",
        disable=not seen,
    ) as bar:
        for batch in batches:
            features = compute(batch["image"])
            real = batch["weight"].numpy() > 0
            count = int(real.sum())
            for name, values in features.items():
                values = values.numpy()[real]
                arrays[name][done : done + count] = values
            labels.append(batch["label"].numpy()[real])
            index.append(batch["index"].numpy()[real])
            done += count
            bar.update(count)
    labels, index = np.concatenate(labels), np.concatenate(index)
    return {"labels": labels, "index": index, "dropped": lost(source, index)}


def lost(source: Source, index: Sequence[int]) -> np.ndarray:
    """Names of the images that are missing in `index`."""
    missing = np.setdiff1d(np.arange(source.num_examples), index)
    return np.array([source.name(int(i)) for i in missing], str)


def warn_of(dropped: Sequence[str], source: Source) -> None:
    """Warn, once, of the unreadable images of a source."""
    if dropped:
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        count = f"{len(dropped)} of {source.num_examples} images could not be read and are left out"
        _warn_once(f"{source.spec} {source.split}: {count}: {', '.join(dropped[:5])}{more}")


def open_cache(
    folder: str, module: Module, source: Source, settings: Mapping[str, Any]
) -> Optional[FeatureCache]:
    """The `FeatureCache` of a module's features of a source; None where the source has no
    identity."""
    data = identity.key(identity.of(source))
    if data is None:
        _warn_once(
            f"features of {source.spec} are not cached: its source does not say what it is made of "
            "(Source.parts)"
        )
        return None
    used = versions()
    key = {
        "module": module.identity,
        "data": data,
        **settings,
        **used,
        "preprocessing": _preprocessing(),
    }
    return FeatureCache(
        folder, key, {"module": module.handle, "dataset": source.spec, "split": source.split}
    )


def versions() -> dict[str, str]:
    """{"tfssl", "tensorflow"}: the versions that cached features depend on."""
    used = identity.versions()
    return {name: used[name] for name in ("tfssl", "tensorflow")}


@functools.cache
def _preprocessing() -> str:
    """A digest of the code of decoding, preprocessing and pooling, which may change between
    releases."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        image, orientation, formats, pixels, pipeline, segments, images_module, pooling,
    ):  # fmt: skip
        # an archive's files cannot be opened
        with contextlib.suppress(OSError), open(part.__file__ or "", "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def _as_computed(
    rows: Rows,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    compute: Callable[[Source, Mapping[str, np.ndarray], int], Rows],
    batch_size: int,
    dtype: str,
    count: int = 64,
) -> bool:
    """Whether cached features and labels of a sample of images equal newly computed ones, up to
    rounding."""
    sample = evenly_spaced(source, count)
    row = {int(index): i for i, index in enumerate(rows["index"])}
    fresh = {
        name: np.empty((sample.num_examples, array.shape[1]), dtype)
        for name, array in arrays.items()
    }
    computed = compute(sample, fresh, batch_size)
    cached = [row[index] for index in map(int, computed["index"]) if index in row]
    if len(cached) < len(computed["index"]) or not np.array_equal(
        rows["labels"][cached], computed["labels"]
    ):
        logging.warning(
            "cached features of %s %s are of other images or labels: computed again",
            source.spec,
            source.split,
        )
        return False
    for name, array in arrays.items():
        now, then = (np.asarray(x, np.float32) for x in (fresh[name][: len(cached)], array[cached]))
        scale = np.abs(now).max(initial=0)
        if not np.allclose(
            now, then, rtol=0, atol=(1e-2 if dtype == "float16" else 1e-3) * scale, equal_nan=True
        ):
            what = f"{source.spec} {source.split}, {name}"
            logging.warning(
                "cached features of %s are not those that the module computes: computed again", what
            )
            return False
    return True

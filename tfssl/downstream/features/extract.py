"""Feature extraction: one forward pass of a Hub module over a source gives arrays of all
endpoints."""

import contextlib
import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from tfssl.data.sources.subset import Subset, evenly_spaced
from tfssl.downstream.features import encoder as images_module
from tfssl.downstream.features import forward, pooling
from tfssl.downstream.features.cache import FeatureCache, Rows
from tfssl.downstream.features.encoder import PIXELS, Encoder
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.hub.load import Module
from tfssl.runtime import strategy as strategies
from tfssl.runtime.strategy import Share
from tfssl.storage import mapped, npz

ALONE = Share()


# (rows that are done, function that returns their {"labels", "index"}), called after each step
Keep = Callable[[int, Callable[[], Rows]], None]


def _nothing(done: int, rows: Callable[[], Rows]) -> None:
    pass


def parts_of(array: np.ndarray, values: int = 1 << 24) -> Iterator[slice]:
    """Slices of the rows of [N, D], each of about so many values."""
    size = max(1, values // max(1, array.shape[1]))
    return (slice(i, i + size) for i in range(0, len(array), size))


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
      sequences: int64 [N], the sequence that each frame belongs to, of which validation takes all
        frames or none; None where images are not frames.
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
    sequences: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        self._sound: set[str] = set()  # endpoints that have passed `check`

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """The one that they were extracted by; the current one without images."""
        return self.images.strategy if self.images else tf.distribute.get_strategy()

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
                part.start + np.flatnonzero(~np.isfinite(values).all(1))
                for part, values in self._parts(name)
            ]
            bad = np.concatenate([*parts, np.array([], int)])
            if len(bad):
                raise UserError(self._unsound(name, len(bad), bad[0]))
            self._sound.add(name)

    def largest(self, name: str) -> float:
        """The largest absolute value of an endpoint."""
        return max(
            (float(np.abs(values).max(initial=0)) for _, values in self._parts(name)),
            default=0.0,
        )

    def _parts(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        array = self.endpoints[name]
        for part in parts_of(array):
            yield part, array[part]
            mapped.release(array)

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
    jit_compile: bool = False,
    share: Share = ALONE,
) -> Features:
    """Features of all images of a source: each is resized, center-cropped and encoded once, on all
    replicas of the strategy in whose scope it is called (and the module loaded).

    Memory: the features (none with `cache_dir`), and two batches. With `cache_dir`, the same call
    goes on where one was stopped or killed.

    Args:
      module: a Hub module's handle (see `modules.load`), or a loaded `modules.Module`.
      source: a `tfssl.data.Source`; unreadable images are dropped, and named in a warning.
      endpoints: names; None for all of the module's. "pixels" is one more: the module's input in
        [0, 1], averaged to at most floor(sqrt(target / 3)) = 54 pixels a side. An empty list:
        labels only, without a forward pass; images are not decoded then, so that an undecodable
        image is not noticed.
      image_size, resize: side of the central crop, and of the shorter side before it, in pixels; by
        default what the module's tfssl.json says, else its fixed input size, and size * 256 / 224.
      batch_size: images per forward pass, on each replica: features do not depend on the number of
        replicas.
      pool, target: pooling of maps with more than `target` values: see `pooling.pool`.
      dtype: "float32", or "float16" for half the memory.
      cache_dir: a local folder to cache the features in, memory-mapped; later calls with the same
        module, data and settings read them there, if their checksums match.
        `tfssl.data.sources.identity` defines "the same data".
      progress: show a progress bar (on a terminal or in a notebook).
      verify: compute cached features of 64 images again (of records, the first), and all of them
        where these differ.
      jit_compile: compile the forward pass with XLA, as on a TPU it always is.
      share: of several processes that extract a part each into the `cache_dir` that all reach: the
        first one's. It waits for the others, which call `extract_share`.

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
    images = Encoder(module, source, size, resize, pool, target, dtype, batch_size, jit_compile)
    wanted = check_endpoints(module, size, endpoints) if endpoints is None or len(endpoints) else []
    job = _Extraction(images, progress)
    cache = job.cache(cache_dir, source) if cache_dir and wanted else None
    start, passes = time.time(), 0
    arrays: dict[str, np.ndarray] = {}
    if not wanted:
        rows = read_labels(source)
    elif not cache:
        arrays, passes = {name: np.empty(job.shape(name), dtype) for name in wanted}, 1
        rows = job.compute(source, arrays)
    else:
        rows, arrays = cache.read(wanted)
        if verify and arrays and not _as_computed(rows, arrays, source, job.compute, dtype):
            cache.drop(list(arrays))
            rows, arrays = cache.read(wanted)
        while len(arrays) < len(wanted):  # twice where an earlier pass read other rows
            if passes == 3:
                raise UserError(
                    f"features do not stay in {cache_dir!r} as they were written: use another "
                    "disk, or no cache"
                )
            missing = [name for name in wanted if name not in arrays]
            if len(share.hosts) > 1:
                job.gather(str(cache_dir), cache, missing, share)
            else:
                job.write(cache, source, missing)
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
        sequences=sequences(source, rows["index"]),
    )
    refused = [line for line in (_reason(extracted, name) for name in wanted) if line]
    if refused and len(refused) == len([name for name in wanted if name != PIXELS]):
        raise UserError(refused[0])
    for line in refused:
        _warn_once(line)
    return extracted


def extract_share(
    module: Module,
    source: Source,
    endpoints: Sequence[str],
    cache_dir: str,
    share: Share,
    image_size: Optional[int] = None,
    resize: Optional[int] = None,
    batch_size: int = 64,
    pool: str = "max",
    dtype: str = "float32",
    progress: bool = True,
    jit_compile: bool = False,
) -> None:
    """A process's share of what `extract` in another process gathers, with the same arguments: the
    images of a contiguous part of the split."""
    size, resize = module.sizes(image_size, resize)
    images = Encoder(
        module,
        source,
        size,
        resize,
        pool,
        dtype=dtype,
        batch_size=batch_size,
        jit_compile=jit_compile,
    )
    job = _Extraction(images, progress)
    cache = job.cache(cache_dir, source)
    if cache is None:
        raise UserError(_no_exchange(source))
    done = cache.read(endpoints)[1]
    job.write_share(cache_dir, [name for name in endpoints if name not in done], share)


class _Extraction:
    """Passes over images into arrays of a cache.

    Args:
      images: with the module and all settings.
      progress: show a progress bar.
    """

    def __init__(self, images: Encoder, progress: bool) -> None:
        self.images, self.progress = images, progress

    def shape(self, name: str) -> tuple[int, int]:
        return self.images.source.num_examples, self.images.dims(name)

    def cache(self, folder: str, source: Source) -> Optional[FeatureCache]:
        images = self.images
        settings = {
            "image_size": images.size,
            "resize": images.resize,
            "pool": images.pool,
            "target": images.target,
            "dtype": images.dtype,
        }
        if isinstance(images.strategy, tf.distribute.TPUStrategy):
            settings["multiplies"] = "bfloat16"  # whatever the precision of the module
        return open_cache(folder, images.module, source, settings)

    def compute(
        self,
        source: Source,
        arrays: Mapping[str, np.ndarray],
        rows: Optional[Rows] = None,
        keep: Keep = _nothing,
    ) -> Rows:
        images = dataclasses.replace(self.images, source=source)
        return _fill(arrays, images, self.progress, rows, keep)

    def write(self, cache: FeatureCache, source: Source, names: Sequence[str]) -> None:
        """One pass over a source, or the rest of one that was stopped."""
        try:
            rows, made = ({}, {}) if _positions(source) is None else cache.resume(names)
            if rows:
                done = f"{len(rows['index'])} of {source.num_examples}"
                print(f"{source.spec} {source.split}: {done} images are done", flush=True)
            made = made or {
                name: cache.create(
                    name, (source.num_examples, self.images.dims(name)), self.images.dtype
                )
                for name in names
            }
            keep = functools.partial(cache.keep, made)
            cache.commit(made, self.compute(source, made, rows or None, keep))
        finally:
            cache.discard()

    def write_share(self, folder: str, names: Sequence[str], share: Share) -> FeatureCache:
        """The pass of one of several processes; returns its cache."""
        source = _shares(self.images.source, len(share.hosts))[share.number]
        cache = self.cache(folder, source)
        if cache is None:
            raise UserError(_no_exchange(source))
        done = cache.read(names)[1]
        missing = [name for name in names if name not in done]
        if missing and source.num_examples:
            self.write(cache, source, missing)
            first, last = source.positions[[0, -1]]
            text = f"images {first} to {last} of {self.images.source.num_examples} are extracted"
            print(f"{source.spec} {source.split}: {text}", flush=True)
        return cache

    def gather(self, folder: str, cache: FeatureCache, names: Sequence[str], share: Share) -> None:
        """The first process's own pass, and then all processes' in one array."""
        own = self.write_share(folder, names, share)
        sources = _shares(self.images.source, len(share.hosts))
        parts = [own, *(self.cache(folder, source) for source in sources[1:])]
        caches = [part for part, source in zip(parts, sources) if part and source.num_examples]
        begun, told = time.monotonic(), 0.0
        changed, states = begun, None
        while late := [
            (c, host) for c, host in zip(caches, share.hosts) if not c.is_complete(names)
        ]:
            now, who = time.monotonic(), ", ".join(host for _, host in late)
            if states != (states := [c.state() for c, _ in late]):
                changed = now
            if now - changed > share.timeout:
                raise UserError(
                    f"{who}: no progress since {now - changed:.0f} s (--host_timeout): start the "
                    "same command again on all hosts; images that are extracted stay so"
                )
            if now - begun > told + strategies.REMIND:
                told = now - begun
                print(f"waiting since {told:.0f} s for {who}", flush=True)
            time.sleep(0.2)
        found = [part.read(names) for part in caches]
        if any(len(arrays) < len(names) for _, arrays in found):
            raise UserError(
                f"the features of a host in {folder!r} are damaged: start the same command again "
                "on all hosts"
            )
        try:
            made = {name: cache.create(name, self.shape(name), self.images.dtype) for name in names}
            done = 0
            for rows, arrays in found:
                count = len(rows["index"])
                for name, array in arrays.items():
                    for part in parts_of(array):
                        target = slice(done + part.start, done + min(part.stop, count))
                        made[name][target] = array[part]
                        mapped.release(array)
                        mapped.release(made[name])
                done += count
            of_all = {key: [rows[key] for rows, _ in found] for key in found[0][0]}
            cache.commit(made, {key: np.concatenate(value) for key, value in of_all.items()})
        finally:
            cache.discard()
        for written in caches:
            written.remove()


def _shares(source: Source, count: int) -> list[Subset]:
    """Contiguous parts of a source's images, one for each of `count` processes."""
    positions = _positions(source)
    if positions is None:
        raise UserError(_no_exchange(source))
    return [Subset(source, part) for part in np.array_split(positions, count)]


def _positions(source: Source) -> Optional[np.ndarray]:
    """Places of a source's images in its split, rising; None where they are not known."""
    if source.places == source.num_examples:
        return np.arange(source.num_examples)
    return source.positions if isinstance(source, Subset) else None


def _no_exchange(source: Source) -> str:
    return (
        f"--strategy=multi_worker: {source.spec} does not say what it is made of (Source.parts), "
        "and hosts exchange features by that: evaluate it on one host"
    )


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
    images: Encoder,
    progress: bool,
    rows: Optional[Rows] = None,
    keep: Keep = _nothing,
) -> Rows:
    """Encode all images into the first rows of `arrays`, or all behind the `rows` that are there;
    returns {"labels", "index", "dropped"}."""
    source = images.source
    source.check_readable()
    batch_size = min(images.batch_size, source.num_examples)
    compute = images.step(list(arrays), batch_size)
    labels, index = ([rows[name]] if rows else [] for name in ("labels", "index"))
    done = len(index[0]) if index else 0
    seen = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)  # not in a log file
    bar = tqdm(
        total=source.num_examples,
        initial=done,
        unit=" images",
        desc=f"{source.spec} {source.split}",
        disable=not seen,
    )
    with images.strategy.scope(), bar:
        crops = forward.Crops(images.size, images.resize)
        positions = _positions(source)
        left = positions[positions > index[0][-1]] if done and positions is not None else None
        for batch in forward.outputs(compute, source, crops, batch_size, left):
            count = len(batch["index"])
            for name, array in arrays.items():
                array[done : done + count] = batch[name]
            labels.append(batch["label"])
            index.append(batch["index"])
            done += count
            bar.update(count)
            keep(done, lambda: _joined(labels, index))
    whole = _joined(labels, index)
    return {**whole, "dropped": lost(source, whole["index"])}


def _joined(labels: list[np.ndarray], index: list[np.ndarray]) -> Rows:
    return {"labels": np.concatenate(labels), "index": np.concatenate(index)}


def sequences(source: Source, index: np.ndarray) -> Optional[np.ndarray]:
    """The sequence of each of some images, int64 [n]; None where they are not frames."""
    known = "frames" in source.provides and source.random_access
    return source.sequences()[index] if known else None


def lost(source: Source, index: npt.ArrayLike) -> np.ndarray:
    """Names of the images that are missing in `index`."""
    positions = _positions(source)
    missing = np.setdiff1d(
        np.arange(source.num_examples) if positions is None else positions, index
    )
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
        image, orientation, formats, pixels, pipeline, segments, forward, images_module, pooling,
    ):  # fmt: skip
        # an archive's files cannot be opened
        with contextlib.suppress(OSError), open(part.__file__ or "", "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def _as_computed(
    rows: Rows,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    compute: Callable[[Source, Mapping[str, np.ndarray]], Rows],
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
    computed = compute(sample, fresh)
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

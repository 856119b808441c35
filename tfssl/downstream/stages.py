"""Steps of an evaluation beside the protocols: feature extraction, files of features, pictures of
nearest neighbors and of attention."""

from collections.abc import Mapping, Sequence

from tfssl.config.evaluation import Evaluation
from tfssl.data.sources import identity
from tfssl.data.sources.base import Source
from tfssl.downstream.features import cache
from tfssl.downstream.features import extract as extraction
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Protocol
from tfssl.downstream.report import attention, embedding_map
from tfssl.downstream.report import neighbors as pictures
from tfssl.downstream.report.record import Record
from tfssl.downstream.report.view import View, baselines
from tfssl.downstream.results import PIXELS
from tfssl.errors import UserError
from tfssl.hub.load import Module
from tfssl.runtime.strategy import Share
from tfssl.storage import files, locks


def extract(
    settings: Evaluation,
    name: str,
    module: Module,
    sources: Mapping[str, Source],
    endpoints: Sequence[str],
    protocols: Sequence[Protocol],
    neighbors: int,
    record: Record,
    share: Share,
) -> dict[str, Features]:
    """{part: features of a module}, cached in a local --workdir; of several processes, by the first
    one."""
    reads_train = _reads_train(settings, protocols, neighbors)
    features = {
        part: extraction.extract(
            module,
            source,
            endpoints if part != "train" or reads_train else [],
            *settings.sizes,
            batch_size=settings.batch_size,
            pool=settings.pool,
            dtype=settings.feature_dtype,
            cache_dir=settings.features_folder if settings.cache else None,
            verify=settings.cache == "verify",
            jit_compile=settings.jit_compile,
            share=share,
        )
        for part, source in sources.items()
    }
    size, resize = module.sizes(*settings.sizes)
    took = sum(of_part.seconds for of_part in features.values())
    verified = ", verified" if settings.cache == "verify" else ""
    how = f"extracted in {took:.1f} s" if took else f"from the cache{verified}"
    record.say(
        f"{name}: {', '.join(endpoints)}: {how}; the module gets {size}x{size} RGB images in [0, 1]"
    )
    unreadable = {part: of_part.dropped for part, of_part in features.items()}
    facts = {
        "image_size": size,
        "resize": resize,
        "extraction_seconds": took,
        "unreadable": unreadable,
    }
    record.modules[name] |= facts
    if protocols:
        record.facts |= {
            "num_classes": features["train"].num_classes,
            **{f"{part}_examples": len(of_part.labels) for part, of_part in features.items()},
            "baselines": baselines(features["train"], features["test"]),
        }
    return features


def extract_share(
    settings: Evaluation,
    module: Module,
    sources: Mapping[str, Source],
    endpoints: Sequence[str],
    protocols: Sequence[Protocol],
    neighbors: int,
    share: Share,
) -> None:
    """What another process than the first does: its share of the features of a module."""
    reads_train = _reads_train(settings, protocols, neighbors)
    for part, source in sources.items():
        if part != "train" or reads_train:
            extraction.extract_share(
                module,
                source,
                endpoints,
                settings.features_folder or "",
                share,
                *settings.sizes,
                batch_size=settings.batch_size,
                pool=settings.pool,
                dtype=settings.feature_dtype,
                jit_compile=settings.jit_compile,
            )


def _reads_train(settings: Evaluation, protocols: Sequence[Protocol], neighbors: int) -> bool:
    """Whether features of the training images are read."""
    held_out = bool(not settings.val_split and settings.val_fraction)
    others = bool(neighbors or settings.writes_features)
    return others or any(protocol.reads_train(held_out) for protocol in protocols)


def write_features(
    settings: Evaluation, name: str, features: Mapping[str, Features], record: Record
) -> None:
    """Write WORKDIR/MODULE_PART.npz of each part."""
    for part, of_part in features.items():
        record.say(f"written: {of_part.save(settings.file(f'{name}_{part}.npz'))}")


def show(
    settings: Evaluation,
    name: str,
    module: Module,
    features: Mapping[str, Features],
    endpoints: Sequence[str],
    neighbors: int,
    record: Record,
) -> str:
    """Nearest images and map of a module, by the endpoint that validation chose, or else the
    module's last one; returns it. And the attention of vision transformers.

    WORKDIR/MODULE_neighbors.png has `neighbors` training images of each of ten test images;
    WORKDIR/MODULE_attention.png a map for each head of each of six test images.
    """
    own = [endpoint for endpoint in endpoints if endpoint != PIXELS] or endpoints
    endpoint = View.of(record.results).starred(name) or own[-1]
    for of_part in (features[part] for part in ("train", "test") if part in features):
        of_part.check([endpoint] if endpoint in of_part.endpoints else [])
    test = features["test"]
    if neighbors:
        title = f"{name}, {endpoint}"
        png = pictures.plot(features["train"], test, endpoint, neighbors, settings.seed, title)
        record.check()
        path = settings.file(f"{name}_neighbors.png")
        files.write_file(path, png)
        record.panels[name] = endpoint, png
        record.say(f"written: {path}")
    if attention.has_attention(module) and len(test.index):
        png = attention.plot(module, test)
        record.check()
        path = settings.file(f"{name}_attention.png")
        files.write_file(path, png)
        record.attention[name] = png
        record.say(f"written: {path}")
    if settings.map != "none" and len(test.index) >= 4:
        record.maps[name] = embedding_map.make(test, endpoint, settings.map, settings.seed)
        if not record.thumbnails:
            rows = record.maps[name].rows
            record.thumbnails = embedding_map.thumbnails(pictures.pictures(test, rows), rows)
    return endpoint


def prune(settings: Evaluation, sources: Mapping[str, Source]) -> list[str]:
    """Remove features in --workdir that are no longer usable, such as those of changed `sources`.
    Returns lines to print.

    Raises:
      UserError: there is no local --workdir.
    """
    folder = settings.features_folder
    if settings.workdir is None or not folder:
        raise UserError("--prune removes features from a local --workdir: name it")
    known = [(source.spec, source.split, identity.of(source)) for source in sources.values()]
    with locks.workdir_lock(settings.workdir, settings.steal_lock):
        removed = cache.prune(folder, extraction.versions(), known)
    total = sum(size for *_, size in removed) / 1e6
    lines = [f"pruned: {path} ({size / 1e6:.1f} MB; {reason})" for path, reason, size in removed]
    return [*lines, f"pruned: {len(removed)} sets of features, {total:.1f} MB, from {folder}"]

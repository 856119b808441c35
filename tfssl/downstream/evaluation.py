"""An evaluation from its settings to its report: checks, the record, and module by module features
and protocols."""

import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from tfssl.config.evaluation import Evaluation
from tfssl.data import open_source, overlap
from tfssl.data.listing import outputs
from tfssl.data.sources import identity
from tfssl.downstream import partition, runner, stages
from tfssl.downstream.budget import Budget
from tfssl.downstream.detector import Detector
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.report import projector
from tfssl.downstream.report.record import Record
from tfssl.errors import UserError
from tfssl.hub import handles, precision
from tfssl.hub.load import Module, common_pixels
from tfssl.runtime import strategy as strategies
from tfssl.storage import files, locks

# (modules, folder, seed, image size, resize, say=) -> {name: (untrained network of a module, names
# of the modules with that network)}: `tfssl.export.untrained.beside`.
Untrained = Callable[..., dict[str, tuple[Module, list[str]]]]
# (detector, folder, flags): `tfssl.export.save_detector`.
SaveDetector = Callable[[Detector, str, Mapping[str, Any]], str]


class Request(NamedTuple):
    """What `evaluate` is asked for."""

    settings: Evaluation
    protocols: list[Protocol]  # in the order of the table
    optional: list[str]  # names of the protocols that --protocol=all adds, which may be skipped
    # names of the protocols with given settings, which --budget_minutes does not change
    kept: list[str]
    flags: dict[str, Any]  # as the record keeps them
    command: list[str]  # likewise


def evaluate(
    request: Request,
    held: contextlib.ExitStack,
    untrained: Untrained,
    save_detector: SaveDetector,
) -> None:
    """Run an evaluation, and write its record and report to --workdir.

    Args:
      request: settings and protocols.
      held: keeps the lock of --workdir.
      untrained: makes the untrained networks.
      save_detector: publishes a detector.

    Raises:
      UserError: images, modules or settings do not fit each other; before any work where that can
        be known.
    """
    settings, start = request.settings, time.time()
    if settings.prune and not settings.module:
        return _say("\n".join(stages.prune(settings, {})))
    named = handles.named(settings.module or ())
    # All checks: before any work.
    if settings.workdir:
        files.check_writable(settings.workdir, "--workdir")
    if settings.save_detector:
        files.check_writable(os.path.dirname(settings.save_detector) or ".", "--save_detector")
        if tf.io.gfile.exists(settings.save_detector):
            raise UserError(
                f"--save_detector={settings.save_detector} exists, and published versions never "
                "change: choose another folder"
            )
    strategy, kind, share = strategies.for_inference(settings)
    load = functools.partial(_load, strategy, kind)
    opened = {name: load(handle) for name, handle in named.items()}
    pixels = common_pixels(opened.values())
    sources = {
        part: open_source(settings.dataset, split, **(settings.where or {}), **pixels)
        for part, split in settings.splits.items()
    }
    if settings.prune:
        _say("\n".join(stages.prune(settings, sources)))
    if request.protocols:
        overlap.check(sources)
    left_out = list(dict.fromkeys(note for source in sources.values() for note in source.notes()))
    protocols = runner.permitted(
        request.protocols, sources.values(), request.optional, left_out.append
    )
    if settings.minutes:  # the cheapest first
        protocols.sort(
            key=lambda protocol: (protocol.expense or 0) if protocol.name in request.optional else 0
        )
    of_features, of_maps = (
        [p for p in protocols if p.reads == kind] for kind in ("features", "maps")
    )
    choice: dict[str, Any] = {"val_fraction": settings.val_fraction, "seed": settings.seed}
    if of_features:
        for amount in settings.train_labels:
            partition.label_count(
                amount, sources["train"].num_examples, sources["train"].num_classes or 1
            )
        by_name = [protocol for protocol in of_features if protocol.name not in request.optional]
        runner.check_labels(by_name, sources, settings.train_labels, **choice)
    in_full = [p.name for p in of_maps if p.name not in request.optional]
    if in_full and list(settings.train_labels) != ["all"]:
        raise UserError(
            f"--train_labels={','.join(settings.train_labels)} is of protocols on features, and "
            f"{in_full[0]} reads whole images: give it a part of the split, such as "
            "--train_split=train[:10%], by itself"
        )
    names = None if list(settings.endpoints) == ["all"] else settings.endpoints
    held_out = bool(not settings.val_split and settings.val_fraction)
    neighbors = settings.neighbor_count(any(p.reads_train(held_out) for p in of_features))
    extracting = bool(of_features or neighbors or settings.writes_features or settings.projector)
    wanted = runner.endpoints(opened, names, *settings.sizes) if extracting else {}
    if share.number:
        if settings.beside_untrained:
            beside = _untrained(settings, opened, untrained, _say, load, held)
            opened |= {name: module for name, (module, _) in beside.items()}
            wanted = runner.endpoints(opened, names, *settings.sizes) if extracting else {}
        for name, endpoints in wanted.items():
            with strategy.scope():
                stages.extract_share(
                    settings, opened[name], sources, endpoints, of_features, neighbors, share
                )
        return _say(f"{share.hosts[0]} measures them")

    # The workdir, the record, and untrained modules.
    check = (
        _claim(settings.workdir, settings.steal_lock, held) if settings.workdir else lambda: None
    )
    purpose = {"train": "images to learn from", "val": "to choose on", "test": "to test on"}
    counts = [
        f"{sources[part].num_examples} {purpose[part]}" for part in purpose if part in sources
    ]
    _say(f"{settings.dataset}: {', '.join(counts)}")
    data = {part: identity.described(source) for part, source in sources.items()}
    if settings.workdir:
        _tell_of_other_data(settings.workdir, data)
    record = Record(
        settings.workdir,
        [protocol.name for protocol in request.protocols],
        _say,
        check,
        command=request.command,
        flags=request.flags,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start)),
        data=data,
        **{f"{part}_examples": source.num_examples for part, source in sources.items()},
    )
    for line in left_out:
        record.note(line)
    beside = (
        _untrained(settings, opened, untrained, record.note, load, held)
        if settings.beside_untrained
        else {}
    )
    opened |= {name: module for name, (module, _) in beside.items()}
    wanted = runner.endpoints(opened, names, *settings.sizes) if extracting else {}
    budget = None
    if settings.minutes:
        may = [protocol for protocol in protocols if protocol.name in request.optional]
        budget = Budget(settings.minutes, len(opened), may, request.kept, _say, record.note)
    measure = functools.partial(
        runner.measure,
        optional=request.optional,
        left_out=record.note,
        refused=record.refuse,
        budget=budget,
    )

    # The work: module by module.
    projected: dict[str, tuple[str, Features]] = {}
    for name, module in opened.items():
        record.modules[name] = {"handle": module.handle, "identity": module.identity}
        if "step" in module.facts:
            record.modules[name]["step"] = module.facts["step"]
        if name in beside:
            record.modules[name]["untrained_of"] = beside[name][1]
        try:
            if name in wanted:
                with strategy.scope():
                    features = stages.extract(
                        settings,
                        name,
                        module,
                        sources,
                        wanted[name],
                        of_features,
                        neighbors,
                        record,
                        share,
                    )
                if of_features:
                    state_dir = (
                        settings.file("heads") if settings.workdir and settings.cache else None
                    )
                    train, test, val = features["train"], features["test"], features.get("val")
                    frozen = Data(train, test, val, **choice, state_dir=state_dir)
                    record.add(
                        name, measure(of_features, frozen, wanted[name], settings.train_labels)
                    )
                if settings.writes_features:
                    stages.write_features(settings, name, features, record)
                if settings.workdir and "test" in features:
                    endpoint = stages.show(
                        settings, name, module, features, wanted[name], neighbors, record
                    )
                    if settings.projector:
                        projected[name] = endpoint, features["test"]
        except UserError as error:
            record.refuse(error, name)
        try:
            pixels_of = [result.protocol for result in record.results if result.of_pixels]
            if of_maps:
                if strategies.distributed(strategy):  # dense protocols compute on one device
                    module = precision.load(module.handle, kind)
                whole = Data(
                    sources["train"],
                    sources["test"],
                    sources.get("val"),
                    module,
                    **choice,
                    strategy=strategy,
                    publish=_publisher(settings, request.flags, name, opened, save_detector),
                )
                record.add(name, measure(of_maps, whole, names, pixels_of=pixels_of))
        except UserError as error:
            record.refuse(error, name)
    if projected:
        record.check()
        folder = settings.file("projector")
        projector.write(folder, projected)
        record.say(f"written: {folder}; tensorboard --logdir {folder} shows it")
    if protocols and not record.results and not record.refused:
        raise UserError(f"--protocol=all: nothing could be measured: {'; '.join(record.notes)}")
    record.finish(f"{settings.dataset} {settings.test_split}", seconds=time.time() - start)


def _claim(workdir: str, steal_lock: bool, held: contextlib.ExitStack) -> Callable[[], None]:
    """Lock --workdir, as `locks.workdir_lock`, and mark its files as no data (see
    `tfssl.data.listing.outputs`)."""
    check = held.enter_context(locks.workdir_lock(workdir, steal_lock))
    outputs.mark(workdir)
    return check


def _tell_of_other_data(workdir: str, data: dict[str, dict[str, Any]]) -> None:
    """Print a line where a workdir has results on data other than {part: `identity.described`},
    which are replaced."""
    path = os.path.join(workdir, "results.json")
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
        recorded, date = record.get("data") or {}, record.get("date")
        other = [
            part
            for part in data
            if part in recorded and recorded[part]["digest"] != data[part]["digest"]
        ]
    except (
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
    ):  # none, a remote one, or a damaged one
        return
    if other:
        beside = [
            name for name in files.listdir(workdir) if name.endswith((".png", ".html", ".npz"))
        ]
        kept = f"; until they are written anew, so are {', '.join(beside)}" if beside else ""
        _say(
            f"{path}, of {date}, is about other images ({', '.join(other)}) than this evaluation, "
            f"and is replaced{kept}"
        )


def _publisher(
    settings: Evaluation,
    flags: dict[str, Any],
    name: str,
    opened: Mapping[str, Module],
    save: SaveDetector,
) -> Optional[Callable[[Detector], None]]:
    """`Data.publish` of a module."""
    folder = settings.save_detector
    if folder is None:
        return None
    path = os.path.join(folder, name.replace("/", "_")) if len(opened) > 1 else folder

    def publish(detector: Detector) -> None:
        _say(f"written: {save(detector, path, flags)}")

    return publish


def _load(strategy: tf.distribute.Strategy, kind: str, handle: str) -> Module:
    """A module for all replicas of a strategy, in a precision."""
    with strategy.scope():
        return precision.load(handle, kind)


def _untrained(
    settings: Evaluation,
    opened: dict[str, Module],
    make: Untrained,
    note: Callable[[str], None],
    load: Callable[[str], Module],
    held: contextlib.ExitStack,
) -> dict[str, tuple[Module, list[str]]]:
    """Untrained networks of the modules, likewise; in --workdir if local, else in a folder that is
    `held`."""
    folder = (
        settings.file("untrained")
        if settings.local
        else held.enter_context(tempfile.TemporaryDirectory())
    )
    made = make(opened, folder, settings.seed, *settings.sizes, say=note)
    return {
        name: (opened.get(name) or load(module.handle), names)
        for name, (module, names) in made.items()
    }


def _say(text: str) -> None:
    print(text, flush=True)

"""Evaluate encoders: Hub modules in, results of protocols on frozen features out, by endpoint.

  tfssl-eval --module=runs/photos/module/1000 --dataset=folder:photos \\
      --train_split=train[:90%] --test_split=train[90%:]
  tfssl-eval --module=rotation=modules/a,random=modules/b --dataset=folder:cifar10 \\
      --protocol=logistic,knn --train_labels=1%,all --workdir=eval

Any module that takes float32 RGB images in [0, 1] will do. Settings are chosen on --val_split, or
on a part of the training labels, never on the test split. Raw pixels and an untrained network are
the baselines: --protocol=all runs all protocols that the images permit, with both.
WORKDIR/report.html is the page to look at.
"""

import contextlib
import functools
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from tfssl.config import data_flags, evaluation, signatures
from tfssl.config.evaluation import NOT_PROTOCOLS, Evaluation
from tfssl.config.generated import Generated, as_text, of_registry
from tfssl.downstream import NAMES, PROTOCOLS
from tfssl.errors import UserError
from tfssl.hub import handles
from tfssl.runtime import cli

if TYPE_CHECKING:
    from tfssl.downstream.protocol import Protocol
    from tfssl.hub.load import Module

FLAGS = flags.FLAGS
SECTIONS = [
    Generated("section", {cls.__name__: (cls.__module__, cls.__name__)})
    for cls in reversed(Evaluation.__bases__)
]


def protocol_flags(own: tuple[str, ...] = ()) -> Generated:
    """The flags of our protocols, and of a user's own by their import paths."""
    return of_registry(PROTOCOLS, *own, unset=False)


def own_of(names: Sequence[str]) -> tuple[str, ...]:
    """The import paths among names of protocols."""
    return tuple(dict.fromkeys(name for name in names if ":" in name))


def define_flags(argv: Sequence[str] = ()) -> None:
    """In the order of `--help`; the flags of a user's own protocol too, where `argv` names it."""
    images, features, protocols, run = SECTIONS
    with cli.section("Modules and images"):
        images.define()
        data_flags.define_record_keys()
    with cli.section("Features"):
        features.define()
        cli.define_switch(
            "cache",
            True,
            ("verify",),
            signatures.argument_texts(inspect.getdoc(evaluation.Features) or "")["cache"],
        )
    with cli.section("Protocols"):
        flags.DEFINE_list(
            "protocol",
            ["logistic"],
            f"A comma list of: {', '.join(NAMES)}; or the import path of a class of your own, "
            "mypackage.mine:Mine; all: those that the "
            "images permit, as far as --budget_minutes go, but not linear_sgd, which is a slower "
            "form of logistic; features "
            "writes WORKDIR/MODULE_PART.npz of each split, for programs of your own (no labels "
            "needed; alone, --test_split may be empty).",
        )
        protocols.define()
    own = own_of((cli.peek(argv, "protocol") or "").split(","))
    taken = {*FLAGS, *run.flags}
    for name in own:
        for flag in taken & set(protocol_flags(own).defaults(name)):
            raise UserError(
                f"--{flag} is a flag of tfssl-eval already: give {name} a flag_prefix, or another "
                "name in flag_names"
            )
    for name in (*NAMES, *own):
        with cli.section(f"{name}: {signatures.summary(*PROTOCOLS.source(name))}"):
            protocol_flags(own).define([name])
    with cli.section("The run"):
        run.define()


class Request(NamedTuple):
    settings: Evaluation
    protocols: "list[Protocol]"  # in the order of the table
    optional: list[str]  # names of the protocols that --protocol=all adds, which may be skipped
    # names of the protocols with given settings, which --budget_minutes does not change
    kept: list[str]
    flags: dict[str, Any]


def read_flags() -> Request:
    """The evaluation that the flags describe; `UserError` where flags contradict each other, or a
    protocol rejects its own."""
    values = FLAGS.flag_values_dict()
    arguments = {
        "protocol": FLAGS.protocol,
        "cache": FLAGS.cache,
        "where": data_flags.where(values),
    }
    for section in SECTIONS:
        (name,) = section.settings
        arguments |= section.arguments(name, values)
    settings = Evaluation(**arguments)
    named = settings.named_protocols
    for name in named:
        if name not in NAMES and ":" not in name:
            known = ", ".join((*NAMES, *NOT_PROTOCOLS))
            raise UserError(
                f"--protocol={name}: there is {known}, or an import path such as "
                "mypackage.mine:Mine"
            )
    generated = protocol_flags(own_of(named))
    others = [name for name in NAMES if settings.all_protocols and name not in named]
    added = [name for name in others if PROTOCOLS.find(name).expense is not None]
    protocols: list[Protocol] = []
    optional: list[str] = []
    kept: list[str] = []
    for name in (*named, *added):
        protocol = generated.make(name, PROTOCOLS.find(name), values)
        of_argument = {
            argument: setting.flag for argument, setting in generated.settings[name].items()
        }
        for flag in (
            () if settings.held_out else (of_argument[argument] for argument in protocol.chooses())
        ):
            raise UserError(
                f"--{flag}={as_text(values[flag])} and --val_fraction=0: nothing to choose on"
            )
        protocols.append(protocol)
        optional += [protocol.name] if name in added else []
        kept += (
            [protocol.name]
            if any(FLAGS[f].present for a, f in of_argument.items() if a in protocol.quick)
            else []
        )
    recorded = {name: FLAGS[name].value for name in cli.defined_flags()}
    recorded |= {"neighbors": settings.neighbor_count, "random_init": settings.beside_untrained}
    return Request(
        settings, sorted(protocols, key=lambda p: p.reads == "maps"), optional, kept, recorded
    )


def main(_: list[str]) -> None:
    with contextlib.ExitStack() as held:
        evaluate(read_flags(), held)


def evaluate(request: Request, held: contextlib.ExitStack) -> None:
    """Run an evaluation. `held` keeps the lock of --workdir."""
    settings, start = request.settings, time.time()
    from tfssl.data import open_source, overlap
    from tfssl.data.sources import identity
    from tfssl.downstream import evaluation as of_module
    from tfssl.downstream import runner, splits
    from tfssl.downstream.budget import Budget
    from tfssl.downstream.protocol import Data
    from tfssl.downstream.report.record import Record
    from tfssl.hub import load as modules
    from tfssl.storage import files

    if settings.prune and not settings.module:
        return say("\n".join(of_module.prune(settings, {})))
    named = handles.named(settings.module or ())
    # All checks: before any work.
    if settings.workdir:
        files.check_writable(settings.workdir, "--workdir")
    opened = {name: modules.load(handle) for name, handle in named.items()}
    sources = {
        part: open_source(settings.dataset, split, **(settings.where or {}))
        for part, split in settings.splits.items()
    }
    if settings.prune:
        say("\n".join(of_module.prune(settings, sources)))
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
            splits.label_count(
                amount, sources["train"].num_examples, sources["train"].num_classes or 1
            )
        by_name = [protocol for protocol in of_features if protocol.name not in request.optional]
        runner.check_labels(by_name, sources, settings.train_labels, **choice)
    names = None if list(settings.endpoints) == ["all"] else settings.endpoints
    extracting = of_features or settings.neighbor_count or settings.writes_features
    runner.endpoints(opened, names, *settings.sizes) if extracting else {}

    # The workdir, the record, and untrained modules.
    check = (
        claim_workdir(settings.workdir, settings.steal_lock, held)
        if settings.workdir
        else lambda: None
    )
    purpose = {"train": "images to learn from", "val": "to choose on", "test": "to test on"}
    counts = [
        f"{sources[part].num_examples} {purpose[part]}" for part in purpose if part in sources
    ]
    say(f"{settings.dataset}: {', '.join(counts)}")
    data = {part: identity.described(source) for part, source in sources.items()}
    if settings.workdir:
        tell_of_other_data(settings.workdir, data)
    record = Record(
        settings.workdir,
        [protocol.name for protocol in request.protocols],
        say,
        check,
        command=["tfssl-eval", *sys.argv[1:]],
        flags=request.flags,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start)),
        data=data,
        **{f"{part}_examples": source.num_examples for part, source in sources.items()},
    )
    for line in left_out:
        record.note(line)
    untrained = make_untrained(settings, opened, record.note) if settings.beside_untrained else {}
    opened |= {name: module for name, (module, _) in untrained.items()}
    wanted = runner.endpoints(opened, names, *settings.sizes) if extracting else {}
    budget = None
    if settings.minutes:
        may = [protocol for protocol in protocols if protocol.name in request.optional]
        budget = Budget(settings.minutes, len(opened), may, request.kept, say, record.note)
    measure = functools.partial(
        runner.measure,
        optional=request.optional,
        left_out=record.note,
        refused=record.refuse,
        budget=budget,
    )

    # The work: module by module.
    for name, module in opened.items():
        record.modules[name] = {"handle": module.handle, "identity": module.identity}
        if name in untrained:
            record.modules[name]["untrained_of"] = untrained[name][1]
        try:
            if name in wanted:
                features = of_module.extract(
                    settings, name, module, sources, wanted[name], of_features, record
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
                    of_module.write_features(settings, name, features, record)
                if settings.neighbor_count:
                    of_module.write_neighbors(settings, name, features, wanted[name], record)
        except UserError as error:
            record.refuse(error, name)
        try:
            pixels_of = [result.protocol for result in record.results if result.of_pixels]
            if of_maps:
                whole = Data(
                    sources["train"], sources["test"], sources.get("val"), module, **choice
                )
                record.add(name, measure(of_maps, whole, names, pixels_of=pixels_of))
        except UserError as error:
            record.refuse(error, name)
    if protocols and not record.results and not record.refused:
        raise UserError(f"--protocol=all: nothing could be measured: {'; '.join(record.notes)}")
    record.finish(f"{settings.dataset} {settings.test_split}", seconds=time.time() - start)


def claim_workdir(workdir: str, steal_lock: bool, held: contextlib.ExitStack) -> Callable[[], None]:
    """Lock --workdir, as `locks.workdir_lock`, and mark its files as no data (see
    `tfssl.data.listing.outputs`)."""
    from tfssl.data.listing import outputs
    from tfssl.storage import locks

    check = held.enter_context(locks.workdir_lock(workdir, steal_lock))
    outputs.mark(workdir)
    return check


def tell_of_other_data(workdir: str, data: dict[str, dict[str, Any]]) -> None:
    """Print a line where a workdir has results on data other than {part: `identity.described`},
    which are replaced."""
    from tfssl.storage import files

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
        say(
            f"{path}, of {date}, is about other images ({', '.join(other)}) than this evaluation, "
            f"and is replaced{kept}"
        )


def make_untrained(
    settings: Evaluation, opened: "dict[str, Module]", note: Callable[[str], None]
) -> "dict[str, tuple[Module, list[str]]]":
    """Untrained networks of the modules: {name: (module, names of the modules with this network)};
    in --workdir if local."""
    from tfssl.export import untrained

    with tempfile.TemporaryDirectory() as folder:
        folder = settings.file("untrained") if settings.local else folder
        return untrained.beside(opened, folder, settings.seed, *settings.sizes, say=note)


def say(text: str) -> None:
    print(text, flush=True)


def run() -> None:
    """Entry point of `tfssl-eval`."""
    cli.run(
        main,
        "tfssl-eval",
        define_flags,
        goes_on="the same command goes on from what --workdir has cached",
    )


if __name__ == "__main__":
    run()

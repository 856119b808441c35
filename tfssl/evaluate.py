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
import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from tfssl.config import data_flags, evaluation, signatures
from tfssl.config.evaluation import NOT_PROTOCOLS, Evaluation
from tfssl.config.generated import Generated, as_text, of_registry
from tfssl.downstream import NAMES, PROTOCOLS
from tfssl.errors import UserError
from tfssl.runtime import cli

if TYPE_CHECKING:
    from tfssl.downstream.evaluation import Request
    from tfssl.downstream.protocol import Protocol

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
    images, features, protocols, accelerators, run = SECTIONS
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
    taken = {*FLAGS, *accelerators.flags, *run.flags}
    for name in own:
        for flag in taken & set(protocol_flags(own).defaults(name)):
            raise UserError(
                f"--{flag} is a flag of tfssl-eval already: give {name} a flag_prefix, or another "
                "name in flag_names"
            )
    for name in (*NAMES, *own):
        with cli.section(f"{name}: {signatures.summary(*PROTOCOLS.source(name))}"):
            protocol_flags(own).define([name])
    with cli.section("Accelerators"):
        accelerators.define()
    with cli.section("The run"):
        run.define()


def read_flags() -> "Request":
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
    from tfssl.downstream.evaluation import Request

    recorded = {name: FLAGS[name].value for name in cli.defined_flags()}
    recorded["random_init"] = settings.beside_untrained
    protocols.sort(key=lambda protocol: protocol.reads == "maps")
    command = ["tfssl-eval", *sys.argv[1:]]
    return Request(settings, protocols, optional, kept, recorded, command)


def main(_: list[str]) -> None:
    with contextlib.ExitStack() as held:
        request = read_flags()
        from tfssl.downstream import evaluation as measurement
        from tfssl.export import save_detector, untrained

        measurement.evaluate(request, held, untrained.beside, save_detector)


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

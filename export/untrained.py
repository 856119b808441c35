"""Untrained networks for an evaluation: beside each module that tfssl-export wrote, the same
network as it began."""

import contextlib
import gc
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.config import signatures
from tfssl.config.configs import TrainConfig
from tfssl.config.generated import as_text
from tfssl.errors import UserError, one_line
from tfssl.export.module import save
from tfssl.export.network import save_network
from tfssl.hub import load as modules
from tfssl.pretext.task import Pretext
from tfssl.registry import Registry
from tfssl.storage import locks
from tfssl.training import checks
from tfssl.training.build import build_model
from tfssl.training.registered import registered

# The flags of training that shape an untrained encoder, beside the own settings of its task and its
# backbone: what a module's tfssl.json says of others does not become part of a command.
_OF_THE_NETWORK = ("task", "backbone")
_OF_IMPORTED = ("network", "normalization", "crop", "resize")
# Settings that name files or modules, and shape heads alone.
_FILES = ("bins", "permutations_file", "teacher", "teacher_endpoint")


def beside(
    opened: Mapping[str, modules.Module],
    folder: str,
    seed: int = 0,
    image_size: Optional[int] = None,
    resize: Optional[int] = None,
    say: Callable[[str], object] = print,
) -> dict[str, tuple[modules.Module, list[str]]]:
    """Export the untrained network of each module, by what its tfssl.json says: the flags of its
    training, or, of imported weights, their network.

    Modules whose untrained networks are one, share it. There is none beside a module that is not
    ours, and none beside an untrained one, which also stands for its trained fellows.

    Args:
      opened: {name: `modules.Module`}.
      folder: where they are written; one that is there is taken as it is, so that of several
        hosts with one folder each gets the same, whoever writes it.
      seed: of their weights.
      image_size, resize: what images are brought to, see `Module.sizes`.
      say: told, in one line each, what is made and what not.

    Returns:
      {name: (`modules.Module`, names of the modules whose network it is)}: "random", or
      "random-NAME" where there are several; and the untrained modules among those given.
    """
    given: dict[str, tuple[modules.Module, list[str]]]
    given = {
        name: (module, []) for name, module in opened.items() if module.facts.get("random_init")
    }
    given_of_key = {key: name for name, (module, _) in given.items() if (key := _key(module.facts))}
    made: dict[tuple[str, ...], Optional[modules.Module]] = {}  # by flags
    networks: list[tuple[modules.Module, list[str]]] = []  # and whose they are
    for name, module in opened.items():
        recipe, key = _flags(module.facts) or _network(module.facts), _key(module.facts)
        if name in given:
            say(f"{name} is an untrained network itself")
        elif key in given_of_key:
            fellow = given_of_key[key]
            given[fellow][1].append(name)
            say(f"{name}: its network untrained is {fellow}")
        elif not recipe:
            because = "it does not say how it was made (modules of tfssl-export do)"
            if key:
                training = module.facts["training_flags"]
                own = next(
                    f"{kind} {training[kind]!r}"
                    for kind in _OF_THE_NETWORK
                    if ":" in training[kind]
                )
                because = (
                    f"its {own} is a class that is not imported here: tfssl-export --random_init "
                    "writes one, for --module"
                )
            say(f"{name}: no untrained network beside it, for {because}")
        else:
            if tuple(recipe) not in made:
                made[tuple(recipe)] = _export(name, [*recipe, f"--seed={seed}"], folder, say)
            untrained = made[tuple(recipe)]
            if untrained is None:
                continue
            equal = (names for one, names in networks if _same(one, untrained, image_size, resize))
            names = next(equal, None)
            if names is None:
                networks.append((untrained, [name]))
            else:
                names.append(name)
    alone = len(networks) == 1 and "random" not in opened
    return {
        **given,
        **{
            "random" if alone else f"random-{names[0]}": (module, names)
            for module, names in networks
        },
    }


def _flags(facts: Mapping[str, Any]) -> list[str]:
    """What shapes the untrained encoder, as flags, without the seed; [] if the facts are not those
    of an encoder of ours."""
    training = facts.get("training_flags") or {}
    task, backbone = training.get("task"), training.get("backbone")
    if not isinstance(task, str) or not isinstance(backbone, str):
        return []
    sources = [_source(pretext.TASKS, task, Pretext)]
    if (
        backbone in backbones.NAMES or ":" in backbone
    ):  # of any other name the registry has something to say
        sources.append(_source(backbones.BACKBONES, backbone, tf.keras.Model))
    if None in sources:
        return []
    try:
        settings = [s for source in sources if source for s in signatures.read(*source).values()]
    except UserError:  # a class of a notebook, which stands in no file
        return []
    head = sum(bool(re.fullmatch(r"head\d+", name)) for name in facts.get("endpoints", []))
    own = [setting.flag for setting in settings if setting.flag not in _FILES]
    flags = {name: training[name] for name in (*_OF_THE_NETWORK, *own) if name in training}
    flags["head_endpoints"] = head
    return [f"--{name}={as_text(value)}" for name, value in sorted(flags.items())]


def _network(facts: Mapping[str, Any]) -> list[str]:
    """The network of imported weights, as one line of JSON, with what is done with its images; []
    if the facts are not of such."""
    config = facts.get("network") or {}
    if not facts.get("source") or config.get("name") not in backbones.NAMES:
        return []
    return [json.dumps({name: facts.get(name) for name in _OF_IMPORTED}, sort_keys=True)]


def _key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a module and its untrained fellow have in common, if they are ours: hashable; () of
    others. It imports nothing."""
    training = facts.get("training_flags") or {}
    names = [training.get(kind) for kind in _OF_THE_NETWORK]
    own = all(isinstance(name, str) for name in names) and any(":" in str(name) for name in names)
    if _flags(facts) or not own:
        return tuple(_flags(facts) or _network(facts))
    of_the_run = TrainConfig().flags().keys() - set(_OF_THE_NETWORK)
    shaping = {
        name: as_text(value)
        for name, value in training.items()
        if name not in (*of_the_run, *_FILES)
    }
    return (*sorted(shaping.items()), len(facts.get("endpoints", [])))


def _source(registry: Registry, name: str, base: type) -> Optional[tuple[str, str]]:
    """(module, class) of one of ours, or of a user's own that is imported already; None of others:
    a path in somebody's facts is not followed."""
    if name in registry.names:
        return registry.source(name)
    module, _, class_name = name.partition(":")
    cls: Any = getattr(sys.modules.get(module), class_name, None)
    return (module, class_name) if isinstance(cls, type) and issubclass(cls, base) else None


def _export(
    name: str, flags: Sequence[str], folder: str, say: Callable[[str], object]
) -> Optional[modules.Module]:
    """The untrained module of these flags; None where they contradict each other."""
    path = os.path.join(folder, hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12])
    while not os.path.exists(path):
        try:
            if flags[0].startswith("{"):
                export_network(json.loads(flags[0]), int(flags[1].partition("=")[2]), path)
                continue
            texts = dict(flag[2:].split("=", 1) for flag in flags)
            head_endpoints = int(texts.pop("head_endpoints"))
            config = TrainConfig.from_record(
                texts, *registered({kind: texts[kind] for kind in _OF_THE_NETWORK})
            )
            export(checks.pretraining(config.replace(workdir=path)), path, head_endpoints)
        except locks.Busy:  # another host writes the same one
            time.sleep(0.2)
        except Exception as error:
            if os.path.exists(path):  # it has
                break
            # Whatever somebody's facts make of a network, the evaluation goes on without it.
            say(f"{name}: no untrained network beside it: {one_line(error)}")
            return None
    return modules.load(path)


def export(config: TrainConfig, path: str, head_endpoints: int = 0) -> None:
    """Write the module of an untrained network: what `tfssl-export --random_init` writes, in the
    midst of something else.

    It is built on the CPU, for an accelerator's memory may be taken, and leaves no memory behind.

    Args:
      config: of its training; the seed is that of its weights.
      path: the module's folder, which must not exist yet.
      head_endpoints: see `tfssl.export.save`.

    Raises:
      UserError: there is no such network.
    """
    model = None
    with _on_the_cpu(config.optimization.seed):
        try:
            model = build_model(config)
            save(
                model,
                path,
                0,
                None,
                config.published(),
                random_init=True,
                head_endpoints=head_endpoints,
            )
        finally:
            model = None


def export_network(facts: Mapping[str, Any], seed: int, path: str) -> None:
    """The same for the network of imported weights: what `tfssl-import --random_init` writes.

    Args:
      facts: "network", "normalization", "crop" and "resize" of the module's.
      seed: of the weights.
      path: the module's folder, which must not exist yet.
    """
    images = facts["normalization"]
    with _on_the_cpu(seed):
        network = backbones.build(**facts["network"])
        network.build((None, None, None, 3))
        more = {"random_init": True, "source": {"family": "untrained"}}
        save_network(
            network, path, images["mean"], images["std"], facts["crop"], facts["resize"], more
        )
        del network


@contextlib.contextmanager
def _on_the_cpu(seed: int) -> Iterator[None]:
    """Weights of a seed, in float32; what was built is gone afterwards."""
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    tf.keras.utils.set_random_seed(seed)
    try:
        with tf.device("CPU:0"):
            yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
        gc.collect()


def _same(
    one: modules.Module, other: modules.Module, image_size: Optional[int], resize: Optional[int]
) -> bool:
    """Whether two modules do the same with the same images."""
    size, scaled = one.sizes(image_size, resize)
    if other.sizes(image_size, resize) != (size, scaled) or one.pixels != other.pixels:
        return False
    images = np.random.default_rng(0).random([2, size, size, one.pixels["channels"]], np.float32)
    ours, theirs = (module.endpoints(tf.constant(images)) for module in (one, other))
    return list(ours) == list(theirs) and all(
        ours[key].shape == theirs[key].shape and np.allclose(ours[key], theirs[key], 1e-3, 1e-5)
        for key in ours
    )

"""Untrained networks for an evaluation: beside each module that tfssl-export wrote, the same network as it began."""

import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tfssl import pretext
from tfssl.config import signatures
from tfssl.config.generated import as_text
from tfssl.hub import load as modules

# The flags of training that shape an untrained encoder, beside its task's own settings: what a module's tfssl.json says of others does not
# become part of a command.
_OF_THE_NETWORK = (
    "task", "backbone", "width_multiplier", "stem", "bn_momentum", "bn_epsilon", "last_relu", "skip_connections",
    "representation_size", "sk_ratio", "zero_init_residual", "initializer",
)  # fmt: skip
_FILES = ("bins", "permutations_file")  # settings that are paths, and shape heads alone


def beside(opened, folder, seed=0, image_size=None, resize=None, say=print):
    """Export the untrained network of each module, by the flags of training in its tfssl.json.

    Modules whose untrained networks are one, share it. There is none beside a module that is not ours, and none beside an untrained one,
    which also stands for its trained fellows.

    Args:
      opened: {name: `modules.Module`}.
      folder: where they are written; one that is there is taken as it is.
      seed: of their weights.
      image_size, resize: what images are brought to, see `Module.sizes`.
      say: told, in one line each, what is made and what not.

    Returns:
      {name: (`modules.Module`, names of the modules whose network it is)}: "random", or "random-NAME" where there are several; and the
      untrained modules among those given.
    """
    given = {name: (module, []) for name, module in opened.items() if module.facts.get("random_init")}
    flags_of_given = {tuple(_flags(module.facts)): name for name, (module, _) in given.items()}
    made, networks = {}, []  # flags -> Module or None; [(Module, names)]
    for name, module in opened.items():
        flags = _flags(module.facts)
        if name in given:
            say(f"{name} is an untrained network itself")
        elif not flags:
            say(
                f"{name}: no untrained network beside it, for it does not say how it was made (modules of tfssl-export do)"
            )
        elif tuple(flags) in flags_of_given:
            fellow = flags_of_given[tuple(flags)]
            given[fellow][1].append(name)
            say(f"{name}: its network untrained is {fellow}")
        else:
            if tuple(flags) not in made:
                made[tuple(flags)] = _export(name, [*flags, f"--seed={seed}"], folder, say)
            untrained = made[tuple(flags)]
            if untrained is None:
                continue
            equal = (names for one, names in networks if _same(one, untrained, image_size, resize))
            names = next(equal, None)
            if names is None:
                networks.append((untrained, [name]))
            else:
                names.append(name)
    alone = len(networks) == 1 and "random" not in opened
    return {**given, **{"random" if alone else f"random-{names[0]}": (module, names) for module, names in networks}}


def _flags(facts):
    """The command line of the export, without the seed; [] if the facts are not those of an encoder of ours."""
    training = facts.get("training_flags") or {}
    if (
        training.get("task") not in pretext.NAMES or "backbone" not in training
    ):  # a stranger's import path is not followed
        return []
    head = sum(bool(re.fullmatch(r"head\d+", name)) for name in facts.get("endpoints", []))
    settings = signatures.read(*pretext.TASKS.source(training["task"])).values()
    own = [setting.flag for setting in settings if setting.flag not in _FILES]
    flags = {name: training[name] for name in (*_OF_THE_NETWORK, *own) if name in training}
    flags["head_endpoints"] = head
    return [f"--{name}={as_text(value)}" for name, value in sorted(flags.items())]


def _export(name, flags, folder, say):
    """The module that tfssl-export makes of these flags; None where it refuses them."""
    path = os.path.join(folder, hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12])
    if not os.path.exists(path):
        # A process of its own, for flags have one value in a process; on the CPU, for an accelerator's memory may be taken.
        command = [sys.executable, "-m", "tfssl.export", "--random_init", f"--export_dir={path}", *flags]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            say(f"{name}: no untrained network beside it: {reason}")
            return None
    return modules.load(path)


def _same(one, other, image_size, resize):
    """Whether two modules do the same with the same images."""
    size, scaled = one.sizes(image_size, resize)
    if other.sizes(image_size, resize) != (size, scaled):
        return False
    images = np.random.default_rng(0).random([2, size, size, 3], np.float32)
    ours, theirs = (module.endpoints(tf.constant(images)) for module in (one, other))
    return list(ours) == list(theirs) and all(
        ours[key].shape == theirs[key].shape and np.allclose(ours[key], theirs[key], 1e-3, 1e-5) for key in ours
    )

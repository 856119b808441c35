"""The flags of what a pretraining can be made of. Imports no TensorFlow, so that `--help` is
answered at once."""

from collections.abc import Mapping
from typing import Any

from tfssl.backbones import backbone_flags
from tfssl.config.configs import TrainConfig
from tfssl.config.generated import Generated
from tfssl.optim import optimizer_flags
from tfssl.pretext import task_flags

KINDS = ("task", "backbone", "optimizer")


def registered(names: Mapping[str, Any]) -> tuple[Generated, Generated, Generated]:
    """The flags of all tasks, backbones and optimizers, as `TrainConfig` takes them.

    Args:
      names: {kind: name}, of those of KINDS that are not the default; it may be the import path of
        a user's own class.

    Raises:
      UserError: there is no such class.
    """
    task, backbone, optimizer = ({**TrainConfig().flags(), **names}[kind] for kind in KINDS)
    return task_flags(task), backbone_flags(backbone), optimizer_flags(optimizer)

"""Optimizers, one class in one file; `build` makes one by name. And the schedules of their
rates."""

import importlib
from typing import TYPE_CHECKING, Any, Callable, Optional

from tfssl.config.generated import Generated, of_registry
from tfssl.errors import UserError, one_line
from tfssl.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tensorflow as tf

    from tfssl.optim.base import Optimizer, Rate, is_kernel
    from tfssl.optim.groups import Group, forget
    from tfssl.optim.lars import LARS
    from tfssl.optim.schedules import SCHEDULES, schedule

OPTIMIZERS = Registry(
    "optimizer",
    {
        "sgd": "tfssl.optim.sgd:SGD",
        "nesterov": "tfssl.optim.sgd:Nesterov",
        "adam": "tfssl.optim.adam:Adam",
        "adamw": "tfssl.optim.adamw:AdamW",
        "lamb": "tfssl.optim.lamb:LAMB",
        "lars": "tfssl.optim.lars:LARS",
        "lars_byol": "tfssl.optim.lars:LARSOfBYOL",
        "larc": "tfssl.optim.lars:LARC",
    },
)
NAMES = OPTIMIZERS.names


def optimizer_flags(optimizer: str = NAMES[0]) -> Generated:
    """The flags of the settings of all optimizers: ours, and `optimizer`, which may be the import
    path of a user's own class.

    Raises:
      UserError: there is no such optimizer.
    """
    return of_registry(OPTIMIZERS, optimizer)


# What needs TensorFlow loads when it is first used, for `--help` reads NAMES only.
_LATE = {
    "Group": "groups",
    "forget": "groups",
    "Optimizer": "base",
    "is_kernel": "base",
    "LARS": "lars",
    "SCHEDULES": "schedules",
    "schedule": "schedules",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(f"tfssl.optim.{_LATE[name]}"), name)
    raise AttributeError(f"module 'tfssl.optim' has no attribute {name!r}")


def build(
    name: str,
    learning_rate: "Rate",
    momentum: Optional[float] = None,
    weight_decay: "Rate" = 0.0,
    **settings: Any,
) -> "tf.keras.optimizers.Optimizer":
    """An optimizer.

    Args:
      name: one of NAMES, or the import path of a class of your own,
        "mypackage.mymodule:MyOptimizer".
      learning_rate: a number, or a schedule.
      momentum: of Adam's kind it is beta_1. Default: the class's own, 0.9 in all of NAMES.
      weight_decay: of those that carry it themselves (`own_decay`), a number or a schedule; the
        others leave weight decay to the loss, and refuse it here.
      settings: further arguments of the class.

    Raises:
      UserError: unknown name; weight decay, or another setting, that the optimizer does not have.
    """
    if momentum is not None:
        settings["momentum"] = momentum
    if own_decay(name):
        settings["weight_decay"] = weight_decay
    elif weight_decay:
        raise UserError(
            f"optimizer {name!r} takes no weight decay of its own: it is part of the task's loss"
        )
    try:
        return OPTIMIZERS.find(name)(learning_rate, **settings)
    except TypeError as e:
        if "not a valid argument" in str(e) or "unexpected keyword" in str(e):
            raise UserError(f"optimizer {name!r}: {one_line(e)}") from e
        raise


def own_decay(name: str) -> tuple[str, ...]:
    """Which kinds of weight decay, "kernels" or "all", the optimizer of this name carries out
    itself; the loss has none then."""
    return getattr(OPTIMIZERS.find(name), "own_decay", ())


def tell_kernels(
    optimizer: "tf.keras.optimizers.Optimizer",
    decayed: "Callable[[], Sequence[tf.Variable]]",
    adapted: "Callable[[], Sequence[tf.Variable]]",
    unclipped: "Callable[[], Sequence[tf.Variable]]" = tuple,
) -> None:
    """Tell an optimizer that treats kernels in a way of its own which variables they are, and one
    that clips all gradients together which it leaves out; others do not need to know.

    Args:
      optimizer: before its first step; also within loss scaling.
      decayed: a function that lists the variables on which weight decay acts; it is called once the
        variables exist.
      adapted: as `decayed`, of optimizers whose steps a variable's norm scales: both acts on these.
      unclipped: as `decayed`, the variables whose gradients `global_clipnorm` leaves out.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(optimizer, "kernels"):
        optimizer.kernels = adapted if optimizer.adapts else decayed
        optimizer.unclipped = unclipped


def create_slots(
    optimizer: "tf.keras.optimizers.Optimizer", variables: "Sequence[tf.Variable]"
) -> None:
    """Create the optimizer's state now, so that a checkpoint restores into it at once.

    Optimizers of Keras's older type (`tf.keras.optimizers.legacy`) have no `build`.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # float16 wraps it in loss scaling
    optimizer.iterations  # noqa: B018 (creates the counter)
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:
        optimizer._create_all_weights(variables)


__all__ = [
    "LARS",
    "NAMES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Group",
    "Optimizer",
    "build",
    "create_slots",
    "forget",
    "is_kernel",
    "own_decay",
    "schedule",
    "tell_kernels",
]

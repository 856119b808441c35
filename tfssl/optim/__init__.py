"""Optimizers by name, and the learning-rate schedules."""

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.optim.groups import Group, forget
from tfssl.optim.lars import LARS
from tfssl.optim.schedules import NAMES as SCHEDULES
from tfssl.optim.schedules import schedule

FORMS_OF_LARS = {"lars": "simclr", "lars_byol": "byol", "larc": "larc"}
OWN_DECAY = ("lamb", *FORMS_OF_LARS)  # those that carry the weight decay themselves: a task's loss has none then
NAMES = ("sgd", "nesterov", "adam", *OWN_DECAY)


def build(name, learning_rate, momentum=0.9, weight_decay=0.0):
    """An optimizer.

    Args:
      name: one of NAMES. "lars" is SimCLR's, "lars_byol" BYOL's, "larc" SwAV's: see `LARS`. LAMB is tensorflow-addons', which can be
        installed up to Python 3.11.
      learning_rate: a number, or a schedule.
      momentum: of all but adam and lamb, whose beta_1 it is.
      weight_decay: of those in OWN_DECAY, on kernels only (larc: on all variables); the others leave weight decay to the loss, and refuse
        it here.

    Raises:
      UserError: unknown name; LAMB where tensorflow-addons cannot be imported.
    """
    if name in FORMS_OF_LARS:
        return LARS(learning_rate, momentum, weight_decay, form=FORMS_OF_LARS[name])
    if name == "lamb":
        # Imported late: tensorflow-addons is there on Python < 3.12 only, and warns at import that it is no longer developed.
        try:
            import tensorflow_addons as tfa
        except ImportError as e:
            raise UserError(
                "optimizer 'lamb' comes from tensorflow-addons, which is not installed here: use Python 3.9 to 3.11, where tfssl installs "
                "it, or --optimizer=sgd, nesterov or adam"
            ) from e
        return tfa.optimizers.LAMB(
            learning_rate,
            beta_1=momentum,
            weight_decay=weight_decay,
            exclude_from_weight_decay=["bias", "beta", "gamma"],
        )
    if weight_decay:
        raise UserError(f"optimizer {name!r} takes no weight decay of its own: it is part of the task's loss")
    if name == "sgd":
        return tf.keras.optimizers.SGD(learning_rate, momentum=momentum)
    if name == "nesterov":
        return tf.keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=True)
    if name == "adam":
        return tf.keras.optimizers.Adam(learning_rate, beta_1=momentum)
    raise UserError(f"unknown optimizer {name!r}: choose one of {', '.join(NAMES)}")


def is_kernel(variable):
    """Whether a variable is a weight of a linear map, which is what LARS adapts and weight decay of kernels acts on: it has more than one
    axis. So of a depthwise convolution, and of a SavedModel, whose variables do not know their layers. Not so biases, normalizations and
    slopes of a PReLU, of which some have an axis per head, row or column.
    """
    named = variable.name.split(":")[0].split("/")[-1]
    return variable.shape.rank > 1 and named not in ("bias", "gamma", "beta", "alpha")


def tell_kernels(optimizer, kernels):
    """Tell an optimizer that treats kernels in a way of their own which variables they are; the others do not need to know.

    Args:
      optimizer: before its first step; also within loss scaling.
      kernels: a function without arguments that lists them, called once the variables exist.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(optimizer, LARS):
        optimizer.kernels = kernels


def create_slots(optimizer, variables):
    """Create the optimizer's state now, so that a checkpoint restores into it at once.

    Keras's optimizers have `build`; those of tensorflow-addons are of the older type, whose slots come with the first step otherwise.
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
    "OWN_DECAY",
    "SCHEDULES",
    "Group",
    "build",
    "create_slots",
    "forget",
    "is_kernel",
    "schedule",
    "tell_kernels",
]

"""Optimizers by name, and the learning-rate schedules."""

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.optim.schedules import NAMES as SCHEDULES
from tfssl.optim.schedules import schedule

NAMES = ("sgd", "nesterov", "adam", "lamb")


def build(name, learning_rate, momentum=0.9, weight_decay=0.0):
    """An optimizer.

    Args:
      name: one of NAMES. LAMB is tensorflow-addons', which can be installed up to Python 3.11.
      learning_rate: a number, or a schedule.
      momentum: of sgd and nesterov; beta_1 of adam and lamb.
      weight_decay: LAMB's decoupled weight decay, on kernels only; the others leave weight decay to the loss, and refuse it here.

    Raises:
      UserError: unknown name; LAMB where tensorflow-addons cannot be imported.
    """
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


__all__ = ["NAMES", "SCHEDULES", "build", "create_slots", "schedule"]

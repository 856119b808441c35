"""Groups of variables that learn at a rate of their own."""

from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

import tensorflow as tf

from tfssl.errors import UserError


class Group(NamedTuple):
    """Variables, and how they learn.

    Attributes:
      variables: trainable ones; each belongs to one group.
      rate: factor on the learning rate, a number or a function (step, int64 scalar) -> number.
        Where it is 0, variables are frozen, while the optimizer's moments go on.
      schedule: function (step, int64 scalar) -> learning rate, in place of the optimizer's own;
        `rate` acts on it too.
      decay: factor on the weight decay of its kernels (0: they have none). Optimizers that carry
        out weight decay know 0 and 1 only.
      adapt: whether LARS and LAMB treat its kernels as such, by trust ratio and decay. None: where
        `decay` is not 0.
      player: of the players of an adversarial objective, whose loss they learn from.
    """

    variables: Sequence[tf.Variable]
    rate: Union[float, Callable[[tf.Tensor], tf.Tensor]] = 1.0
    schedule: Optional[Callable[[tf.Tensor], tf.Tensor]] = None
    decay: float = 1.0
    adapt: Optional[bool] = None
    player: str = ""

    @property
    def adapts(self) -> bool:
        return self.decay != 0 if self.adapt is None else self.adapt


def apart(groups: Iterable[Group], *own: Group) -> list[Group]:
    """Groups in which the variables of some are their `own` groups', and no longer part of the
    others. Empty groups are left out."""
    taken = {id(v) for group in own for v in group.variables}
    rest = [
        group._replace(variables=[v for v in group.variables if id(v) not in taken])
        for group in groups
    ]
    return [group for group in (*rest, *own) if group.variables]


def check(groups: Iterable[Group], variables: Iterable[tf.Variable]) -> None:
    """Refuse groups that are no partition of the variables.

    Raises:
      UserError: naming a variable that is in no group, in several, or not trainable.
    """
    found = [v for group in groups for v in group.variables]
    seen: set[int] = set()
    known = {id(v) for v in variables}
    for v in found:
        if id(v) in seen or id(v) not in known:
            raise UserError(
                f"groups(): {v.name} is {'in two groups' if id(v) in seen else 'not trainable'}"
            )
        seen.add(id(v))
    missing = [v.name for v in variables if id(v) not in seen]
    if missing:
        raise UserError(f"groups(): {missing[0]} is in no group, and so would not learn")


def use(optimizer: tf.keras.optimizers.Optimizer, groups: Sequence[Group]) -> None:
    """Let the variables of each group learn at its rate, from the next traced step on.

    Within `update_step` of a variable, `learning_rate` is that of its group. So this is exact for
    every optimizer of Keras's newer type: those that divide a gradient by its size, those whose
    momentum is made of rates, and within loss scaling. The optimizer's variables, and so its
    checkpoints, stay as they are.

    Raises:
      UserError: a group has its own rate, and the optimizer no `update_step`; or a part of the
        weight decay that the optimizer carries out.
    """
    optimizer = inner(optimizer)
    own = [group for group in groups if group.rate != 1 or group.schedule is not None]
    name = type(optimizer).__name__
    if any(group.decay not in (0, 1) for group in groups) and _carries_decay(optimizer):
        raise UserError(
            f"groups(): {name} carries out the weight decay itself, of a group wholly or not at "
            "all: decay=0 or 1"
        )
    if own and not hasattr(optimizer, "update_step"):
        raise UserError(
            f"groups(): {name} knows one rate for all variables: take another --optimizer"
        )
    kind = type(optimizer)
    plain = (
        kind.__mro__[1 + kind.__mro__.index(_Grouped)] if isinstance(optimizer, _Grouped) else kind
    )
    if own:
        rates = {
            optimizer._var_key(v): (group.rate, group.schedule)
            for group in own
            for v in group.variables
        }
        optimizer.__class__ = type(
            plain.__name__, (_Grouped, plain), {"_rates": rates, "__module__": plain.__module__}
        )
    elif plain is not kind:
        optimizer.__class__ = plain


def _carries_decay(optimizer: tf.keras.optimizers.Optimizer) -> bool:
    return any(
        getattr(optimizer, name, 0) for name in ("folded_decay", "decoupled_decay", "weight_decay")
    )


_InFront: Any = object  # of an optimizer's class


class _Grouped(_InFront):
    """In front of an optimizer's class. What it knows is the class's: Keras would make an attribute
    a part of checkpoints."""

    _rates: dict[Any, tuple[float, Any]] = {}
    _updated = None

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> Any:
        type(self)._updated = self._var_key(variable)
        try:
            return super().update_step(gradient, variable)
        finally:
            type(self)._updated = None

    @property
    def learning_rate(self) -> Any:
        rate, schedule = self._rates.get(self._updated, (1.0, None))
        whole = super().learning_rate if schedule is None else schedule(self.iterations)
        if callable(rate):
            return whole * tf.cast(rate(self.iterations), whole.dtype)
        return whole if rate == 1 else whole * rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        tf.keras.optimizers.Optimizer.learning_rate.fset(self, value)


def at_peak(
    optimizer: Optional[tf.keras.optimizers.Optimizer],
) -> Optional[Callable[[tf.Tensor], tf.Tensor]]:
    """The `schedule` of a group that learns at the peak rate of the optimizer's own throughout;
    None where that is constant."""
    peak = getattr(getattr(inner(optimizer), "_learning_rate", None), "peak", None)
    return None if peak is None else lambda step: tf.constant(peak, tf.float32)


def forget(optimizer: tf.keras.optimizers.Optimizer, variables: Iterable[tf.Variable]) -> None:
    """Set the optimizer's state of some variables to zero, as it is before their first step.

    The number of steps stays that of the run: Adam's moments then begin at zero without the
    correction of its first steps. Called before each step, it turns momentum SGD into SGD without
    momentum for these variables, exactly (v = m * 0 - r g); Nesterov's it does not.

    Args:
      optimizer: after its state was created; also within loss scaling.
      variables: of those that it was created for. In a strategy's scope, or on each replica.
    """
    optimizer = inner(optimizer)
    places = [optimizer._index_dict[optimizer._var_key(v)] for v in variables]
    count = len(optimizer._index_dict)
    for name, slots in vars(optimizer).items():
        # Each kind of state is a list with one variable for each of the model's.
        if (
            isinstance(slots, Sequence)
            and len(slots) == count
            and all(isinstance(s, tf.Variable) for s in slots)
        ):
            if name not in ("_variables", "_model_variables_moving_average"):
                for place in places:
                    slots[place].assign(tf.zeros_like(slots[place]))


def inner(optimizer: tf.keras.optimizers.Optimizer) -> tf.keras.optimizers.Optimizer:
    """The optimizer itself, where float16 wraps it in loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)

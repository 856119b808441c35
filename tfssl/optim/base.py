"""What all optimizers share: clipping, and which variables an optimizer treats as kernels."""

from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional, Union

import tensorflow as tf

from tfssl.errors import UserError

Rate = Union[float, tf.keras.optimizers.schedules.LearningRateSchedule]


class Optimizer(tf.keras.optimizers.Optimizer):
    """Base class of our optimizers, in front of Keras's own where there is one: `class
    SGD(Optimizer, tf.keras.optimizers.SGD)`.

    A constructor takes a learning rate (a number or a schedule) and its settings, which are its
    flags: `weight_decay` among them if the optimizer carries weight decay itself.
    `tfssl.testing.check_optimizer` holds a class to the rest: steps, state, replicas, XLA, loss
    scaling.

    Args:
      clipnorm: greatest L2 norm of each variable's gradient, as in DINO (3). 0: no clipping.
      global_clipnorm: greatest L2 norm of all gradients together, as in SimMIM (5). 0: no clipping.
      keras: what all optimizers of Keras take.

    Both scale down the gradients of the whole batch: after the sum over replicas and accumulated
    parts, and after loss scaling is undone. `global_clipnorm` neither counts nor scales those of
    `unclipped`: the online probe's would bring labels into the network's steps.

    Attributes:
      own_decay: which kinds of weight decay the optimizer carries out itself; () leaves it to the
        loss. "kernels": it acts on the variables that `kernels` lists, and on no others; "all": it
        can act on all.
      adapts: whether a variable's norm scales its steps, as in LARS: of the variables in `kernels`.
      kernels: a function without arguments that lists variables, called when the optimizer is
        built; set by `optim.tell_kernels`. Where nobody set it, those of which `is_kernel` holds.
      unclipped: likewise, the variables that `global_clipnorm` leaves out.

    Raises:
      UserError: both kinds of clipping at once.
    """

    flag_names = {"name": "", "weight_decay": ""}  # the latter is the task's flag
    own_decay: tuple[str, ...] = ()
    adapts = False
    kernels: Optional[Callable[[], Sequence[tf.Variable]]] = None
    unclipped: Callable[[], Sequence[tf.Variable]] = tuple
    _counted: Sequence[bool] = ()  # of each gradient that is not None

    def __init__(
        self, *, clipnorm: float = 0.0, global_clipnorm: float = 0.0, **keras: Any
    ) -> None:
        if clipnorm and global_clipnorm:
            raise UserError(
                f"--clipnorm={clipnorm:g} and --global_clipnorm={global_clipnorm:g} contradict "
                "each other: choose one"
            )
        super().__init__(
            clipnorm=clipnorm or None, global_clipnorm=global_clipnorm or None, **keras
        )

    def kernel_keys(self, var_list: Iterable[tf.Variable]) -> frozenset:
        """Keys (of `_var_key`) of the variables that are kernels, of those that the optimizer is
        built for."""
        kernels = filter(is_kernel, var_list) if self.kernels is None else self.kernels()
        return frozenset(self._var_key(variable) for variable in kernels)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **keras: Any) -> Any:
        pairs = list(grads_and_vars)
        left_out = {self._var_key(variable) for variable in self.unclipped()}
        self._counted = tuple(
            self._var_key(variable) not in left_out for grad, variable in pairs if grad is not None
        )
        return super().apply_gradients(pairs, *args, **keras)

    def _clip_gradients(self, grads: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        if not self.global_clipnorm or all(self._counted):
            return super()._clip_gradients(grads)
        kept = [grad if counts else None for grad, counts in zip(grads, self._counted)]
        clipped = super()._clip_gradients(kept)
        return [own if scaled is None else scaled for own, scaled in zip(grads, clipped)]

    def now(self, value: Rate, dtype: tf.DType) -> tf.Tensor:
        """The value at this step of a schedule, or of a number."""
        return (
            tf.cast(value(self.iterations), dtype) if callable(value) else tf.constant(value, dtype)
        )


_NO_KERNELS = (
    "bias", "gamma", "beta", "alpha", "cls", "registers", "positions", "cls_position", "mask_token",
)  # fmt: skip


def is_kernel(variable: tf.Variable) -> bool:
    """Whether a variable is a weight of a linear map, on which weight decay of kernels acts: it has
    more than one axis. So of a depthwise convolution, and of a SavedModel, whose variables do not
    know their layers. Not so biases, normalizations and slopes of a PReLU, of which some have an
    axis per head, row or column, nor tokens and positions of a transformer.
    """
    named = variable.name.split(":")[0].split("/")[-1]
    return variable.shape.rank > 1 and named not in _NO_KERNELS

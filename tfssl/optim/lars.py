"""LARS: every layer's step is as long as its weights say, whatever the length of its gradient.

You, Gitman and Ginsburg, arXiv 1708.03888, in the three forms in which contrastive methods
published it.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.optim.base import Optimizer, Rate

FORMS = ("simclr", "byol", "larc")
EPSILON = 1e-8  # of LARC's denominator


class LARS(Optimizer):
    """With weights w, their gradient g, momentum v, the learning rate r, d the weight decay and
    m the momentum:

      simclr    g' = g + d w    trust = eeta |w| / |g'|               v <- m v + r trust g'    w <-
                w - v
      byol      g' = g + d w    trust = eeta |w| / |g'|               v <- m v + trust g'      w <-
                w - r v
      larc      g' = g + d w    trust = eeta |w| / (|g| + d |w|)      v <- m v + trust g'      w <-
                w - r v

    They differ where the rate changes: simclr's momentum still moves at the rates of the steps that
    it is made of. Norms are those of one variable, in float32 at least. Where one of them is 0 the
    trust is 1 (and larc leaves d out, so that no gradient means no step).

    simclr and byol do that for kernels; what is no kernel (biases, normalizations) has neither
    weight decay nor trust: g' = g, trust = 1. larc does it for all variables. Variables do not know
    which layer they belong to, and their names do not tell, so `kernels` has to be set before the
    first step; `tfssl.pretext.Pretext.compile` does.

    Args:
      learning_rate: a number or a schedule. Much larger than SGD's, as eeta scales it: SimCLR has
        0.3, SwAV 0.3, BYOL 0.2 for 256 images.
      momentum: m, the fraction of the last step that the next one keeps (2019 study, SimCLR, SwAV:
        0.9).
      weight_decay: d above, a number or a schedule. It takes the place of the one in a task's loss.
      eeta: the trust coefficient.
      form: one of FORMS: Chen et al., arXiv 2002.05709; Grill et al., arXiv 2006.07733; NVIDIA apex
        without clipping, as in SwAV, Caron et al., arXiv 2006.09882.
      nesterov: the weights move by m v + r trust g', or r (m v + trust g'), with the v just
        computed.
      common: what all optimizers take, such as `global_clipnorm`.

    Raises:
      UserError: unknown form; at the first step, where `kernels` is needed and was not set.
    """

    flag_names = {
        "eeta": "",
        "form": "",
        "nesterov": "",
    }  # the published ones have no other; a form has a name of its own
    own_decay = ("kernels",)
    adapts = True

    def __init__(
        self,
        learning_rate: Rate,
        momentum: float = 0.9,
        weight_decay: Rate = 0.0,
        eeta: float = 0.001,
        form: str = "simclr",
        nesterov: bool = False,
        name: str = "LARS",
        **common: Any,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"unknown form of LARS {form!r}: choose one of {', '.join(FORMS)}")
        super().__init__(
            name=name, weight_decay=None, **common
        )  # Keras's is decoupled from the gradient
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum, self.folded_decay, self.eeta = momentum, weight_decay, eeta
        self.form, self.nesterov = form, nesterov

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Create the momentum of each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        if self.form != "larc" and self.kernels is None:
            raise UserError(
                f"LARS as in {self.form} treats kernels in another way than the rest: set "
                "optimizer.kernels to a function that lists them, "
                "or take form='larc', which treats all variables alike"
            )
        everything = frozenset(self._var_key(variable) for variable in var_list)
        self._adapted = everything if self.form == "larc" else self.kernel_keys(var_list)
        self.momentums = [self.add_variable_from_reference(variable, "m") for variable in var_list]
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """One variable's step, given its gradient summed over replicas."""
        key = self._var_key(variable)
        momentum = self.momentums[self._index_dict[key]]
        gradient, trust = tf.convert_to_tensor(gradient), 1.0
        if key in self._adapted:
            gradient, trust = self._adapt(gradient, tf.convert_to_tensor(variable))
        rate, trust = tf.cast(self.learning_rate, variable.dtype), tf.cast(trust, variable.dtype)
        share = tf.constant(self.momentum, variable.dtype)
        # One kernel for both assignments: written out, each operation would be a pass over memory.
        if self.form == "simclr":
            tf.raw_ops.ResourceApplyKerasMomentum(  # its v is -v
                var=variable.handle,
                accum=momentum.handle,
                lr=rate * trust,
                grad=gradient,
                momentum=share,
                use_nesterov=self.nesterov,
            )
        else:
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=momentum.handle,
                lr=rate,
                grad=trust * gradient if key in self._adapted else gradient,
                momentum=share,
                use_nesterov=self.nesterov,
            )

    def _adapt(self, g: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """g' and trust."""
        of_w, decay = norm(w), self.now(self.folded_decay, w.dtype)
        if self.form == "larc":
            of_g = norm(g)
            both = (of_w > 0) & (of_g > 0)
            g = g + tf.where(both, decay, 0.0) * w if self.folded_decay else g
            return g, tf.where(
                both, self.eeta * of_w / (of_g + tf.cast(decay, of_w.dtype) * of_w + EPSILON), 1.0
            )
        g = g + decay * w if self.folded_decay else g
        of_g = norm(g)
        return g, tf.where((of_w > 0) & (of_g > 0), self.eeta * of_w / of_g, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "weight_decay": self.folded_decay,
            "eeta": self.eeta,
            "form": self.form,
            "nesterov": self.nesterov,
        }


class LARSOfBYOL(LARS):
    """LARS of form "byol"."""

    def __init__(self, learning_rate: Rate, **common: Any) -> None:
        super().__init__(learning_rate, **{**common, "form": "byol"})


class LARC(LARS):
    """LARS of form "larc"."""

    own_decay = ("all",)

    def __init__(self, learning_rate: Rate, **common: Any) -> None:
        super().__init__(learning_rate, **{**common, "form": "larc"})


def norm(x: tf.Tensor) -> tf.Tensor:
    """Euclidean norm, in float32 at least; one pass over memory."""
    return tf.sqrt(2.0 * tf.nn.l2_loss(tf.cast(x, tf.float32) if x.dtype.size < 4 else x))

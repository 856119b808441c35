"""The checks for users' classes: our own pass, and classes with one fault each do not."""

import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.optim.adamw import AdamW
from tfssl.optim.sgd import SGD
from tfssl.testing import check_optimizer


@pytest.mark.parametrize("name", optim.NAMES)
def test_our_optimizers_keep_the_contract(name, replicas):
    check_optimizer(optim.OPTIMIZERS.find(name), replicas)


class LateState(SGD):
    def update_step(self, gradient, variable):
        super().update_step(gradient, variable)
        if not hasattr(self, "late"):
            self.late = self.add_variable([], name="late")


class HiddenState(SGD):
    """Counts its steps in Python: a resumed run begins anew."""

    steps = 0

    def update_step(self, gradient, variable):
        self.steps += 1
        super().update_step(gradient * float(self.steps), variable)


class AlwaysMoves(SGD):
    def update_step(self, gradient, variable):
        super().update_step(gradient, variable)
        variable.assign_sub(1e-3 * gradient)


class ClipsBeforeTheSum(SGD):
    def aggregate_gradients(self, grads_and_vars):
        gradients, variables = zip(*grads_and_vars)
        clipped, _ = tf.clip_by_global_norm(gradients, self.global_clipnorm or 1e30)
        return super().aggregate_gradients(zip(clipped, variables))


class DecaysBiases(AdamW):
    def kernel_keys(self, var_list):
        return frozenset(map(self._var_key, var_list))


@pytest.mark.parametrize(
    "cls,promise",
    [
        (tf.Module, "is a tf.keras"),
        (LateState, "before the first step"),
        (HiddenState, "resumed from a checkpoint"),
        (AlwaysMoves, "rate of 0"),
        (ClipsBeforeTheSum, "then clip"),
        (DecaysBiases, "not on .*bias"),
    ],
)
def test_a_broken_promise_is_named(cls, promise, replicas):
    with pytest.raises(AssertionError, match=promise):
        check_optimizer((lambda rate: cls()) if cls is tf.Module else cls, replicas)

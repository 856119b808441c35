"""Normalizations, and the policy that chooses among them; all compute in float32 at least.

Batch normalization (Ioffe and Szegedy, arXiv 1502.03167), whose statistics can span replicas, or
groups of the batch; at inference, and in what export publishes, it is Keras's plain layer. Layer
normalization (Ba et al., arXiv 1607.06450). Group normalization (Wu and He, arXiv 1803.08494).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError, check_choice
from tfssl.precision import at_least_float32

_local = threading.local()  # replicas are traced in threads of their own


@contextlib.contextmanager
def frozen_statistics(frozen: bool = True) -> Iterator[None]:
    """In here layers normalize as in training but leave their moving statistics alone: for a second
    pass over the same examples."""
    before = getattr(_local, "frozen", False)
    _local.frozen = frozen or before
    try:
        yield
    finally:
        _local.frozen = before


@contextlib.contextmanager
def debiased(step: tf.Tensor | tf.Variable, parts: int = 1) -> Iterator[None]:
    """In here the moving statistics are averages of what was seen, however short the run: layers
    keep at most (1 + t) / (10 + t) of them.

    So their initial values, 0 and 1, weigh 1 / C(T + 9, 9) after T steps (1e-5 after 10), and the
    average is over about the last tenth of the run, as the weights change, until a layer's own
    momentum is less: 0.99 from step 890 on, 0.9 from step 80 on.

    Args:
      step: t, the training steps before this one; a tensor or a variable. The step's number and
        nothing else decides: there is no state that a checkpoint would have to hold.
      parts: of a step, one after the other, each of which moves the statistics.
    """
    before = getattr(_local, "most", None)
    t = tf.cast(step, tf.keras.backend.floatx())
    _local.most = ((1 + t) / (10 + t)) ** (1 / parts)
    try:
        yield
    finally:
        _local.most = before


class BatchNorm(tf.keras.layers.BatchNormalization):
    """Normalizes over all axes but the last, [N, ..., C]; the moving variance follows the unbiased
    estimate in every case.

    Args:
      momentum: share of the moving statistics that a training step keeps; see `debiased` for the
        first ones.
      epsilon: added to the variance.
      sync: the batch is that of all replicas together.
      groups: the batch is cut into so many groups of successive rows, each normalized by itself.
        They move the moving statistics one after the other, as that many batches would. The number
        of rows must be a multiple.
      **keras: what Keras's layer takes, such as center and scale: whether an offset (beta) and a
        factor (gamma) are learned.
    """

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        sync: bool = False,
        groups: int = 1,
        name: str | None = None,
        **keras: Any,
    ) -> None:
        if sync and groups > 1:
            raise ValueError(
                "statistics are either synchronized over replicas or those of groups, not both"
            )
        super().__init__(momentum=momentum, epsilon=epsilon, name=name, **keras)
        self.sync, self.groups = sync, groups

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or not self.trainable:
            return super().call(x, training=False)
        plain = not self.sync and self.groups == 1 and self.moving_mean.dtype == tf.float32
        y, mean, variance = self._fused(x) if plain else self._by_moments(x)
        if not getattr(_local, "frozen", False):
            self._move(mean, variance)
        return y

    def _fused(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One kernel: [N, ..., C] -> the same, and mean and unbiased variance [C]."""
        maps = x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            maps, *self._learned(), epsilon=self.epsilon
        )
        return (y if maps is x else tf.reshape(y, tf.shape(x))), mean, variance

    def _learned(self) -> tuple[tf.Tensor, tf.Tensor]:
        """gamma and beta [C]."""
        gamma = self.gamma if self.scale else tf.ones_like(self.moving_variance)
        return gamma, self.beta if self.center else tf.zeros_like(self.moving_mean)

    def _by_moments(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The same from its parts, with statistics [groups, C]."""
        rows = tf.reshape(at_least_float32(x), [self.groups, -1, x.shape[-1]])
        count = tf.cast(tf.shape(rows)[1], rows.dtype)
        mean, variance = tf.nn.moments(rows, axes=[1], keepdims=True)
        context = tf.distribute.get_replica_context()
        if self.sync and context is not None and context.num_replicas_in_sync > 1:
            # One sum for both, of moments about the moving mean, which is the same everywhere:
            # about zero, those of a large mean and a small variance would cancel.
            replicas = context.num_replicas_in_sync
            about = tf.cast(self.moving_mean, rows.dtype)
            sums = context.all_reduce(
                "SUM", tf.concat([mean - about, variance + (mean - about) ** 2], 1)
            )
            shifted, square = sums[:, :1] / replicas, sums[:, 1:] / replicas
            mean, variance = shifted + about, tf.maximum(square - shifted**2, 0.0)
            count *= replicas
        gamma, beta = self._learned()
        y = (rows - mean) * (tf.math.rsqrt(variance + self.epsilon) * gamma) + beta
        y = tf.cast(tf.reshape(y, tf.shape(x)), x.dtype)
        y.set_shape(x.shape)
        return y, mean[:, 0], variance[:, 0] * (count / tf.maximum(count - 1, 1))

    def _move(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Move the moving statistics by those of each group in turn: [groups, C]; of one also
        [C]."""
        dtype, most = self.moving_mean.dtype, getattr(_local, "most", None)
        keep = tf.constant(self.momentum, dtype)  # of each group
        if most is not None:
            most = tf.cast(most, dtype)
            keep = tf.minimum(keep, most ** (1 / self.groups) if self.groups > 1 else most)
        several = self.groups > 1
        shares = (
            tf.stack([(1 - keep) * keep**g for g in reversed(range(self.groups))])
            if several
            else 1 - keep
        )
        for moving, values in ((self.moving_mean, mean), (self.moving_variance, variance)):
            values = tf.cast(values, dtype)
            if several:
                moving.assign_sub(tf.tensordot(shares, moving - values, 1))
            else:  # as a product it is a dozen ops, in every layer
                moving.assign_sub(
                    shares * (moving - (tf.squeeze(values, 0) if values.shape.rank > 1 else values))
                )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sync": self.sync, "groups": self.groups}


class LayerNorm(tf.keras.layers.LayerNormalization):
    """Normalizes each row over its last axis, [N, ..., C], in float32 at least; the result is in
    the compute dtype."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        wide = at_least_float32(x)
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        gamma, beta = (tf.cast(v, wide.dtype) for v in (self.gamma, self.beta))
        return tf.cast(
            (wide - mean) * (tf.math.rsqrt(variance + self.epsilon) * gamma) + beta, x.dtype
        )


class GroupNorm(tf.keras.layers.GroupNormalization):
    """Group normalization of maps [N, h, w, C] over locations and the channels of a group, with
    Keras's epsilon, 1e-3; `training` changes nothing.

    Keras's own layer, whose variables these are, normalizes [N, h, w, groups, C / groups], which
    takes a detector's step a quarter longer: here moments of channels are combined, and the map is
    multiplied and added to once.
    """

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        values = at_least_float32(x)
        shape = [-1, self.groups, x.shape[-1] // self.groups]
        mean, variance = (tf.reshape(v, shape) for v in tf.nn.moments(values, [1, 2]))  # NxGxD
        # of a group: the mean of its channels' variances, and the variance of their means
        center, between = tf.nn.moments(mean, [2], keepdims=True)  # NxGx1
        std = tf.sqrt(tf.reduce_mean(variance, 2, keepdims=True) + between + self.epsilon)
        gamma, beta = (
            tf.cast(tf.reshape(v, shape[1:]), values.dtype) for v in (self.gamma, self.beta)
        )
        scale = gamma / std
        shift = beta - center * scale
        scale, shift = (tf.reshape(v, [-1, 1, 1, x.shape[-1]]) for v in (scale, shift))
        return tf.cast(values * scale + shift, x.dtype)


@dataclasses.dataclass(frozen=True)
class Norm:
    """How a network normalizes in training: the one value by which it, and the heads on it, make
    their layers.

    Args:
      kind: "batch", or "layer" in a family that admits it, which then is a setting of that family.
        Heads have batch normalization in both cases.
      sync: batch statistics are those of all replicas together.
      groups: the batch is normalized in so many groups of successive rows (ghost batch
        normalization, Hoffer et al., arXiv 1705.08741). A number and not a size: a head may have
        several rows for each image.

    Raises:
      UserError: an unknown kind, no group, or groups across replicas.
    """

    kind: str = "batch"
    sync: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        check_choice("norm kind", self.kind, ("batch", "layer"))
        if self.groups < 1 or (self.sync and self.groups > 1):
            raise UserError(
                f"bn_groups={self.groups} must be at least 1, and 1 with bn_sync: groups lie "
                "within a replica"
            )

    @property
    def plain(self) -> bool:
        """Whether batch statistics are those of what a replica computes at once."""
        return not self.sync and self.groups == 1

    def layer(
        self, name: str, momentum: float = 0.99, epsilon: float = 1e-3
    ) -> tf.keras.layers.Layer:
        """A normalization [N, ..., C] of the network itself: of batches, or without `momentum` of
        layers."""
        if self.kind == "layer":
            return LayerNorm(epsilon=epsilon, name=name)
        return self.batch(name, momentum, epsilon)

    def batch(
        self, name: str, momentum: float = 0.99, epsilon: float = 1e-3, **keras: Any
    ) -> BatchNorm:
        """A batch normalization [N, ..., C], as of a head; `keras`: center and scale."""
        return BatchNorm(momentum, epsilon, self.sync, self.groups, name, **keras)


def set_statistics(network: tf.keras.Model, sync: bool = False, groups: int = 1) -> None:
    """Compute the batch statistics of a backbone by another policy from now on; by default each
    replica's own."""
    for layer in network.submodules:
        if isinstance(layer, BatchNorm):
            layer.sync, layer.groups = sync, groups
    network.norm_policy = dataclasses.replace(network.norm_policy, sync=sync, groups=groups)

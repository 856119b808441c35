"""Gradients of a batch: at once, accumulated over its parts, or by gradient caching.

Batches and outputs are nested structures whose tensors have the image axis first, of static length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Union

import tensorflow as tf

from tfssl.backbones.norm import frozen_statistics
from tfssl.errors import UserError

Batch = dict[str, Any]
Scaled = Mapping[str, Union[float, tf.Tensor]]


class Step(NamedTuple):
    """What gradients are taken of.

    Several players (the two of an adversary) share the forward pass: each variable is one player's,
    and gets the gradient of that player's loss. Otherwise there is one player, "".

    Attributes:
      forward: batch -> outputs; it uses every variable.
      losses: (batch, outputs, fraction) -> {player: scalar}, the mean over the images times
        `fraction`, which is that of the global batch.
      decays: fraction -> {player: scalar}, the weight decay likewise; {} where there is none.
      variables: of all players, in the optimizer's order.
      players: {player: positions of its variables}.
    """

    forward: Callable[[Batch], Any]
    losses: Callable[[Batch, Any, float], Scaled]
    decays: Callable[[float], Scaled]
    variables: Sequence[tf.Variable]
    players: Mapping[str, Sequence[int]]

    def tape(self) -> tf.GradientTape:
        return tf.GradientTape(persistent=len(self.players) > 1)

    def gradients(
        self, tape: tf.GradientTape, targets: Mapping[str, Any], cotangents: Mapping[str, Any] = {}
    ) -> list[tf.Tensor]:
        """The gradient of each variable, of its own player's target."""
        ordered: dict[int, tf.Tensor] = {}
        for player, positions in self.players.items():
            own = tape.gradient(
                targets[player],
                [self.variables[i] for i in positions],
                output_gradients=cotangents.get(player),
                unconnected_gradients="zero",
            )
            ordered.update(zip(positions, own))
        return [ordered[i] for i in range(len(self.variables))]


def plain(step: Step, batch: Batch, fraction: float) -> tuple[list[tf.Tensor], Any]:
    """(Gradients, outputs) of one forward and one backward pass."""
    with step.tape() as tape:
        outputs = step.forward(batch)
        losses, decays = step.losses(batch, outputs, fraction), step.decays(fraction)
        totals = {player: loss + decays.get(player, 0.0) for player, loss in losses.items()}
    return step.gradients(tape, totals), outputs


def accumulated(step: Step, batch: Batch, parts: int, fraction: float) -> list[tf.Tensor]:
    """Gradients of the parts of a batch, one after the other, each with a loss of its own;
    `fraction` is that of a part."""
    part = _cut(batch, parts)
    return _sum_over(step, parts, lambda i: plain(step, part(i), fraction)[0])


def cached(step: Step, batch: Batch, parts: int, fraction: float) -> tuple[list[tf.Tensor], Any]:
    """(Gradients, outputs) where the loss compares the images of a batch: Gao et al., arXiv
    2101.06983.

    The outputs of all parts first; then the loss of all, and its gradients by the outputs; then
    each part again, for its variables'.
    """
    part = _cut(batch, parts)
    with frozen_statistics():  # the second pass moves them
        shapes = tf.nest.map_structure(
            lambda x: tf.TensorSpec(x.shape, x.dtype), step.forward(part(0))
        )
        outputs = tf.map_fn(
            lambda i: step.forward(part(i)),
            tf.range(parts),
            fn_output_signature=shapes,
            parallel_iterations=1,
        )
    outputs = tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), outputs)
    with step.tape() as tape:
        tape.watch(outputs)
        losses = step.losses(batch, outputs, fraction)

    def by_part(player: str) -> Any:
        whole = tape.gradient(losses[player], outputs, unconnected_gradients="zero")
        return tf.nest.map_structure(lambda g: tf.reshape(g, [parts, -1, *g.shape[1:]]), whole)

    by_output = {player: by_part(player) for player in losses}

    def gradients(i: tf.Tensor) -> list[tf.Tensor]:
        with step.tape() as tape:
            again = step.forward(part(i))
        own = {
            player: tf.nest.map_structure(lambda g: g[i], whole)
            for player, whole in by_output.items()
        }
        return step.gradients(tape, dict.fromkeys(own, again), own)

    with step.tape() as tape:
        decays = step.decays(fraction)
    sums = _sum_over(step, parts, gradients)
    if decays:
        sums = [s + d for s, d in zip(sums, step.gradients(tape, decays))]
    return sums, outputs


def _cut(batch: Batch, parts: int) -> Callable[[Any], Batch]:
    """A function i -> the i-th part of this replica's batch."""
    rows = tf.nest.flatten(batch)[0].shape[0]
    if rows % parts:
        raise UserError(
            f"--accumulate_steps={parts} does not divide the {rows} images of a replica"
        )
    cut = tf.nest.map_structure(
        lambda x: tf.reshape(x, [parts, rows // parts, *x.shape[1:]]), batch
    )
    return lambda i: tf.nest.map_structure(lambda x: x[i], cut)


def _sum_over(
    step: Step, parts: int, gradients: Callable[[tf.Tensor], list[tf.Tensor]]
) -> list[tf.Tensor]:
    def add(i: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return i + 1, [s + g for s, g in zip(sums, gradients(i))]

    zeros = [tf.zeros(v.shape, v.dtype) for v in step.variables]
    # Exactly one part at a time: their activations are what there is no room for.
    return tf.while_loop(lambda i, sums: i < parts, add, (0, zeros), parallel_iterations=1)[1]

"""A network that follows another: its parameters are moving averages of the other's (Tarvainen and
Valpola, arXiv 1703.01780)."""

from __future__ import annotations

import math

import tensorflow as tf


class MomentumNetwork(tf.Module):
    """Twins of a backbone and its heads, which no gradient reaches. Checkpoints hold them;
    optimizers and weight decay do not see them.

    Their batch normalizations have moving statistics of their own; only parameters follow, as in
    MoCo and BYOL. They have no drop path, as DINO's teacher.

    Args:
      layers: the backbone and the heads, in their order; each has `twin()`, which makes another
        like it.
    """

    trainable_variables = ()  # Keras asks for these two

    def __init__(self, *layers: tf.keras.Model) -> None:
        super().__init__(name="momentum_network")
        self._online = layers
        self.twins = [layer.twin() for layer in layers]
        for twin in self.twins:
            for part in (twin, *twin.submodules):
                if getattr(part, "drop_path", 0):
                    part.drop_path = 0.0

    @property
    def backbone(self) -> tf.keras.Model:
        """The twin of the backbone: what a method lists as `published` whose teacher is the
        encoder."""
        return self.twins[0]

    @property
    def non_trainable_variables(self) -> tuple[tf.Variable, ...]:
        return tuple(v for twin in self.twins for v in twin.variables)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalized images [N, H, W, C] -> embeddings [N, E]."""
        return self.head(self.backbone(images, training=training)["pre_logits"], training)

    def head(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Features [N, D] -> embeddings [N, E]."""
        for head in self.twins[1:]:
            x = head(x, training=training)
        return tf.stop_gradient(x)

    def copy(self) -> None:
        """Become equal to what is followed, moving statistics too: where training starts."""
        for twin, layer in zip(self.twins, self._online):
            for mine, other in zip(twin.variables, layer.variables):
                mine.assign(other)

    def follow(self, momentum: float | tf.Tensor) -> None:
        """Each parameter becomes `momentum` times itself plus 1 - `momentum` times the followed
        one."""
        share = tf.convert_to_tensor(1 - momentum, tf.keras.backend.floatx())
        for twin, layer in zip(self.twins, self._online):
            for mine, other in zip(twin.trainable_variables, layer.trainable_variables):
                mine.assign_sub(share * (mine - other))


def cosine_momentum(base: float, step: int | tf.Tensor, total_steps: int) -> float | tf.Tensor:
    """From `base` at step 0 to 1 at `total_steps` along half a cosine (Grill et al., arXiv
    2006.07733, Section 3.2); `base` throughout where `total_steps` is 0."""
    if not total_steps:
        return base
    done = tf.minimum(tf.cast(step, tf.keras.backend.floatx()) / total_steps, 1.0)
    return 1 - (1 - base) * (tf.cos(math.pi * done) + 1) / 2

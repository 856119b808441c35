"""An encoder of two networks that share nothing: one sees the lightness of an image, the other its
two axes of color."""

from __future__ import annotations

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.task import Pretext

Endpoints = dict[str, tf.Tensor]


class Halves(Pretext):
    """Mixin of the tasks whose `normalize` gives lightness and two axes of color. `backbone` is the
    first network, `other` the second; they are published as one encoder, whose endpoints are both
    networks' side by side.

    Raises:
      UserError: the backbone is a model that cannot be made twice, or for other channels than it
        was made for.
    """

    other: tf.keras.Model

    def split(self) -> None:
        """Make the second network; call it in the constructor."""
        taken = getattr(getattr(self.backbone, "model", None), "inputs", None)
        if taken and taken[0].shape[-1] is not None:
            raise UserError(
                f"model {self.backbone.name!r} takes images of {taken[0].shape[-1]} channels; here "
                "one copy of it sees one channel, and another two: take a Sequential model of "
                "unknown input, or one of tfssl.backbones"
            )
        self.other = self.backbone.twin()

    def halves(self, images: tf.Tensor, training: bool = False) -> tuple[Endpoints, Endpoints]:
        """Images [N, H, W, 3] in [0, 1] -> the endpoints of both networks."""
        x = self.normalize(images)
        return self.backbone(x[..., :1], training=training), self.other(
            x[..., 1:], training=training
        )

    @property
    def published(self) -> tuple[tf.keras.Model, ...]:
        return self.backbone, self.other

    def encode(self, images: tf.Tensor, training: bool = False) -> Endpoints:
        return side_by_side(*self.halves(images, training))

    def endpoints(self, images: tf.Tensor, training: bool = False) -> Endpoints:
        return self.encode(images, training)


def side_by_side(first: Endpoints, second: Endpoints) -> Endpoints:
    """The channels of two networks' endpoints, by name."""
    return {name: tf.concat([first[name], second[name]], -1) for name in first}

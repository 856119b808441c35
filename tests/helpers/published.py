"""Small tasks whose published encoder is not their backbone: a teacher, and two halves."""

import math

import tensorflow as tf

from tfssl.pretext.byol import BYOL
from tfssl.pretext.parts.inception import InceptionImages


class Teacher(BYOL):
    """BYOL that publishes its target network.

    Args:
      publish: teacher, or student.
    """

    task = "teacher"

    def __init__(self, backbone, publish="teacher", **common):
        super().__init__(backbone, **common)
        self.publish = publish

    @property
    def published(self):
        return (self.target.backbone,) if self.publish == "teacher" else super().published


class Halves(InceptionImages):
    """The class of an image, from its red channel and from the two others, by two networks that share nothing (as in a split-brain
    autoencoder, Zhang et al., arXiv 1611.09842).

    Args:
      num_classes: how many.
    """

    task = "halves"

    def __init__(self, backbone, num_classes=2, **common):
        super().__init__(backbone, **common)
        self.num_classes, self.other = num_classes, self.backbone.twin()
        floatx = tf.keras.backend.floatx()
        self.heads = [
            tf.keras.layers.Dense(num_classes, name=f"head{i}", dtype=floatx) for i in (1, 2)
        ]

    def halves(self, images, training=False):
        x = self.normalize(images)
        return self.backbone(x[..., :1], training=training), self.other(
            x[..., 1:], training=training
        )

    @property
    def published(self):
        return self.backbone, self.other

    def encode(self, images, training=False):
        first, second = self.halves(images, training)
        return {name: tf.concat([first[name], second[name]], -1) for name in first}

    def call(self, batch, training=False):
        return [
            head(x["pre_logits"])
            for head, x in zip(self.heads, self.halves(batch["image"], training))
        ]

    def objective(self, batch, outputs):
        losses = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            for logits in outputs
        ]
        return tf.add_n(losses), {}

    def chance(self):
        return {"loss": 2 * math.log(self.num_classes)}

"""The online probe: whether the features are any good, told while they are learned."""

import tensorflow as tf

from tfssl.errors import check_choice
from tfssl.pretext.base import Pretext, imagenet_normalised


class Probed(Pretext):
    """Base class of the tasks in which a linear classifier learns along where there are labels; it sends no gradient into the network.

    Args:
      image_size: side of the images that the network sees, in pixels.
      normalization: what the network sees of images in [0, 1]: imagenet (less its mean, by its deviation) or none (as they are).
      num_classes: classes of the online probe, a linear classifier on the features that sends no gradient into the network; 0 takes the
        data set's, and leaves the probe out where there are none.
    """

    def __init__(self, backbone, image_size=224, normalization="imagenet", num_classes=0, **common):
        super().__init__(backbone, image_size=image_size, **common)
        self._autocast = False  # colours are computed in full precision; the network casts for itself
        check_choice("normalization", normalization, ("imagenet", "none"))
        self.normalization = normalization
        floatx = tf.keras.backend.floatx()
        self.probe = tf.keras.layers.Dense(num_classes, name="probe", dtype=floatx) if num_classes else None
        if self.probe:
            self.probe.decayed = False

    def normalise(self, images):
        return images if self.normalization == "none" else imagenet_normalised(images)

    def features(self, images, training):
        """Images [n, H, W, 3] -> pre-logits [n, D], and {"probe": its logits [n, C]}, where there is one."""
        x = self.encode(images, training)["pre_logits"]
        return x, {"probe": self.probe(tf.stop_gradient(x))} if self.probe else {}

    def probed(self, batch, loss, metrics, logits):
        """(Loss [N], metrics) of the method, with those of the probe, whose logits are [N, C]."""
        if not self.probe:
            return loss, metrics
        labels = tf.maximum(batch["label"], 0)
        known = tf.cast(batch["label"] >= 0, loss.dtype)
        accuracy = tf.keras.metrics.sparse_categorical_accuracy(batch["label"], logits)
        metrics = {**metrics, "loss": loss, "probe_accuracy": accuracy}  # the loss that is reported is the method's own
        return loss + known * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), metrics

    def chance(self):
        return {"probe_accuracy": 1 / self.probe.units} if self.probe else {}

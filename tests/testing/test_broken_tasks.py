"""Each clause of the check of tasks, broken by a task with that one fault."""

import pytest
import tensorflow as tf
from published import Halves

from tfssl.pretext.rotation import Rotation
from tfssl.testing import check_task
from tfssl.testing.tasks import PARTS


class Chance(Rotation):
    def chance(self):
        return {"loss": 1.0}


class Scalar(Rotation):
    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return tf.reduce_mean(loss), measured


class Unused(Rotation):
    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.spare = self.add_weight("spare", [4])


class LateHead(Rotation):
    """Its head is applied where gradient caching does not reach."""

    def call(self, batch, training=False):
        return tf.tile(self.endpoints(batch["image"], training)["pre_logits"], [4, 1])

    def objective(self, batch, outputs):
        return super().objective(batch, self.head(outputs))


class Both(Rotation):
    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return loss + tf.reduce_sum(self.head.kernel**2), measured


class Transposed(Rotation):
    def call(self, batch, training=False):
        return tf.transpose(super().call(batch, training))


class Noisy(Rotation):
    def augment(self, batch, draws):
        return {
            **batch,
            "image": batch["image"] * tf.random.uniform([], dtype=batch["image"].dtype),
        }


class NoisyImages(Rotation):
    def example(self, *arguments):
        example = super().example(*arguments)
        noise = tf.cast(tf.timestamp() * 1e6 % 98, tf.uint8)  # not a draw, which a seed may fix
        return {**example, "image": example["image"] // (1 + noise)}


class Blank(Rotation):
    """Looks at the mean of all rows."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return loss + tf.reduce_mean(batch["image"]), measured


class OwnRows(Rotation):
    """Draws for the rows of a replica as if they were all."""

    def augment(self, batch, draws):
        rows = batch["image"].shape[0]
        noise = tf.random.stateless_uniform([rows, 1, 1, 1], draws.seed, dtype=tf.float32)
        return {**batch, "image": batch["image"] * tf.cast(noise, batch["image"].dtype)}


class OwnMean(Rotation):
    """Compares an image with those of its replica alone."""

    spans_batch = True

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        weight = tf.repeat(tf.cast(batch["weight"], logits.dtype), 4)[:, None]
        mean = tf.reduce_sum(weight * logits, 0) / tf.reduce_sum(weight)
        return loss + tf.reduce_sum((logits - mean) ** 2, 1), measured


class Forgets(Rotation):
    """Counts its steps in Python."""

    steps = 0

    def after_step(self, batch, outputs):
        self.steps += 1
        self.head.bias.assign_add(tf.ones_like(self.head.bias) * float(self.steps))


class NotAMean(Rotation):
    """Its loss compares the images of a batch, and it does not say so."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        weight = tf.repeat(tf.cast(batch["weight"], logits.dtype), 4)[:, None]
        mean = tf.reduce_sum(weight * logits, 0) / tf.reduce_sum(weight)
        return loss + tf.reduce_sum((logits - tf.stop_gradient(mean)) ** 2, 1), measured


class Python(Rotation):
    """Calls Python, which XLA cannot."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        same = tf.numpy_function(lambda x: x, [tf.stop_gradient(loss)], loss.dtype)
        return loss + 0 * tf.ensure_shape(same, loss.shape), measured


class Hidden(Rotation):
    """Publishes a layer that is not in a published network."""

    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.after = tf.keras.layers.Dense(5, name="after", dtype=tf.keras.backend.floatx())

    def endpoints(self, images, training=False):
        found = super().endpoints(images, training)
        return {**found, "pre_logits": self.after(found["pre_logits"])}

    encode = endpoints


class Frozen(Halves):
    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.frozen = self.backbone.twin()
        self.frozen.trainable = False

    @property
    def published(self):
        return (self.frozen,)

    def encode(self, images, training=False):
        return self.frozen(self.normalize(images), training=training)


class Last(Rotation):
    def encode(self, images, training=False):
        return dict(reversed(super().encode(images, training).items()))


@pytest.mark.parametrize(
    "task,clause,part",
    [
        (
            Chance,
            "chance.. has the level of each metric; it names loss, and the metrics are accuracy, "
            "loss",
            None,
        ),
        (Scalar, r"objective..: the loss has a value for each image, \[n\]", None),
        (
            Unused,
            "call.. uses every trainable variable; its outputs do not depend on .*spare",
            None,
        ),
        (LateHead, "all variables exist before the first step", None),
        (Both, "objective.. sends no gradient to a variable, but to .*head/kernel", None),
        (Transposed, "call.. returns tensors whose first axis is that of the images", None),
        (Noisy, "augment.. draws from `draws` alone; image differs", None),
        (NoisyImages, "example.. is a function of image and seed; image differs", None),
        (Blank, "objective..: rows of weight 0 count for nothing; they change loss", None),
        (
            Hidden,
            "encode.. uses the variables of the published networks alone, and not .*after/kernel",
            None,
        ),
        (Last, "encode.. ends in pre_logits", None),
        (Frozen, "published: .* can be fine-tuned", None),
        (
            OwnRows,
            "augment.. gives the same rows however many replicas share the batch, here 2; image",
            "replicas",
        ),
        (OwnMean, "2 replicas learn what one does.*; .* differs by", "replicas"),
        (Forgets, "a resumed run is the uninterrupted one.*; .*head/bias.* differs by", "resume"),
        (
            NotAMean,
            "accumulation: a batch in parts is the whole batch; .* differs by",
            "accumulation",
        ),
        (Python, "a step that XLA compiled is the step; ", "xla"),
    ],
)
def test_a_broken_clause_is_named(task, clause, part, replicas):
    with pytest.raises(AssertionError, match=f"^{task.__name__}: {clause}"):
        check_task(task, replicas=replicas, skip=set(PARTS) - {part})

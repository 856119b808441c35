"""Order verification: Misra, Zitnick and Hebert, "Shuffle and Learn: Unsupervised Learning Using
Temporal Order Verification", ECCV 2016 (arXiv 1603.08561)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.ops import photometric
from tfssl.data.ops.draws import Draws, fork
from tfssl.data.sources.base import Source
from tfssl.errors import UserError
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.pretext.task import Batch, Example, Measured, image_major

SHORTEST = 4  # frames of a sequence: three in order, and one outside of them


class OrderVerification(InceptionImages):
    """Three frames of a sequence go through one network, and a linear classifier on their
    pre-logits, side by side, tells whether the middle one lies between the other two in time.

    Of frames a < b < c < d < e a tuple is (b, c, d), which is in order, or (b, a, d) or (b, e, d),
    which is not; half of each are reversed, which changes neither. The ends b and d, and the window
    of all, are drawn without regard to which it is. b is the example's own frame, unless the window
    would leave the sequence: then it is moved inward. A tuple shares one crop and one flip. The
    paper draws windows by their motion (optical flow), and leaves out wrong frames that look like
    the right one; here all are alike, so of still scenes there is nothing to be told.

    Frames of sequences of fewer than 4 have no part in the loss; those shorter than `min_gap` + 3
    have their wrong frames nearer.

    Args:
      max_span: between the first and the last frame of a tuple at most, and to the wrong one, in
        frames (the paper's tau_max: 60).
      min_gap: from a tuple to the wrong frame before or after it at least, in frames (the paper's
        tau_min: 15).
      positives: fraction of tuples in order (the paper: 0.25).
      head_layers: hidden layers of the classifier, each with batch normalization and ReLU (the
        paper: 0; its answer is then a sum over the three frames, and no comparison of them).
      head_units: their units.
      min_area: smallest area of the crop, as a fraction of the image (the paper's crops of 227 of
        256 pixels: 0.79).
      color: vary brightness and saturation, of a tuple alike (the paper does not).
    """

    needs = ("frames",)
    task = "order_verification"

    def __init__(
        self,
        backbone: tf.keras.Model,
        max_span: int = 60,
        min_gap: int = 15,
        positives: float = 0.25,
        head_layers: int = 0,
        head_units: int = 4096,
        min_area: float = 0.79,
        color: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, min_area=min_area, color=color, **common)
        if max_span < 2 or not 1 <= min_gap <= max_span:
            raise UserError(
                f"max_span={max_span} must be at least 2 frames, which one lies between, and "
                f"min_gap={min_gap} from 1 to max_span"
            )
        if not 0 < positives < 1:
            raise UserError(f"positives={positives} is a fraction of the tuples: between 0 and 1")
        self.max_span, self.min_gap, self.positives = max_span, min_gap, positives
        sizes = [head_units] * head_layers + [2]
        self.head = MLP("head", sizes, norm=self.backbone.norm_policy, stddev=0.01)

    def order(self, source: Source) -> Source:
        longest = np.unique(source.sequences(), return_counts=True)[1].max()
        if longest < SHORTEST:
            raise UserError(
                f"task {self.task!r} takes {SHORTEST} frames of a sequence, and the longest of "
                f"{source.spec} ({source.split}) has {longest}"
            )
        return source

    def clip(self, position: tf.Tensor, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The positions of a tuple, int64 [3]; all the same in a sequence that is too short."""
        gap, span, between, earlier, positive, backward = tf.unstack(
            tf.random.stateless_uniform([6], fork(seed, 0), dtype=tf.float64)
        )
        last = length - 1
        farthest = tf.minimum(tf.constant(self.max_span, tf.int64), last - 2)
        gap = _integer(gap, tf.minimum(tf.constant(self.min_gap, tf.int64), farthest), farthest)
        longest = tf.minimum(tf.constant(self.max_span, tf.int64), last - gap)
        span = _integer(span, tf.constant(2, tf.int64), longest)
        earlier, zero = earlier < 0.5, tf.zeros_like(gap)
        lowest = tf.where(earlier, gap, zero)  # of b: a, or e, lies in the sequence too
        highest = last - span - tf.where(earlier, zero, gap)
        b = tf.clip_by_value(position, lowest, highest)
        d = b + span
        inside = b + _integer(between, tf.constant(1, tf.int64), span - 1)
        outside = tf.where(earlier, b - gap, d + gap)
        middle = tf.where(positive < self.positives, inside, outside)
        first, third = tf.where(backward < 0.5, d, b), tf.where(backward < 0.5, b, d)
        positions = tf.stack([first, middle, third])
        return tf.where(length < SHORTEST, tf.zeros_like(positions), positions)

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        """{"image": the frames of a tuple, uint8 [3, S, S, 3]; "positions": int64 [3]}"""
        cut = super().example  # the same crop of frames of one size
        frames = [cut({"image": frame}, seed)["image"] for frame in example["frames"]]
        return {"image": tf.stack(frames), "positions": example["positions"]}

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        if not self.color:
            return batch
        frames = batch["image"]  # Nx3xSxSx3
        drawn = tf.repeat(draws.uniform(shape=[3]), 3, 0)  # 3Nx3, of a tuple alike
        colored = photometric.inception_color(image_major(frames), drawn)
        return {**batch, "image": tf.reshape(colored, frames.shape)}

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        frames = batch["image"]  # Nx3xSxSx3
        x = self.endpoints(image_major(frames), training)["pre_logits"]  # 3NxD
        x = tf.reshape(x, [frames.shape[0], 3 * x.shape[-1]])  # Nx3D
        return self.head(x, training=training)  # Nx2

    def objective(self, batch: Batch, logits: tf.Tensor) -> tuple[tf.Tensor, Measured]:
        """Accuracy is the mean of those of either class."""
        labels, asked = in_order(batch["positions"], logits.dtype)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits) * asked  # N
        right = tf.keras.metrics.sparse_categorical_accuracy(labels, logits)
        fraction = tf.where(labels == 1, self.positives, 1 - self.positives)
        balanced = asked / (2 * tf.cast(fraction, asked.dtype))
        return loss, {"loss": (loss, asked), "accuracy": (right, balanced)}

    def chance(self) -> dict[str, float]:
        """Of one who knows how many tuples are in order, and no more."""
        p = self.positives
        return {"loss": -p * math.log(p) - (1 - p) * math.log1p(-p), "accuracy": 0.5}

    def preview(self, batch: Batch) -> tf.Tensor:
        return image_major(batch["image"])

    def pictures(self, batch: Batch) -> tf.Tensor:
        """[3 n, S, S, 3] in [0, 1]: the tuples, with a green edge where the network tells rightly
        whether they are in order, with a red one where it does not."""
        frames = self.to_float(batch)["image"]
        labels, _ = in_order(batch["positions"], frames.dtype)
        logits = self({**batch, "image": frames})
        right = tf.argmax(logits, 1, labels.dtype) == labels
        color = tf.one_hot(tf.cast(right, tf.int32), frames.shape[-1], dtype=frames.dtype)  # NxC
        side = frames.shape[2]
        edge = max(1, side // 32)
        inner = tf.pad(tf.ones([side - 2 * edge] * 2, frames.dtype), [[edge, edge]] * 2)[..., None]
        return image_major(inner * frames + (1 - inner) * color[:, None, None, None])


def _integer(uniform: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """A number uniform in [0, 1) as an integer from low to high, both of them too: int64."""
    return low + tf.cast(uniform * tf.cast(high - low + 1, uniform.dtype), tf.int64)


def in_order(positions: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Of positions int64 [N, 3]: whether the second lies between the others, int32 [N]; and whether
    all three are different ones, so that it can be asked, 1 or 0 of `dtype` [N]."""
    first, middle, third = tf.unstack(positions, axis=1)
    ordered = ((first < middle) & (middle < third)) | ((first > middle) & (middle > third))
    return tf.cast(ordered, tf.int32), tf.cast(first != third, dtype)

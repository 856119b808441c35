"""PIC: Cao et al., "Parametric Instance Classification for Unsupervised Visual Feature Learning",
NeurIPS 2020 (arXiv 2006.14618)."""

import math
from typing import Any

import tensorflow as tf

from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import Ordered
from tfssl.errors import UserError
from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP, Prototypes
from tfssl.pretext.parts.multi_crop import MultiCrop
from tfssl.pretext.parts.views import Crops
from tfssl.pretext.task import Batch, Measured


class PIC(MultiCrop):
    """Each image is a class, whose direction is learned like any other weight: a softmax over the
    cosines with the directions of all images. One large view of each image and several small ones;
    the directions learn from the large one alone.

    Its loss never comes near 0: over N images it is at least log(1 + (N - 1) exp(-(1 + 1 / (N - 1))
    / T)) on average, 9.06 for ImageNet, where chance is 14.06.

    An image's direction is pulled towards its image only when that is seen, once an epoch. So a run
    stays within a window of images for a while (the paper's Section 3.2): it sees `window` images
    of a fixed random order, each once, and then moves on by `window_stride`. The published sampler
    does something else: it redraws the order whenever the window moves.

    Args:
      num_images: images of the data set; 0 takes its number.
      small_crops, small_size, small_area: of the small views (the published code: 3 of 96 pixels,
        from 0.08).
      temperature: what cosines are divided by (the paper: 0.2).
      projection_size: outputs of the projection (the paper: 128), which has a hidden layer as wide
        as the features and no normalization.
      window: images that the run stays within; 0, or no fewer than there are: the plain shuffle
        (the paper: 131072).
      window_stride: images by which the window moves (the paper: 16384).
    """

    task = "pic"

    def __init__(
        self,
        backbone: tf.keras.Model,
        num_images: int = 0,
        small_crops: int = 3,
        small_area: float = 0.08,
        temperature: float = 0.2,
        projection_size: int = 128,
        window: int = 131072,
        window_stride: int = 16384,
        **common: Any,
    ) -> None:
        super().__init__(backbone, small_crops=small_crops, small_area=small_area, **common)
        if num_images < 1:
            raise UserError("num_images is missing: each image is a class of the softmax")
        if window and not 0 < window_stride <= window:
            raise UserError(
                f"window_stride={window_stride}: a window of {window} images moves on by 1 to "
                f"{window} images"
            )
        self.num_images, self.temperature = num_images, temperature
        self.window, self.window_stride = window, window_stride
        self.projection = MLP("projection", [0, projection_size])
        self.classes = Prototypes("classes", num_images, stddev=0.01)

    def crops(self) -> list[Crops]:
        large, *small = super().crops()
        return [large._replace(count=1), *small]

    def order(self, source: Source) -> Source:
        count, window = source.num_examples, self.window
        if not 0 < window < count:
            return source

        def block(seed: tf.Tensor) -> tf.Tensor:
            of_run, of_window = tf.stack([seed[0], tf.constant(-1, tf.int64)]), seed
            images, examples = (
                tf.argsort(
                    tf.random.stateless_uniform([size], start, dtype=tf.float64), stable=True
                )
                for size, start in ((count, of_run), (window, of_window))
            )
            places = seed[1] * self.window_stride + tf.cast(examples, tf.int64)
            return tf.cast(tf.gather(images, places % count), tf.int64)

        return Ordered(source, block, window)

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        outputs = self.embed(batch["image"], {"z": self.projection}, training)
        z = outputs["z"]  # NxVxE
        cosines = [self.classes(z[:, 0])]
        cosines += [self.classes(z[:, v], learns=False) for v in range(1, z.shape[1])]
        return {**outputs, "scores": tf.stack(cosines, 1)}  # NxVximages

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        logits = outputs["scores"] / self.temperature
        own = tf.cast(batch["index"] % self.num_images, tf.int32)
        views = [contrastive.classify(x, own) for x in tf.unstack(logits, axis=1)]
        loss = tf.add_n([view.loss for view in views]) / len(views)
        return loss, {"accuracy": views[0].accuracy}

    def chance(self) -> dict[str, float]:
        count = self.num_images
        return {**super().chance(), "loss": math.log(count), "accuracy": 1 / count}

"""Measures that need no labels: how many dimensions the features use, how alike views of an image
are, how evenly images are spread."""

import time
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.ops.draws import fork
from tfssl.data.sources.subset import Subset
from tfssl.downstream import partition
from tfssl.downstream.features.encoder import CROPS, Encoder
from tfssl.downstream.features.extract import Features
from tfssl.downstream.metrics import geometry
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.errors import UserError


class Unsupervised(Protocol[Features]):
    """No labels: the effective rank of the test images' features (RankMe), alignment, uniformity.

    The value is the effective rank in percent of the largest one possible, the smaller of images
    and features; the result also has `rankme` itself, `alignment` (mean cosine of two random crops
    of an image; where the images are at hand), `uniformity` and `normality` (see
    `downstream.metrics.geometry`). Nothing is chosen, and the training images are not read. It
    compares encoders of one method and one network: a higher rank of another network means nothing.

    Args:
      images: How many test images at most, evenly spaced (RankMe: 25,600; half of that changes its
        values little).
      crops: The views of alignment: resized_flip, random resized crops of 8 to 100 % of the area,
        and a flip; random or random_flip, as of --sgd_crops.
    """

    name = "unsupervised"
    metric = "effective rank"
    needs = ()
    flag_prefix = "unsupervised_"

    def __init__(self, images: int = 2048, crops: str = "resized_flip") -> None:
        if images < 2:
            raise UserError(f"images={images}: give a number of images, at least 2")
        if crops not in CROPS:
            raise UserError(f"crops={crops!r}: there are {', '.join(CROPS)}")
        self.images, self.crops = images, crops

    def check(self, data: Data[Features]) -> None:
        """Any images will do, if there are two."""
        if len(data.test.index) < 2:
            raise UserError(f"{data.test.source}: one image alone has no rank")

    def endpoints(
        self, data: Data[Features], names: Optional[Sequence[str]] = None, pixels: bool = True
    ) -> list[str]:
        """Those of the test images: of the training images nothing is extracted."""
        return partition.endpoints([data.test], names)

    def reads_train(self, held_out: bool) -> bool:
        return False

    def work(self, train: int, test: int, dims: int) -> float:
        count = min(test, self.images)
        return count * dims * min(count, dims)

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        self.check(data)
        test = data.test
        count = min(self.images, len(test.index))
        rows = np.linspace(0, len(test.index) - 1, count).round().astype(np.int64)
        pairs = self._pairs(test.images, test.index[rows], endpoints, data.seed)
        for endpoint in endpoints:
            start = time.time()
            x = np.asarray(test.endpoints[endpoint][rows], np.float64)
            most, rankme = min(x.shape), geometry.rank(x)
            alignment = {} if pairs is None else {"alignment": geometry.alignment(*pairs[endpoint])}
            yield Result(
                protocol=self.name,
                endpoint=endpoint,
                metric=self.metric,
                value=min(1.0, rankme / most),
                val_value=None,
                train_labels=count,
                details={
                    "features": x.shape[1],
                    "rankme": rankme,
                    **alignment,
                    "uniformity": geometry.uniformity(x),
                    "normality": geometry.normality(x),
                },
                seconds=time.time() - start,
            )

    def _pairs(
        self, images: Optional[Encoder], index: np.ndarray, endpoints: Sequence[str], seed: int
    ) -> Optional[dict[str, tuple[np.ndarray, np.ndarray]]]:
        """{endpoint: features [n, D] of two crops of each image}; None without the images.

        Whole batches alone are computed: at most B - 1 images have no pair, unless all fit in one.
        """
        if images is None:
            return None
        size, resize, crop = images.size, images.resize, CROPS[self.crops]
        channels = images.source.pixels.channels
        batch = min(len(index), max(1, images.batch_size // 2))

        def two(example: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            seeds = [fork(seed, view) for view in range(2)]
            views = [crop(example["image"], each, size, resize) for each in seeds]
            return {"image": tf.stack(views)}

        encode = images.encoder(endpoints, 2 * batch)
        views = pipeline.training_batches(Subset(images.source, index), two, batch, seed)
        parts: dict[str, list[np.ndarray]] = {endpoint: [] for endpoint in endpoints}
        for both in views.take(len(index) // batch):
            features = encode(tf.reshape(both["image"], [2 * batch, size, size, channels]))
            for endpoint in endpoints:
                parts[endpoint].append(features[endpoint].numpy().reshape(batch, 2, -1))
        joined = {endpoint: np.concatenate(part) for endpoint, part in parts.items()}
        return {endpoint: (pair[:, 0], pair[:, 1]) for endpoint, pair in joined.items()}

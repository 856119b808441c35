"""How good is the encoder so far? Nearest neighbors among labeled images, and the rank of the
features, at each validation, without training anything."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream.metrics import geometry
from tfssl.downstream.solvers import nearest
from tfssl.pretext.task import Pretext


class KnnProbe:
    """Called, it gives {"knn_accuracy": accuracy, "rank": RankMe}: how often 20 nearest training
    images, by cosine of the pre-logits, predict the classes of others, where there are labels; and
    the effective rank of the validation images' pre-logits (see `downstream.metrics.geometry`): 1
    where the encoder has collapsed.

    Args:
      model: the pretext model.
      source, validation: `Source`s.
      images: how many of each, spread over the split (of records, the first).
      batch_size: images at a time through the encoder.
    """

    def __init__(
        self, model: Pretext, source: Source, validation: Source, images: int, batch_size: int = 64
    ) -> None:
        self.model = model
        classes = source.num_classes if validation.num_classes else None
        self.chance = {**({"knn_accuracy": 1 / classes} if classes else {}), "rank": 1.0}
        # Once: each data set that is made leaves two megabytes of graphs to the process.
        self._parts = [
            pipeline.evaluation_crops(
                evenly_spaced(split, images), *model.evaluation_size, min(batch_size, images)
            )
            for split in (source, validation)
        ]
        run = model.distribute_strategy.run
        self._encode = tf.function(lambda x: run(self._features, (x,)), autograph=model.autograph)

    def __call__(self) -> dict[str, float]:
        labeled = "knn_accuracy" in self.chance
        queries, truth = self._extract(self._parts[1])
        ranked = {"rank": geometry.rank(queries) if len(queries) else float("nan")}
        if not labeled:
            return ranked
        bank, labels = self._extract(self._parts[0])
        bank, labels = bank[labels >= 0], labels[labels >= 0]
        queries, truth = queries[truth >= 0], truth[truth >= 0]
        if not len(labels) or not len(truth):
            return {"knn_accuracy": float("nan"), **ranked}  # of no image
        predicted = nearest.vote(
            bank, labels, np.arange(len(bank)), queries, min(20, len(bank)), 0.07
        )
        return {"knn_accuracy": float(np.mean(predicted == truth)), **ranked}

    def _features(self, images: tf.Tensor) -> tf.Tensor:
        return self.model.encode(pipeline.as_floats(images))["pre_logits"]

    def _extract(self, batches: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for batch in batches:
            real = batch["weight"].numpy() > 0
            found = self.model.distribute_strategy.experimental_local_results(
                self._encode(batch["image"])
            )[0]
            features.append(found.numpy()[real])
            labels.append(batch["label"].numpy()[real])
        return np.concatenate(features or [np.zeros([0, 1])]), np.concatenate(
            labels or [np.zeros(0, int)]
        )

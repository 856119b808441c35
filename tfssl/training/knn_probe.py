"""How good is the encoder so far? Nearest neighbors among labeled images, at each validation,
without training anything."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream.solvers import nearest
from tfssl.errors import UserError
from tfssl.pretext.task import Pretext


class KnnProbe:
    """Called, it gives {"knn_accuracy": accuracy}: 20 nearest training images, by cosine of the
    pre-logits, tell the classes of others.

    Args:
      model: the pretext model.
      source, validation: labeled `Source`s.
      images: how many of each, spread over the split (of records, the first).
      batch_size: images at a time through the encoder.

    Raises:
      UserError: there are no labels.
    """

    def __init__(
        self, model: Pretext, source: Source, validation: Source, images: int, batch_size: int = 64
    ) -> None:
        if not source.num_classes:
            raise UserError(
                f"--knn_probe={images}: {source.spec} has no labels to vote with; leave it out"
            )
        self.model = model
        self.chance = {"knn_accuracy": 1 / source.num_classes}
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
        (bank, labels), (queries, truth) = (self._extract(part) for part in self._parts)
        if not len(labels) or not len(truth):
            return {"knn_accuracy": float("nan")}  # of no image
        predicted = nearest.vote(
            bank, labels, np.arange(len(bank)), queries, min(20, len(bank)), 0.07
        )
        return {"knn_accuracy": float(np.mean(predicted == truth))}

    def _features(self, images: tf.Tensor) -> tf.Tensor:
        return self.model.encode(pipeline.as_floats(images))["pre_logits"]

    def _extract(self, batches: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for batch in batches:
            real = (batch["weight"].numpy() > 0) & (batch["label"].numpy() >= 0)
            found = self.model.distribute_strategy.experimental_local_results(
                self._encode(batch["image"])
            )[0]
            features.append(found.numpy()[real])
            labels.append(batch["label"].numpy()[real])
        return np.concatenate(features or [np.zeros([0, 1])]), np.concatenate(
            labels or [np.zeros(0, int)]
        )

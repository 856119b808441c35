"""Predictions of classifiers that `tfssl-finetune` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.pipeline import as_floats, crops_spec
from tfssl.data.sources.base import Source
from tfssl.downstream.features import forward
from tfssl.errors import UserError
from tfssl.hub.load import Module

KIND = "classifier"  # "kind" in its tfssl.json


def check(module: Module) -> None:
    """Raises UserError unless a loaded `modules.Module` is a classifier of ours."""
    sizes = module.facts.get("features") or {}
    if module.facts.get("kind") != KIND or not isinstance(sizes.get("logits"), int):
        raise UserError(
            f"module {module.handle!r} is no classifier of tfssl, whose classes are known: "
            "tfssl-finetune "
            f"--module={module.handle} makes one from labeled images"
        )


def num_classes(module: Module) -> int:
    """C of a classifier."""
    check(module)
    return module.facts["features"]["logits"]


def predictions(
    module: Module,
    source: Source,
    image_size: int | None = None,
    resize: int | None = None,
    batch_size: int = 64,
    jit_compile: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Predictions for all readable images, batch by batch in the order of the split, on all
    replicas of the strategy in whose scope it is called (and the module loaded); memory: two
    batches.

    Args:
      module: a classifier, loaded by `modules.load`.
      source: a `tfssl.data.Source`; labels are not needed.
      image_size, resize: side of the central crop, and of the shorter side before it; by default
        the module's own.
      batch_size: images per forward pass, on each replica.
      jit_compile: compile it with XLA.

    Yields:
      {"logits", "probabilities": float32 [n, C], "label": int64 [n] (-1: none), "index": int64 [n],
      positions in the split}.
    """
    check(module)
    size, resize = module.sizes(image_size, resize)
    source.check_readable()

    def compute(images: tf.Tensor) -> dict[str, tf.Tensor]:
        endpoints = module.endpoints(as_floats(images))
        return {name: endpoints[name] for name in ("logits", "probabilities")}

    step = forward.step(compute, crops_spec(source, batch_size, size), jit_compile)
    yield from forward.outputs(step, source, forward.Crops(size, resize), batch_size)


def accuracy(module: Module, source: Source, **settings: Any) -> dict[str, float]:
    """{"accuracy", "top5_accuracy", "images"} of a classifier on a labeled source; settings as of
    `predictions`."""
    hits = []
    for batch in predictions(module, source, **settings):
        known = batch["label"] >= 0
        order = np.argsort(-batch["logits"][known], axis=1, kind="stable")[:, :5]
        hits.append(order == batch["label"][known, None])
    if not sum(map(len, hits)):
        raise UserError(
            f"{source.spec} {source.split}: no image with a label could be read: nothing to measure"
        )
    ranks = np.concatenate(hits)
    return {
        "accuracy": float(ranks[:, 0].mean()),
        "top5_accuracy": float(ranks.any(1).mean()),
        "images": len(ranks),
    }

"""What a module says about itself: tfssl.json in its assets, and its identity."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, TypedDict, cast

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.hub import messages


class Facts(TypedDict, total=False):
    """The entries of our modules' tfssl.json that are read here."""

    crop: int
    resize: int
    kind: str
    task: str
    endpoint: str
    endpoints: list[str]
    class_names: list[str]
    features: dict[str, Any]  # sizes: D, or [h, w, C]
    training_flags: dict[str, Any]
    encoder: dict[str, Any]
    network: dict[str, Any]  # arguments of backbones.build
    normalization: dict[str, Any]  # mean and std, by channel
    min_image_size: int
    num_classes: int
    channels: int
    value_range: str
    step: int  # of training


def read(folder: str) -> Facts:
    """The tfssl.json of a SavedModel's folder; {} where there is none.

    Raises:
      UserError: it is damaged, or an entry has another type.
    """
    path = os.path.join(folder, "assets", "tfssl.json")
    if not tf.io.gfile.exists(path):
        return {}
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            facts = json.loads(f.read().decode())
        facts = {**facts, "crop": int(facts["crop"]), "resize": int(facts["resize"])}
        for name, kind in _KINDS.items():
            if not isinstance(facts.get(name), (kind, type(None))):
                raise TypeError(f"{name} is {facts[name]!r:.40}")
        for name in ("crop", "resize"):
            if not 1 <= facts[name] <= 1 << 16:
                raise ValueError(f"{name} is {facts[name]} pixels")
        for name in ("endpoints", "class_names"):
            if not all(isinstance(text, str) for text in facts.get(name) or ()):
                raise TypeError(f"{name} has an entry that is no text")
        return cast(Facts, facts)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise UserError(
            f"module: {path} is damaged: {type(e).__name__}: {messages.complaint(e)}"
        ) from e


_KINDS = {  # types of the entries
    "kind": str,
    "task": str,
    "endpoint": str,
    "endpoints": list,
    "class_names": list,
    "features": dict,
    "training_flags": dict,
    "encoder": dict,
    "network": dict,
    "normalization": dict,
    "min_image_size": int,
    "num_classes": int,
    "channels": int,
    "value_range": str,
    "step": int,
}


def identity(folder: str) -> str:
    """Hex digest of a SavedModel's graph, facts, and checksums of its weights."""
    # variables.index holds a checksum of every tensor, so the (large) weights themselves need not
    # be read.
    digest = hashlib.sha256()
    for name in ("saved_model.pb", "variables/variables.index", "assets/tfssl.json"):
        path = os.path.join(folder, name)
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path, "rb") as f:
                digest.update(f.read())
    return digest.hexdigest()

"""How good is an encoder? Protocols that see a Hub module's features of images, and nothing of how it was trained."""

import importlib
import inspect

from tfssl.errors import UserError

NAMES = ("logistic", "knn", "linear_sgd", "mlp", "svm", "low_shot", "few_shot")
MULTI_LABEL = ("svm", "low_shot")  # those that take images of several classes
# Those that read maps and annotations, not features and labels: `run(module, train, test, val, ...)` with sources whose
# examples have what the protocol's NEEDS says. A result may have a "picture", a PNG's bytes or its path, for report.html.
DENSE = ("segmentation", "detection", "surface_normals")
_EXACT = ("logistic", "knn")  # they need all bits of float32: for a line search, or to tell neighbours apart


def __getattr__(name):
    """`extract` and `Features` load TensorFlow, `NAMES` does not."""
    if name in ("extract", "Features"):
        return getattr(importlib.import_module("tfssl.downstream.features"), name)
    if name in (*NAMES, *DENSE, "features", "images", "modules", "page", "report"):
        return importlib.import_module(f"tfssl.downstream.{name}")
    raise AttributeError(f"module 'tfssl.downstream' has no attribute {name!r}")


def run(protocol, train, test, **settings):
    """Evaluate features by a protocol.

    Args:
      protocol: one of NAMES.
      train, test: `Features` of the two splits. Every choice is made on a part of `train`.
      **settings: see the protocol's own `run`; common to all are
        val (`Features` of a validation split; None: a part of `train`), endpoints (names; all by default), train_labels
        ("all", "1%", 200: a class-balanced subset), val_fraction (0.2; 0: no validation part), seed (0).

    Returns:
      a list of results, one per endpoint (low_shot, few_shot: for each of their numbers of images): {"protocol",
      "endpoint", "metric", "value" (on test), "val_value" (on what choices are made on; None if there are too few labels),
      "train_labels", "chosen_on" (the images behind "val_value", None without), "reported_on" (those behind "value"), ...
      and what was set or chosen}.
    """
    if protocol not in NAMES:
        raise UserError(f"unknown protocol {protocol!r}; there is: {', '.join(NAMES)}")
    function = importlib.import_module(f"tfssl.downstream.{protocol}").run
    known = list(inspect.signature(function).parameters)[2:]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"protocol {protocol} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")

    import tensorflow as tf

    from tfssl.downstream import splits

    fast = tf.config.experimental.tensor_float_32_execution_enabled()  # ten bits of a factor
    tf.config.experimental.enable_tensor_float_32_execution(fast and protocol not in _EXACT)
    try:
        results = function(train, test, **settings)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(fast)
    where = splits.chosen_on(train, settings.get("val"), settings.get("val_fraction", 0.2))
    for result in results:
        result.setdefault("chosen_on", where if result["val_value"] is not None else None)
        result["reported_on"] = test.source
    return results

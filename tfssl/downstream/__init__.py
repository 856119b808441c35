"""How good is an encoder? Protocols that see a Hub module's features of images, and nothing of how it was trained."""

import dataclasses
import importlib
import inspect
import math

from absl import logging

from tfssl.errors import UserError

NAMES = ("logistic", "knn", "linear_sgd", "mlp", "svm", "low_shot", "few_shot")
MULTI_LABEL = ("svm", "low_shot")  # those that take images of several classes
# Those that read maps and annotations, not features and labels: `run(module, train, test, val, ...)` with sources whose
# examples have what the protocol's NEEDS says. A result may have a "picture", a PNG's bytes or its path, for report.html.
DENSE = ("segmentation", "detection", "surface_normals")
_OWN_SCALE = ("logistic", "mlp")  # those that take features in the scale they come in
_ORDINARY = 1e-12, 1e12  # largest absolute values of features whose squares and products float32 holds
_EXACT = ("logistic", "knn")  # they need all bits of float32: for a line search, or to tell neighbours apart


def __getattr__(name):
    """`extract` and `Features` load TensorFlow, `NAMES` does not."""
    if name in ("extract", "Features"):
        return getattr(importlib.import_module("tfssl.downstream.features.extract"), name)
    if name in (*NAMES, *DENSE):
        return importlib.import_module(f"tfssl.downstream.protocols.{name}")
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
      and what was set or chosen}. "scale": a power of two by which features were multiplied first whose largest value is beyond 1e12, or
      below 1e-12; l2 then acts on weights of the scaled features.

    Raises:
      UserError: settings or features are not sound, such as an endpoint with values that are infinite or not a number, naming it.
    """
    if protocol not in NAMES:
        raise UserError(f"unknown protocol {protocol!r}; there is: {', '.join(NAMES)}")
    function = importlib.import_module(f"tfssl.downstream.protocols.{protocol}").run
    known = list(inspect.signature(function).parameters)[2:]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"protocol {protocol} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")

    import tensorflow as tf

    from tfssl.downstream import splits

    parts = [part for part in (train, test, settings.get("val")) if part is not None]
    for part in parts:
        part.check(set(part.endpoints) & set(settings.get("endpoints") or part.endpoints))
    scales = _scales(parts, settings.get("endpoints") or train.endpoints, protocol) if protocol != "linear_sgd" else {}
    if scales:
        train, test = _scaled(train, scales), _scaled(test, scales)
        if settings.get("val") is not None:
            settings["val"] = _scaled(settings["val"], scales)

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
        if result["endpoint"] in scales:
            result["scale"] = scales[result["endpoint"]]
    return results


def _scales(parts, names, protocol):
    """{endpoint: the power of two that brings its largest value to between 4 and 8, about that of standardized features}, of those whose
    squares would leave the range of float32."""
    found = {}
    for name in names:
        largest = max((part.largest(name) for part in parts if name in part.endpoints), default=0)
        low, high = _ORDINARY
        if 0 < largest < low or (largest > high and protocol in _OWN_SCALE):
            found[name] = 2.0 ** (3 - math.frexp(largest)[1])
            logging.warning(
                "%s: endpoint %s reaches %.2g: times %.2g for %s", parts[0].source, name, largest, found[name], protocol
            )
    return found


def _scaled(features, scales):
    """`Features` whose endpoints are multiplied by {name: factor}; float32 at least."""
    import numpy as np

    endpoints = {
        name: values * np.asarray(scales[name], np.promote_types(values.dtype, np.float32))
        if name in scales
        else values
        for name, values in features.endpoints.items()
    }
    return dataclasses.replace(features, endpoints=endpoints)

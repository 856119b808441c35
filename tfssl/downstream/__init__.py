"""Evaluation protocols: they read a Hub module's features of images, and know nothing of its
training."""

import importlib
from typing import TYPE_CHECKING, Any

from tfssl.errors import UserError
from tfssl.registry import Registry

if TYPE_CHECKING:
    from tfssl.downstream.results import Result

PROTOCOLS = Registry(
    "protocol",
    {
        "logistic": "tfssl.downstream.protocols.logistic:Logistic",
        "knn": "tfssl.downstream.protocols.knn:KNN",
        "linear_sgd": "tfssl.downstream.protocols.linear_sgd:LinearSGD",
        "mlp": "tfssl.downstream.protocols.mlp:MLP",
        "svm": "tfssl.downstream.protocols.svm:SVM",
        "low_shot": "tfssl.downstream.protocols.low_shot:LowShot",
        "few_shot": "tfssl.downstream.protocols.few_shot:FewShot",
        "unsupervised": "tfssl.downstream.protocols.unsupervised:Unsupervised",
        "segmentation": "tfssl.downstream.protocols.segmentation:Segmentation",
        "detection": "tfssl.downstream.protocols.detection:Detection",
        "fcos": "tfssl.downstream.protocols.fcos:FCOS",
        "surface_normals": "tfssl.downstream.protocols.surface_normals:SurfaceNormals",
    },
)
NAMES = PROTOCOLS.names


def __getattr__(name: str) -> Any:
    """`extract` and `Features` load TensorFlow, `NAMES` does not."""
    if name in ("extract", "Features"):
        return getattr(importlib.import_module("tfssl.downstream.features.extract"), name)
    raise AttributeError(f"module 'tfssl.downstream' has no attribute {name!r}")


def run(protocol: str, train: Any, test: Any, **settings: Any) -> "list[Result]":
    """Evaluate features by a protocol.

    Args:
      protocol: one of NAMES, or the import path of a class of your own, "mypackage.mine:Mine".
      train, test: `Features` of the two splits. Every choice is made on a part of `train`. For
        protocols that read maps (segmentation, detection, fcos, surface_normals): two sources, and
        `module`, a loaded `tfssl.hub.load.Module`.
      **settings: those of the protocol's class, and those of `protocol.Data`: endpoints (names; all
        by default), val (a validation split; None: a part of `train`), train_labels ("all", "1%",
        200: a class-balanced subset), val_fraction (0.2; 0: no validation part), seed (0).

    Returns:
      a list of `Result`, one per endpoint (low_shot, few_shot: one per endpoint and k).

    Raises:
      UserError: invalid settings or features, such as an endpoint with infinite values or NaNs.
    """
    from tfssl.downstream.protocol import DATA_SETTINGS, Data

    cls = PROTOCOLS.find(protocol)
    endpoints = settings.pop("endpoints", None)
    data_settings = {name: settings.pop(name) for name in DATA_SETTINGS if name in settings}
    known = cls.setting_names()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        names = ", ".join((*known, "endpoints", *DATA_SETTINGS))
        raise UserError(f"protocol {protocol} has no setting {', '.join(unknown)}; it has: {names}")
    return cls(**settings).measure(Data(train, test, **data_settings), endpoints)

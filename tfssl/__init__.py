"""tfssl: self-supervised visual representation learning on TensorFlow and Keras."""

import importlib
import os
import sys
from typing import Any

from tfssl.runtime import processor
from tfssl.version import __version__ as __version__

# Keras 2 semantics on every TensorFlow: this has to be in the environment before TensorFlow is
# imported.
if os.environ.setdefault("TF_USE_LEGACY_KERAS", "1") not in ("1", "True", "true"):
    raise ImportError(
        "tfssl needs Keras 2 behind tf.keras: unset TF_USE_LEGACY_KERAS, or set it to 1"
    )
_tensorflow = sys.modules.get("tensorflow")
if _tensorflow is not None and getattr(
    getattr(_tensorflow, "keras", None), "__version__", "2"
).startswith("3"):
    raise ImportError(
        "TensorFlow was imported before tfssl and chose Keras 3: import tfssl first, or set "
        "TF_USE_LEGACY_KERAS=1"
    )
processor.switch_on_onednn()

_MODULES = (
    "backbones",
    "data",
    "downstream",
    "errors",
    "export",
    "hub",
    "losses",
    "optim",
    "pretext",
)


def __getattr__(name: str) -> Any:
    """Sub-packages load when first used, so that `--help` need not wait for TensorFlow."""
    if name in _MODULES:
        return importlib.import_module(f"tfssl.{name}")
    if name == "open_source":
        return importlib.import_module("tfssl.data").open_source
    raise AttributeError(f"module 'tfssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, "open_source"])

"""The export step: a trained encoder becomes a TF-Hub module (a TF2 reusable SavedModel)."""

from typing import Any

__all__ = ["recalibrate", "save", "save_detector"]


def __getattr__(name: str) -> Any:
    """They load when first used, so that `tfssl-export --help` need not wait for TensorFlow."""
    if name == "save":
        from tfssl.export.module import save

        return save
    if name == "recalibrate":
        from tfssl.export.statistics import recalibrate

        return recalibrate
    if name == "save_detector":
        from tfssl.export.detector import save_detector

        return save_detector
    raise AttributeError(f"module 'tfssl.export' has no attribute {name!r}")

"""The export step: a trained encoder becomes a TF-Hub module (a TF2 reusable SavedModel)."""

from typing import Any

__all__ = ["recalibrate", "save"]


def __getattr__(name: str) -> Any:
    """They load when first used, so that `tfssl-export --help` need not wait for TensorFlow."""
    if name == "save":
        from tfssl.export.module import save

        return save
    if name == "recalibrate":
        from tfssl.export.statistics import recalibrate

        return recalibrate
    raise AttributeError(f"module 'tfssl.export' has no attribute {name!r}")

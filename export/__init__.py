"""The export step: a trained encoder becomes a TF-Hub module (a TF2 reusable SavedModel)."""

from tfssl.export.module import save

__all__ = ["save"]

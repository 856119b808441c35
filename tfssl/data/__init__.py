"""Where images come from: sources, and the operations on single images and batches that follow
them."""

from __future__ import annotations

import importlib
from types import ModuleType

from tfssl.data.sources import open_source
from tfssl.data.sources.base import Source

__all__ = ["Source", "open_source"]


def __getattr__(name: str) -> ModuleType:
    """`tfssl.data.ops.image`, `tfssl.data.pipeline`, ... without importing them first."""
    if name.startswith("_"):
        raise AttributeError(f"module 'tfssl.data' has no attribute {name!r}")
    try:
        return importlib.import_module(f"tfssl.data.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"tfssl.data.{name}":
            raise
        raise AttributeError(f"module 'tfssl.data' has no attribute {name!r}") from None

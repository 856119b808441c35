"""Memory-mapped arrays that are read or written part by part."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np


def release(array: np.ndarray) -> None:
    """Give the pages of a memory-mapped array back to the system: what was read or written of it so
    far no longer counts as this process's memory. Nothing is lost: they stay in the system's cache
    of the file until it needs the room. Other arrays are left as they are."""
    owner: object = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    if owner is not None:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no Linux
            owner.madvise(mmap.MADV_DONTNEED)

"""Which numbers a module takes for pixels: [0, 1], as ours and the Hub's convention has it, or what
its handle or its input's type says."""

from __future__ import annotations

import os
import re

import tensorflow as tf

from tfssl.storage import files

Range = tuple[float, float]  # black, white

_SUFFIX = re.compile(r"(.+)#(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")


def parted(handle: str) -> tuple[str, Range | None]:
    """HANDLE and (black, white) of HANDLE#BLACK..WHITE, such as modules/theirs#-1..1 or #0..255;
    None of others, and of a folder that is called so."""
    match = _SUFFIX.fullmatch(handle)
    if not match or (files.is_local(handle) and os.path.exists(os.path.expanduser(handle))):
        return handle, None
    return match[1], (float(match[2]), float(match[3]))


def scaled(images: tf.Tensor, to: Range | None, dtype: tf.DType) -> tf.Tensor:
    """Images in [0, 1] as a module takes them: an input of integers gets 0 to 255, unless its
    handle says otherwise."""
    if dtype.is_integer:
        to = to or (0.0, 255.0)
    if to is not None:
        images = images * (to[1] - to[0]) + to[0]
    return tf.saturate_cast(tf.round(images), dtype) if dtype.is_integer else images

"""What this machine's processor computes in, and how TensorFlow is to be started on it; asked
before TensorFlow loads."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Set as AbstractSet

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow's switch, read once, when its library loads


def features(cpuinfo: str = "/proc/cpuinfo") -> set[str]:
    """The instruction sets of this processor as Linux names them, {"avx2", "avx512_bf16", ...};
    empty where no such file says so."""
    with contextlib.suppress(OSError), open(cpuinfo, encoding="utf-8", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, ARM
                return set(value.split())
    return set()


def gains_from_onednn(features: AbstractSet[str]) -> bool:
    """Whether convolutions in oneDNN outrun TensorFlow's own: on x86 processors from AVX on, not
    with SSE alone (docs/results.md).

    TensorFlow itself uses oneDNN from AVX512-VNNI, AVX-VNNI or AMX on. ARM keeps its default, and
    macOS, whose builds have no oneDNN.
    """
    return "avx" in features


def computes_bfloat16(features: AbstractSet[str], limit: str = "") -> bool:
    """Whether oneDNN multiplies bfloat16 in hardware here: AVX512-BF16 or AMX. Elsewhere it is
    emulated, many times slower than float32.

    Args:
      features: see `features`.
      limit: ONEDNN_MAX_CPU_ISA, the newest instruction set that oneDNN may use; empty: any.
    """
    permitted = limit.upper() in ("", "ALL", "DEFAULT") or any(
        name in limit.upper() for name in ("BF16", "FP16", "AMX")
    )
    return permitted and not features.isdisjoint(("avx512_bf16", "amx_bf16"))


def bfloat16_here() -> bool:
    """`computes_bfloat16` of this process, in which TensorFlow is loaded."""
    return onednn_is_on() and computes_bfloat16(
        features(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    )


def switch_on_onednn() -> None:
    """Have TensorFlow use oneDNN where that is faster, unless the user has decided; warn where
    TensorFlow was imported first without it."""
    if ONEDNN in os.environ or not gains_from_onednn(features()):
        return
    if "tensorflow" not in sys.modules:
        os.environ[ONEDNN] = "1"
    elif not onednn_is_on():
        warnings.warn(
            "TensorFlow was imported before tfssl, without oneDNN: convolutions are several times "
            "slower on this processor; import tfssl "
            f"first, or set {ONEDNN}=1 (0: no warning)",
            stacklevel=3,
        )


def onednn_is_on() -> bool:
    """Whether the TensorFlow of this process uses oneDNN. (2.15 reads its variable once more for
    this answer: as it was at import.)"""
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:  # TensorFlow keeps it to itself: no reason to complain
        return True
    return IsMklEnabled()

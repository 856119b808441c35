"""Pickles of haiku's parameters and states, such as BYOL's checkpoints, read without JAX, haiku,
dill, or NumPy's own unpickling: arrays of numbers, in dicts and tuples."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfssl.interop.formats import pickles
from tfssl.interop.formats.pickles import Inert, Ordered, Refused, Stand

_STATE = ("online_params", "target_params", "online_state", "target_state")  # of BYOL's, in order
_CODES = ("f2", "f4", "f8", "i4", "i8", "u1", "u4", "b1")
_PAIR = ("params", "state")  # of hk.transform_with_state


class _Dtype(Stand):
    """numpy.dtype(code, align, copy), then a state whose second entry is the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in _CODES:
            kind = f"{code!r:.40}" if isinstance(code, str) else type(code).__name__
            raise Refused(f"it holds an array of {kind}, which are no numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds an array of a byte order that is not known")
        self.order = order

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order.replace("=", "<") + self.code)


class _Array(Stand):
    """numpy's _reconstruct(ndarray, (0,), b"b"), then (version, shape, dtype, fortran, bytes)."""

    values = np.zeros(0, np.float32)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        try:
            _, shape, dtype, fortran, raw = state
            kind = dtype.dtype
            raw = raw.encode("latin1") if isinstance(raw, str) else raw
            if len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError("its sizes are no numbers")
            if math.prod(shape) * kind.itemsize != len(raw):
                raise ValueError(f"{len(raw)} bytes for {tuple(shape)}")
            self.values = np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise Refused(f"it holds a damaged array ({error})") from error


def _scalar(dtype: Any, raw: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, (), dtype, False, raw))
    return array


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Arrays in pickles of protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", buffer))
    return array


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes in pickles of protocol 2: _codecs.encode(text, "latin1")."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("it holds bytes in an encoding that is not known")
    return text.encode("latin1")


def _mapping(*arguments: Any) -> Any:
    if len(arguments) != 1 or not isinstance(arguments[0], Mapping):
        raise Refused("it holds a mapping of an unknown form")
    return arguments[0]


def _record(*_: Any) -> type[Inert]:
    """dill's _create_namedtuple(name, fields, module): a class, of which the values are kept."""
    return Inert


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Ordered,
    ("_codecs", "encode"): _encoded,
    ("dill._dill", "_create_namedtuple"): _record,
    ("byol.byol_experiment", "_ByolExperimentState"): Inert,
    ("haiku._src.data_structures", "FlatMapping"): _mapping,
    ("haiku._src.data_structures", "FlatMap"): _mapping,
    ("haiku._src.data_structures", "frozendict"): _mapping,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.multiarray", name): what
        for core in ("core", "_core")
        for name, what in (("_reconstruct", _Array), ("scalar", _scalar))
    },
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


def read(path: str) -> dict[str, np.ndarray]:
    """{name: array}: "experiment_state/online_params/res_net50/~/initial_conv/w"; a pair is one of
    params and state.

    Raises:
      Refused: it is damaged, or holds more than arrays, numbers and texts.
    """
    with open(path, "rb") as f:
        top = pickles.load(io.BytesIO(f.read()), _NAMES, inert=("byol.utils.", "optax."))
    found: dict[str, np.ndarray] = {}
    for name, array in pickles.leaves(top, _Array, _fields):
        found[name] = array.values
    if not found:
        raise Refused("it holds no arrays")
    return found


def _fields(value: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_STATE if len(value) >= len(_STATE) else _PAIR, value))

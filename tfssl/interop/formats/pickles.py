"""Pickles of strangers: an unpickler that makes tensors and plain containers, and nothing else.

A pickle is a program. This one is read twice: first its instructions are listed, without running
any, and each has to be one of those that data needs, then it runs in Python's own, slow
implementation with a table of names in place of the import system. No class or function of the
outside is ever looked up: what the names stand for is written here and in the readers.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Refused(ValueError):
    """A file that is damaged, or that would do more than hold weights."""


class Stand:
    """What stands for an object of another library. A state that the pickle gives it is dropped,
    unless a subclass takes it."""

    def __setstate__(self, state: Any) -> None:
        pass


class Inert(Stand, tuple):
    """An object that no weight depends on: its constructor's arguments."""

    def __new__(cls, *arguments: Any) -> Inert:
        return super().__new__(cls, arguments)


class Ordered(Stand, dict):
    """An OrderedDict, of nothing or of pairs."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
            _check_keys([key])
            self[key] = value


_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
_LONGEST_NAME = 4096


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of dicts, and members of sets, that are no texts, bytes or numbers: a tuple that
    holds itself twice over, n times, is n bytes of a file, and its hash takes 2^n steps. So does
    its text, which therefore stands in no message."""
    for key in keys:
        if type(key) not in _KEYS:
            raise Refused(
                f"its pickle has keys that are no texts, bytes or numbers ({type(key).__name__})"
            )


# No EXT (names by number), INST and OBJ (classes without a name on the stack), nor NEXT_BUFFER.
# BYTEARRAY8 allocates what it announces, which the list of instructions has found in the file.
_OPCODES = frozenset(
    "MARK STOP POP POP_MARK DUP BINFLOAT BININT BININT1 BININT2 LONG1 LONG4 INT LONG FLOAT NONE "
    "NEWTRUE NEWFALSE BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING "
    "STRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET "
    "GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID BINPUT LONG_BINPUT PUT MEMOIZE BINGET "
    "LONG_BINGET GET PROTO FRAME".split()
)


def load(
    file: io.BytesIO,
    names: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
    inert: tuple[str, ...] = (),
) -> Any:
    """The next object in a file that is in memory.

    Args:
      file: at the pickle's start; afterwards at its end.
      names: {(module, name): what it stands for}.
      persistent: what makes an object of a persistent identifier; None: there are none.
      inert: beginnings of modules whose objects no weight depends on.

    Raises:
      Refused: it is damaged, names something else, or has other instructions than data need.
    """
    begin = file.tell()
    try:
        for opcode, _, _ in pickletools.genops(file):
            if opcode.name not in _OPCODES:
                raise Refused(
                    f"its pickle has the instruction {opcode.name}, which no weights have"
                )
        end = file.tell()
        file.seek(begin)
        result = _Unpickler(file, names, persistent, inert).load()
        file.seek(end)
        return result
    except Refused:
        raise
    except RecursionError as error:
        raise Refused("its pickle is nested too deeply") from error
    except Exception as error:  # of a damaged stream, any kind
        raise Refused(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Unpickler(pickle._Unpickler):  # in Python: its memo is a dict, so numbers cost no memory
    def __init__(
        self,
        file: io.BytesIO,
        names: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
        inert: tuple[str, ...],
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._names, self._persistent, self._inert = names, persistent, inert

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module.startswith(self._inert):
            return Inert
        wanted = f"{module}.{name}"
        raise Refused(
            f"its pickle names {wanted!r:.80}, which is no tensor: it might run anything, so "
            "nothing was loaded. If you trust the file, save its tensors alone with the library "
            "that wrote it: torch.save(torch.load(FILE)['state_dict'], NEW)"
        )

    def load_build(self) -> None:
        """Not Python's own, which sets attributes of whatever is there."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], Stand):  # type: ignore[attr-defined]
            raise Refused("its pickle sets the state of something that has none")
        self.stack[-1].__setstate__(state)  # type: ignore[attr-defined]

    # Before Python's own instructions that hash what is on the stack: a look at what they will.

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_dict()  # type: ignore[misc]

    def load_additems(self) -> None:
        _check_keys(self.stack)  # type: ignore[attr-defined]
        super().load_additems()  # type: ignore[misc]

    def load_frozenset(self) -> None:
        _check_keys(self.stack)  # type: ignore[attr-defined]
        super().load_frozenset()  # type: ignore[misc]

    _own: Any = {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }
    dispatch = {**pickle._Unpickler.dispatch, **_own}

    def persistent_load(self, identifier: Any) -> Any:
        if self._persistent is None:
            raise Refused("its pickle refers to something outside of it")
        return self._persistent(identifier)


def leaves(
    top: Any, kind: type[Any], fields: Callable[[tuple[Any, ...]], Mapping[str, Any]] | None = None
) -> Iterator[tuple[str, Any]]:
    """(name, object) of all objects of a kind in nested dicts, whose keys are joined by "/";
    `fields` makes a dict of a tuple. A dict that comes again is left out."""
    seen: set[int] = set()
    nested = [("", top)]
    while nested:
        name, value = nested.pop()
        if len(name) > _LONGEST_NAME:
            raise Refused(f"it has names of more than {_LONGEST_NAME} letters")
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, (Mapping, tuple)) and id(value) not in seen:
            seen.add(id(value))
            inner = value if isinstance(value, Mapping) else fields(value) if fields else {}
            parts = [(key, part) for key, part in inner.items() if isinstance(key, str)]
            nested += [(f"{name}/{key}" if name else key, part) for key, part in reversed(parts)]

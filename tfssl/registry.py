"""Names of what can be added: of tasks, protocols, optimizers and so on. A registry knows where
each class is without importing it."""

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from tfssl.errors import UserError

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Registry:
    """Classes of one kind, by a short name or an import path.

    Args:
      kind: what they are, for messages: "task".
      classes: {name: "module:Class"}.

    Attributes:
      names: tuple of the short names, in the order of `classes`.
    """

    def __init__(self, kind: str, classes: Mapping[str, str]) -> None:
        self.kind, self._classes = kind, dict(classes)
        self.names = tuple(self._classes)

    def source(self, name: str) -> tuple[str, str]:
        """(module, class) of a short name, or of an import path "mypackage.mymodule:MyClass".

        Raises:
          UserError: it is neither.
        """
        path = self._classes.get(name, name)
        if not _PATH.fullmatch(path):
            close = difflib.get_close_matches(name, self.names)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(
                f"unknown {self.kind} {name!r}: choose one of {', '.join(self.names)}, or the "
                "import path of a class of your own, such as "
                f"mypackage.my{self.kind}:MyClass{hint}"
            )
        module, _, class_name = path.partition(":")
        return module, class_name

    def find(self, name: str) -> type[Any]:
        """The class itself.

        Raises:
          UserError: there is no such name, module or class.
        """
        module, class_name = self.source(name)
        try:
            return getattr(importlib.import_module(module), class_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # found, but something that it imports is not there
            raise UserError(
                f"{self.kind} {name!r}: no module {error.name!r}; is it installed, or its folder "
                "in PYTHONPATH?"
            ) from error
        except AttributeError as error:
            raise UserError(
                f"{self.kind} {name!r}: module {module!r} has no class {class_name!r}"
            ) from error

    def name_of(self, cls: type) -> str:
        """The name by which `find` gives this class again: the short one, if it has one."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        return next((name for name, known in self._classes.items() if known == path), path)

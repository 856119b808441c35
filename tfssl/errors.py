"""The one exception that users are meant to read, and checks that raise it."""

from __future__ import annotations

from collections.abc import Collection


class UserError(ValueError):
    """Something the user can mend: one line that names the cause and the remedy.

    The binaries print the line and exit with `status`, without a traceback; in a notebook it is a ValueError.
    """

    status = 1


def one_line(error: object, length: int = 200) -> str:
    """The text of an exception on one line, cut after `length` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " ..."


def check_choice(setting: str, value: object, allowed: Collection[str]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise UserError(f"{setting}={value}: choose one of {', '.join(allowed)}")

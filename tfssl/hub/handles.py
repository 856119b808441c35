"""Names of modules in tables, from their handles."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tfssl.errors import UserError


def named(values: Iterable[str]) -> dict[str, str]:
    """{name to show: handle} of --module's values, NAME=HANDLE or HANDLE, in their order.

    Existing paths take precedence: a folder `lr=0.1/module/4` is that folder and not one named lr,
    and values that form an existing path when joined by commas are one handle
    (`lr=0.1,wd=0/module/4`), the longest that exists.
    """
    if not values:
        raise UserError(
            "--module is missing: name a folder that tfssl-export wrote, a .tar.gz of it, or an "
            "https handle"
        )
    names, handles = [], []
    values = list(values)
    while values:
        count = next(
            (n for n in range(len(values), 1, -1) if _exists_in_part(",".join(values[:n]))), 1
        )
        name, handle = _parted(",".join(values[:count]))
        names.append(name)
        handles.append(handle)
        values = values[count:]
    given = ",".join(
        handle if name is None else f"{name}={handle}" for name, handle in zip(names, handles)
    )
    short = [name or short_name(handle) for name, handle in zip(names, handles)]
    shown = [names[i] or (s if short.count(s) == 1 else handles[i]) for i, s in enumerate(short)]
    if not all(handles):
        raise UserError(f"--module={given}: a handle is empty")
    if len(set(shown)) < len(shown):
        raise UserError(f"--module={given}: two modules have one name; give NAME=HANDLE")
    return dict(zip(shown, handles))


def _parted(value: str) -> tuple[str | None, str]:
    """(name or None, handle) of NAME=HANDLE or HANDLE."""
    name, equals, handle = value.partition("=")
    if not equals or set(name) & set("/:") or _exists(value):  # an URL may hold a = further on
        return None, value
    return name, handle


def _exists_in_part(value: str) -> bool:
    """Whether the handle of NAME=HANDLE or HANDLE exists."""
    return _exists(_parted(value)[1])


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.exists(os.path.expanduser(path))
    if path.startswith(("http://", "https://")):
        return False
    import tensorflow as tf

    try:
        return tf.io.gfile.exists(path)
    except tf.errors.OpError:
        return False


def short_name(handle: str) -> str:
    """The last part of the path that is neither a number nor "module"."""
    if handle.startswith("https://"):
        handle = handle.partition("#")[0]  # the digest
    parts = [part for part in handle.split("/") if part]
    names = [part for part in parts if not part.isdigit() and part != "module"]
    name = (names or parts or [handle])[-1]
    return next(
        (name[: -len(end)] for end in (".tar.gz", ".tgz", ".tar") if name.endswith(end)), name
    )

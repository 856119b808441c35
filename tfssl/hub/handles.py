"""Names of modules in tables, from their handles."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable

from tfssl.errors import UserError


def named(values: Iterable[str]) -> dict[str, str]:
    """{name to show: handle} of --module's values, NAME=HANDLE or HANDLE, in their order.

    Existing paths take precedence: a folder `lr=0.1/module/4` is that folder and not one named lr,
    and values that form an existing path when joined by commas are one handle
    (`lr=0.1,wd=0/module/4`), the longest that exists. A * in the last part of a path stands for all
    modules in a folder, in the order of their numbers: runs/a/module/*.
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
        for own_name, own_handle in _expanded(name, handle):
            names.append(own_name)
            handles.append(own_handle)
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


def _expanded(name: str | None, handle: str) -> list[tuple[str | None, str]]:
    """The modules that a * stands for, called by what they have in common and what they have not;
    another handle alone.

    Raises:
      UserError: there are none.
    """
    folder, last = os.path.split(handle)
    if "*" not in last or "://" in handle or _exists(handle):
        return [(name, handle)]
    parent = os.path.expanduser(folder or ".")
    found = [
        entry
        for entry in (os.listdir(parent) if os.path.isdir(parent) else [])
        if fnmatch.fnmatchcase(entry, last.replace("[", "[[]"))
        and os.path.exists(os.path.join(parent, entry, "saved_model.pb"))
    ]
    if not found:
        raise UserError(f"--module={handle}: no module there (tfssl-export --all_steps makes them)")
    found.sort(key=lambda entry: [int(n) for n in re.findall(r"\d+", entry)] or [1 << 62])
    common = name or short_name(folder or handle)
    return [(f"{common}/{entry}", os.path.join(folder, entry)) for entry in found]


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

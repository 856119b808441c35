"""What modules are called in tables: their names, from their handles."""

from tfssl.errors import UserError


def named(values):
    """{name to show: handle} of --module's values, NAME=HANDLE or HANDLE, in their order."""
    if not values:
        raise UserError(
            "--module is missing: name a folder that tfssl-export wrote, a .tar.gz of it, or an https handle"
        )
    names, handles = [], []
    for value in values:
        name, equals, handle = value.partition("=")
        named = equals and not set(name) & set("/:")  # an URL may hold a = further on
        names.append(name if named else None)
        handles.append(handle if named else value)
    short = [name or short_name(handle) for name, handle in zip(names, handles)]  # noqa: B905 (Python 3.9)
    shown = [names[i] or (s if short.count(s) == 1 else handles[i]) for i, s in enumerate(short)]
    if not all(handles):
        raise UserError(f"--module={','.join(values)}: a handle is empty")
    if len(set(shown)) < len(shown):
        raise UserError(f"--module={','.join(values)}: two modules have one name; give NAME=HANDLE")
    return dict(zip(shown, handles))  # noqa: B905 (Python 3.9)


def short_name(handle):
    """What tells modules apart at a glance: the last part of the path that is neither a number nor "module"."""
    parts = [part for part in handle.split("/") if part]
    telling = [part for part in parts if not part.isdigit() and part != "module"]
    name = (telling or parts or [handle])[-1]
    return next((name[: -len(end)] for end in (".tar.gz", ".tgz", ".tar") if name.endswith(end)), name)

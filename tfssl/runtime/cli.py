"""What the command-line binaries share: flagfiles, `--help`, and errors that are one line.

Imports no TensorFlow, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import logging as std_logging
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, overload

from absl import app, flags, logging

from tfssl.config import bounds, data_flags
from tfssl.errors import UserError, one_line
from tfssl.runtime import console
from tfssl.runtime.watchdog import STATUS, WATCHDOG, Stopped
from tfssl.storage import files

_SECTIONS: dict[
    str, list[str]
] = {}  # name of a section -> names of its flags, in the order of definition


def run(
    main: Callable[[list[str]], None],
    name: str,
    define: Callable[[Sequence[str]], None] | None = None,
    goes_on: str | None = None,
) -> None:
    """Parse the command line, call `main(argv)`, and turn user errors into `name: cause and
    remedy`, exit status 1.

    Args:
      main: what the command does.
      name: of the command.
      define: called with the command line to define its flags, which may depend on it (see `peek`);
        None: they are there.
      goes_on: what the same command does after SIGTERM or SIGHUP, for the user; these then end the
        process by a line, with status 75. None: they kill it.
    """
    console.outlive()
    if goes_on:
        WATCHDOG.heed(name, goes_on)
    # Level 3 hides what TensorFlow prints about absent CUDA libraries; set the variable to 0 to see
    # everything.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.WARNING)
    for logger in (logging.get_absl_logger(), std_logging.getLogger("tensorflow")):
        logger.addFilter(_is_for_users)

    def parse(argv: list[str]) -> list[str]:
        if define:
            define(argv)
        if any(a in ("--help", "-help", "--helpshort", "-h") for a in argv[1:]):
            with contextlib.suppress(BrokenPipeError):  # --help | head
                print(usage(name, sys.modules[main.__module__].__doc__), flush=True)
            os._exit(0)
        bounds.apply()
        data_flags.expand_homes()
        try:
            positional = flags.FLAGS(expand_flagfiles(argv))
        except ValueError as e:
            if "does not take an argument" not in str(e):
                raise
            raise UserError(f"{one_line(e)}: give --NAME=false, or --noNAME alone") from e
        if len(positional) > 1:
            raise UserError(
                f"unexpected argument {positional[1]!r}: every setting is a flag, --name=value "
                "(see --help)"
            )
        return positional

    def guarded_main(argv: list[str]) -> None:
        try:
            _import_tensorflow()
            main(argv)
            WATCHDOG.disarm()
        except (UserError, flags.Error) as e:
            _fail(name, e, getattr(e, "status", 1))
        except KeyboardInterrupt:
            _fail(name, f"interrupted; {goes_on}" if goes_on else "interrupted", status=130)
        except Exception as e:
            from tfssl.runtime import failures

            _fail(name, failures.explain(e, getattr(flags.FLAGS, "workdir", None)))

    def guarded_parse(argv: list[str]) -> list[str]:
        try:
            return parse(argv)
        except (UserError, flags.Error) as e:
            _fail(name, e)
        except Exception as e:
            from tfssl.runtime import failures

            _fail(name, failures.explain(e))

    try:
        app.run(guarded_main, flags_parser=guarded_parse)
    except Stopped as told:
        _fail(name, told)


def _is_for_users(record: std_logging.LogRecord) -> bool:
    """Not so Keras's lines about a function of its own that needs no AutoGraph, and about callbacks
    that take longer than a short step."""
    text = record.getMessage()
    return (
        "create_autocast_variable" not in text and "is slow compared to the batch time" not in text
    )


def _import_tensorflow() -> None:
    """Import TensorFlow without the lines that newer ones print at import, whatever the log level
    is."""
    # A million objects, all of which stay: looking through them again and again takes a tenth of
    # the import,
    gc.disable()
    try:
        with _routine_hidden():
            import tensorflow  # noqa: F401
    finally:
        gc.freeze()  # and of the tracing that follows.
        gc.enable()


@contextlib.contextmanager
def _routine_hidden() -> Iterator[None]:
    """Keep from stderr the lines that TensorFlow's library logs, unless TF_CPP_MIN_LOG_LEVEL asks
    for them."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":
        yield
        return
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            routine = re.compile(
                r"[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before"
            )
            for line in caught.read().decode(errors="replace").splitlines():
                if not routine.match(line):
                    print(line, file=sys.stderr)


def _fail(name: str, error: object, status: int = 1) -> NoReturn:
    WATCHDOG.disarm()
    if WATCHDOG.stopped:  # also where TensorFlow has made another error of it
        error, status = WATCHDOG.last_words(), STATUS
    sys.stdout.flush()
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(status)


@overload
def peek(argv: Sequence[str], name: str, default: str) -> str: ...


@overload
def peek(argv: Sequence[str], name: str, default: None = None) -> str | None: ...


def peek(argv: Sequence[str], name: str, default: str | None = None) -> str | None:
    """The text that a command line gives a flag, before any flag is defined; flagfiles are looked
    into, and the last one counts.

    A class of the user's own, such as --task=mypackage.mytask:MyTask, has flags that cannot be
    defined before its name is known.

    Raises:
      UserError: a flagfile cannot be read.
    """
    value, arguments = default, iter(expand_flagfiles(argv[1:]))
    for argument in arguments:
        if argument == "--":
            break
        option, equals, text = argument.partition("=")
        if option in (f"--{name}", f"-{name}"):
            value = text if equals else next(arguments, default)
    return value


def peek_all(argv: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """{name: text} of those flags that the command line gives; see `peek`."""
    found = ((name, peek(argv, name)) for name in names)
    return {name: text for name, text in found if text is not None}


def expand_flagfiles(argv: Sequence[str], folder: str = "") -> list[str]:
    """The argument list with each `--flagfile=F` replaced by the flags in F.

    F is a path (a nested one is looked up beside the file that includes it) or
    `tfssl:PAPER/NAME.flags`, one of those that are installed with tfssl. Later flags override
    earlier ones; lines that begin with # are comments.
    """
    expanded = _expand(list(argv), folder, ())
    for arg in expanded:
        # Bytes that are no UTF-8 arrive as halves of characters, which nothing can encode.
        if "\0" in arg or arg != arg.encode(errors="replace").decode():
            raise UserError(f"{arg!r}: not text in UTF-8; write, or rename, it in UTF-8")
    return expanded


def _expand(args: Sequence[str], folder: str, including: tuple[str, ...]) -> list[str]:
    expanded: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*expanded, arg, *rest]
        option, equals, value = arg.partition("=")
        if option not in ("--flagfile", "-flagfile"):
            expanded.append(arg)
            continue
        path = _find_flagfile(value if equals else next(rest, ""), folder)
        if path in including:
            raise UserError(f"flagfile {path} includes itself: {' -> '.join([*including, path])}")
        lines = [line.strip() for line in _read(path).splitlines()]
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        expanded += _expand(lines, os.path.dirname(path), (*including, path))
    return expanded


def _read(path: str) -> str:
    try:
        if "://" not in path:
            with open(path, "rb") as f:
                content = f.read()
        else:
            import tensorflow as tf

            with tf.io.gfile.GFile(path, "rb") as f:
                content = f.read()
        return content.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as e:
        raise UserError(
            f"flagfile {path} is not text in UTF-8: save it as UTF-8, or as ASCII"
        ) from e
    except files.errors() as e:
        raise UserError(f"flagfile {path} cannot be read: {one_line(e)}") from e


def _find_flagfile(value: str, folder: str) -> str:
    remote = (
        value
        if "://" in value
        else f"{folder}/{value}"
        if "://" in folder and not os.path.isabs(value)
        else None
    )
    if remote and not value.startswith("tfssl:"):
        import tensorflow as tf

        if not tf.io.gfile.exists(remote):
            raise UserError(f"no flagfile {remote!r}")
        return remote
    if value.startswith("tfssl:"):
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        roots = [
            os.path.join(package, "flags"),
            os.path.join(os.path.dirname(package), "flags"),
        ]  # a wheel's, a clone's
        candidates = [os.path.join(root, value[len("tfssl:") :]) for root in roots]
    else:
        candidates = [os.path.abspath(os.path.join(folder, os.path.expanduser(value)))]
    for path in candidates:
        if os.path.isfile(path):
            return path
    hint = ""
    if value.startswith("tfssl:"):
        found = sorted(
            os.path.relpath(os.path.join(d, f), root)
            for root in roots
            for d, _, files in os.walk(root)
            for f in files
            if f.endswith(".flags")
        )
        near = difflib.get_close_matches(value[len("tfssl:") :], found, 3, 0.8)
        hint = f"; installed: {', '.join(dict.fromkeys(near or found)) or 'none'}"
        hint += ", ..." if near else ""
    raise UserError(f"no flagfile {value!r} (looked for {' and '.join(candidates)}){hint}")


def define_switch(name: str, default: bool | str | None, words: Sequence[str], text: str) -> None:
    """A boolean flag, --NAME or --noNAME, that also takes some words: --NAME=WORD."""
    flags.DEFINE_flag(flags.Flag(_Switch(words), None, name, default, text, boolean=True))


class _Switch(flags.BooleanParser):
    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self._words = words

    def parse(self, argument: str | bool | int) -> bool | str | None:  # type: ignore[override]
        if argument in self._words:
            return str(argument)
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"choose one of true, false, {', '.join(self._words)}") from error


class section(contextlib.ContextDecorator):
    """`with section("Data"): flags.DEFINE_...` puts the flags under one heading of `--help`;
    `@section("Data")` those of a function."""

    def __init__(self, heading: str) -> None:
        self.heading = heading

    def __enter__(self) -> None:
        self.before = set(flags.FLAGS)

    def __exit__(self, *exception: object) -> None:
        mine = [name for name in flags.FLAGS._flags() if name not in self.before]
        _SECTIONS.setdefault(self.heading, []).extend(mine)


def defined_flags() -> list[str]:
    """Names of the flags of all sections, in the order of `--help`."""
    return [name for names in _SECTIONS.values() for name in names]


def usage(name: str, description: str | None) -> str:
    """The text of `--help`: the binary's docstring, then its flags by section, each with its
    default."""
    lines = [
        (description or "").strip(),
        "",
        f"{name} takes --name=value flags, and --flagfile=FILE for a file of them.",
        "",
    ]
    for heading, names in _SECTIONS.items():
        lines += [heading, ""]
        for flag in (flags.FLAGS[n] for n in names):
            default = "" if flag.default is None else f"={flag.serialize()[len(flag.name) + 3 :]}"
            if flag.boolean and flag.default is not None:
                default = f"={str(flag.default).lower()}"
            lines.append(f"  --{flag.name}{default}")
            lines += textwrap.wrap(
                flag.help,
                110,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
        lines.append("")
    return "\n".join(lines)

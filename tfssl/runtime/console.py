"""The screen that a process writes to can go away before the process does: `| head`, a closed
terminal, an ended ssh session."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast


def outlive() -> None:
    """From here on what is printed to a closed pipe or terminal is lost, and nothing else."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed before the process began
        return open(os.devnull, "w", encoding="utf-8")
    return stream if isinstance(stream, _Stream) else cast(TextIO, _Stream(stream))


class _Stream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as e:
            self._gone(e)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            self._gone(e)

    def _gone(self, error: OSError) -> None:
        """Go on into nothing, with what waits in the buffer too."""
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that was hung up
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

"""The screen that a process writes to can go away before the process does: `| head`, a closed terminal, an ended ssh session."""

import errno
import os
import sys


def outlive():
    """From here on what is printed to a closed pipe or terminal is lost, and nothing else."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream):
    if stream is None:  # closed before the process began
        return open(os.devnull, "w", encoding="utf-8")
    return stream if isinstance(stream, _Stream) else _Stream(stream)


class _Stream:
    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            return self._stream.write(text)
        except OSError as e:
            self._gone(e)
            return len(text)

    def flush(self):
        try:
            self._stream.flush()
        except OSError as e:
            self._gone(e)

    def _gone(self, error):
        """Go on into nothing, with what waits in the buffer too."""
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that was hung up
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

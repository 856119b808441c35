"""A thread that sees to it that a process says when it stands still, and ends when it is told to,
whatever it is doing.

SIGTERM and SIGHUP raise `Stopped` in the main thread, so that what is unfinished is removed on the
way out, as after any error; while a model is fitted, `tfssl.runtime.preemption` saves first.
Python's handlers of signals run between two instructions of the main thread. They wait as long as
that thread waits within TensorFlow: for an image that does not come, for other hosts, for a disk.
The thread of this module is told by the C library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

STATUS = 75  # sysexits.h calls it EX_TEMPFAIL: try again later
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SILENCE = 60  # seconds without progress after which that is told
GRACE = 8  # seconds to end in, after a signal that Python has a handler for


class Stopped(BaseException):
    """A signal told this process to stop. Not an `Exception`: nothing that handles errors keeps
    it."""


def heard() -> list[signal.Signals]:
    """Those of SIGNALS that are not ignored, as SIGHUP is under nohup."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


class Watchdog:
    """What the main thread tells of its progress, and the thread, once it is started."""

    def __init__(self) -> None:
        self._name, self._armed = os.path.basename(sys.argv[0]), False
        self._goes_on: str | None = None
        self.stopped: str | None = None  # name of the signal that raised `Stopped`
        self._doing: str | None = None
        self._saved: int | None = None  # step
        self._since = self._shown = time.monotonic()
        self._usual: dict[str | None, float] = {}  # what it was doing -> seconds that this takes
        self._told: list[int] = []  # signals
        self._thread: threading.Thread | None = None
        self._said = False  # why the process ends

    def heed(self, name: str, goes_on: str) -> None:
        """SIGTERM and SIGHUP raise `Stopped` in the main thread from now on, the first one, until
        `disarm`; and the watch begins.

        Args:
          name: of the binary.
          goes_on: what the same command does after a stop, for the user: "the same command ...".
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._name, self._goes_on, self._armed, self.stopped = name, goes_on, True, None
        for number in heard():
            if signal.getsignal(number) in (
                signal.SIG_DFL,
                self._stop,
            ):  # Ctrl-C raises KeyboardInterrupt
                signal.signal(number, self._stop)
        self.start()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed, self.stopped = False, signal.Signals(number).name
            raise Stopped(self.last_words())

    def last_words(self) -> str:
        """The line that a stopped process ends with."""
        return f"{self.stopped}: stopped; {self._goes_on}"

    def disarm(self) -> None:
        """The process is about to end, and says or has said why: signals end it later, if it does
        not."""
        self._armed, self._said = False, True

    def start(self) -> None:
        """Begin to watch; of several calls the first counts. From now on a signal that has a
        handler in Python ends the process, at the latest `GRACE` seconds later, or where the steps
        and saves of a run take long, twice what they take."""
        if self._thread is not None or threading.current_thread() is not threading.main_thread():
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._thread = threading.Thread(
            target=self._watch, args=(read,), name="watchdog", daemon=True
        )
        self._thread.start()

    def progress(self, doing: str | None) -> None:
        """Something came to its end; `doing`: what comes next; None: nothing that is watched."""
        now = time.monotonic()
        if doing == self._doing:
            self._took(doing, now - self._since)
        self._doing, self._since, self._shown = doing, now, now

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Progress to `doing`, and then back to what was being done before."""
        before, begun = self._doing, time.monotonic()
        self.progress(doing)
        try:
            yield
        finally:
            self._took(doing, time.monotonic() - begun)
            self.progress(None)
            self.progress(before)

    def _took(self, doing: str | None, seconds: float) -> None:
        self._usual[doing] = min(
            seconds, 2 * self._usual.get(doing, seconds)
        )  # a standstill is not usual

    def saved(self, step: int, stopping: bool = False) -> None:
        """The state after `step` is on the disk; `stopping`: because of a signal, and the process
        is about to end."""
        self._saved, self._said = step, stopping

    def _watch(self, pipe: int) -> None:
        deadline = None
        while True:
            if select.select([pipe], [], [], 0.5)[0]:
                for number in os.read(pipe, 64):
                    if number in SIGNALS:
                        self._told.append(number)
                        now = time.monotonic()
                        deadline = min(
                            deadline or now + self._grace(),
                            now + (1 if self._told.count(number) > 1 else 1e9),
                        )
            now = time.monotonic()
            if deadline and now > deadline:
                self._end()
            if (
                self._doing
                and not self._told
                and now - self._shown > max(SILENCE, 10 * self._usual.get(self._doing, 0))
            ):
                self._shown = now
                self._say(f"no progress for {now - self._since:.0f} s, {self._doing}")

    def _grace(self) -> float:
        usual = sum(
            seconds for doing, seconds in self._usual.items() if doing in (TRAINING, SAVING)
        )
        return max(GRACE, 2 * usual)

    def _end(self) -> None:
        name = signal.Signals(self._told[0]).name
        if not self._said and self._goes_on and self._doing is None and not self._saved:
            self.stopped = name
            self._say(self.last_words())
        elif not self._said:
            kept = (
                f"step {self._saved} is saved, and the same command goes on from there"
                if self._saved
                else "nothing was saved before"
            )
            self._say(
                f"{name}: ended without another save, {self._doing or 'after training'}; {kept}"
            )
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(130 if self._told[0] == signal.SIGINT and self._saved is None else STATUS)

    def _say(self, text: str) -> None:
        os.write(2, f"{self._name}: {text}\n".encode())


TRAINING, SAVING = "waiting for a training step or its images", "saving"
WATCHDOG = Watchdog()  # of this process, as its signals are

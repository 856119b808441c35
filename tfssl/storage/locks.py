"""One process, one folder: a lock file that says who is at work, and that nobody is once its
process is gone."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TypedDict, cast

from tfssl.errors import UserError, one_line
from tfssl.storage import files

HEARTBEAT = 30  # seconds between signs of life
EXPIRES = 300  # seconds without one, after which a process of another machine counts as gone
SETTLE = 1.0  # seconds until a remote file system shows who of two wrote last

_held: dict[str, tuple[int, _Lock]] = {}  # lock file -> (process number, Lock), of this process


class _Owner(TypedDict, total=False):
    """What a lock file says of the process that holds it; anything may be missing from what another
    version wrote."""

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    start: int | None
    since: str
    command: str
    nonce: str


class Busy(UserError):
    """A living process holds the lock, or one that may be alive."""


@contextlib.contextmanager
def workdir_lock(workdir: str, steal: bool = False) -> Iterator[Callable[[], None]]:
    """Nobody else writes into a run's folder while the context lasts: `with workdir_lock(path,
    FLAGS.steal_lock) as check:`.

    Taken twice by one process it is one lock. A lock whose process is gone is taken over: on this
    machine by the process's number and start time, on another one after EXPIRES seconds without a
    sign of life.

    Args:
      workdir: the folder, local or remote; made where there is none.
      steal: take the lock over whoever holds it.

    Yields:
      A function (): raises a `UserError` if another process has taken the lock over. Call it before
      something is written that must not be written twice.

    Raises:
      UserError: another process is at work there, or may be; or no lock can be written.
    """
    remedy = (
        "use another --workdir, or let --steal_lock take it over: its process then ends before it "
        "writes again"
    )
    with hold(os.path.join(workdir, "lock"), repr(str(workdir)), remedy, steal) as check:
        files.sweep(workdir)
        yield check


@contextlib.contextmanager
def hold(path: str, name: str, remedy: str, steal: bool = False) -> Iterator[Callable[[], None]]:
    """The same for any lock file: `name` is what it stands for and `remedy` what else can be done,
    for the message."""
    key = os.path.realpath(path) if files.is_local(path) else path
    held = _held.get(key)
    if held and held[0] == os.getpid():
        yield held[1].check
        return
    lock = (_Local if files.is_local(path) else _Remote)(path, name, remedy)
    try:
        lock.take(steal)
    except files.errors() as e:
        raise UserError(f"{name} cannot be locked: {path} cannot be written ({one_line(e)})") from e
    _held[key] = os.getpid(), lock
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, stop), daemon=True)
    heart.start()
    try:
        yield lock.check
    finally:
        stop.set()
        heart.join()
        del _held[key]
        with contextlib.suppress(*files.errors()):
            lock.release()


def _beat(lock: _Lock, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(*files.errors()):
            lock.beat()


class _Lock:
    def __init__(self, path: str, name: str, remedy: str) -> None:
        self.path, self.name, self.remedy = path, name, remedy
        self.me: _Owner = {
            "host": socket.gethostname(),
            "machine": _first_line("/etc/machine-id"),
            "boot": _first_line("/proc/sys/kernel/random/boot_id"),
            "namespace": _link("/proc/self/ns/pid"),
            "pid": os.getpid(),
            "start": _start(os.getpid()),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "command": " ".join(map(shlex.quote, sys.argv))[:300],
            "nonce": uuid.uuid4().hex,
        }

    def owner(self) -> _Owner:
        """What the file says."""
        raise NotImplementedError

    def take(self, steal: bool) -> None:
        """Refuse, or own the file."""
        raise NotImplementedError

    def beat(self) -> None:
        """A sign of life."""
        raise NotImplementedError

    def release(self) -> None:
        """Remove the file if it is still our own."""
        raise NotImplementedError

    def text(self) -> bytes:
        return (json.dumps(self.me, indent=1) + "\n").encode()

    def check(self) -> None:
        try:
            owner = self.owner()
        except files.errors():
            return  # gone, or not to be read just now: nobody has taken it over
        if owner.get("nonce", self.me["nonce"]) != self.me["nonce"]:
            raise UserError(
                f"{self.name} was taken over by {_describe(owner)}: this process ends and writes "
                "no more"
            )

    def judge(self, owner: _Owner, silent: float) -> None:
        """Refuse unless the owner is gone; `silent`: seconds since its last sign of life."""
        alive = _alive(owner, self.me)
        if alive or (alive is None and silent < EXPIRES):
            unsure = (
                f", whose last sign of life was {max(0, silent):.0f} s ago (after {EXPIRES} s it "
                "counts as gone)"
                if alive is None
                else ""
            )
            raise Busy(f"{self.name} is in use by {_describe(owner)}{unsure}: {self.remedy}")


class _Local(_Lock):
    def owner(self) -> _Owner:
        with open(self.path, "rb") as f:
            return _parse(f.read())

    def take(self, steal: bool) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        # No name that `files.sweep` removes: whoever gets the lock sweeps while others still ask
        # for it.
        mine = f"{self.path}.{files.unique()}.new"
        try:
            with open(mine, "xb") as f:
                f.write(self.text())
                f.flush()
                os.fsync(f.fileno())
            while not (self._create(mine) or self._replace(mine, steal)):
                pass
        finally:
            files.remove(mine)

    def _create(self, mine: str) -> bool:
        try:
            os.link(mine, self.path)  # in one step, with all that is in it
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with open(descriptor, "wb") as f:
                f.write(self.text())
            return True

    def _replace(self, mine: str, steal: bool) -> bool:
        """Whether the lock of a process that is gone became ours; False: it vanished or changed, so
        try anew."""
        with self._guarded() as f:
            if f is None:
                return False
            owner, stat = _parse(f.read()), os.fstat(f.fileno())
            if not steal and not (owner.get("pid") == self.me["pid"] and _alive(owner, self.me)):
                self.judge(owner, os.stat(mine).st_mtime - stat.st_mtime)
            os.replace(mine, self.path)
            return True

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[IO[bytes] | None]:
        """The lock file, open, while no other process replaces or removes it; None where it is not
        there."""
        try:
            f = open(self.path, "rb")
        except FileNotFoundError:
            yield None
            return
        with f:
            with contextlib.suppress(
                OSError, ImportError
            ):  # where files cannot be locked, the race of two starts is not excluded
                import fcntl

                fcntl.flock(f, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(f.fileno()), os.stat(self.path))
            except FileNotFoundError:
                same = False
            yield f if same else None

    def beat(self) -> None:
        with self._guarded() as f:
            if f and _parse(f.read()).get("nonce") == self.me["nonce"]:
                os.utime(self.path)

    def release(self) -> None:
        with self._guarded() as f:
            if f and _parse(f.read()).get("nonce") == self.me["nonce"]:
                os.remove(self.path)


class _Remote(_Lock):
    """Where nothing is created if and only if it is absent: written, and read again after a
    while."""

    def owner(self) -> _Owner:
        import tensorflow as tf

        with tf.io.gfile.GFile(self.path, "rb") as f:
            return _parse(f.read())

    def take(self, steal: bool) -> None:
        import tensorflow as tf

        if not steal and tf.io.gfile.exists(self.path):
            mine = files.temporary(self.path)
            files.write_file(mine, self.text())
            now, then = (tf.io.gfile.stat(path).mtime_nsec / 1e9 for path in (mine, self.path))
            files.remove(mine)
            self.judge(self.owner(), now - then)
        files.write_file(self.path, self.text())
        time.sleep(SETTLE)
        self.check()

    def beat(self) -> None:
        if self.owner().get("nonce") == self.me["nonce"]:
            files.write_file(self.path, self.text())

    def release(self) -> None:
        if self.owner().get("nonce") == self.me["nonce"]:
            files.remove(self.path)


def _alive(owner: _Owner, me: _Owner) -> bool | None:
    """Whether the process of a lock is alive; None where that cannot be known from here."""
    if owner.get("host") != me["host"]:
        return None
    if owner.get("boot") != me["boot"]:
        return False if me["machine"] and owner.get("machine") == me["machine"] else None
    if owner.get("namespace") != me["namespace"] or not isinstance(owner.get("pid"), int):
        return None
    if me["start"]:
        return _start(owner["pid"]) == owner.get("start")
    try:  # no /proc here
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _start(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None if there is no such process, or it has
    ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            state, *fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else int(fields[18])


def _describe(owner: _Owner) -> str:
    if "pid" not in owner:
        return "a process that did not say which it is"
    return (
        f"process {owner['pid']} on {owner.get('host')} since {owner.get('since')} "
        f"({owner.get('command')})"
    )


def _parse(content: bytes) -> _Owner:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return cast(_Owner, owner) if isinstance(owner, dict) else {}


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as f:
            return f.readline().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

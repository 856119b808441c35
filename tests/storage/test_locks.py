"""One process, one folder; and no process that is gone keeps another one out."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tfssl.errors import UserError
from tfssl.storage import files, locks
from tfssl.storage.locks import workdir_lock

HOLD = """
import sys
from tfssl.errors import UserError
from tfssl.storage.locks import workdir_lock
sys.stdin.readline()
try:
    with workdir_lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as e:
    print(e, flush=True)
"""


def start(folder):
    """A process that takes the lock when it gets a line, says so, and gives it back at the next
    line."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def other(tmp_path):
    process = start(tmp_path)
    tell(process)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_is_there(other, tmp_path):
    said = (
        rf"is in use by process {other.pid} on .* since 20.* \(.*\): .*--workdir, or let "
        rf"--steal_lock"
    )
    with pytest.raises(UserError, match=said), workdir_lock(str(tmp_path)):
        pass
    tell(other)
    assert other.wait(20) == 0
    with workdir_lock(str(tmp_path)):
        assert os.listdir(tmp_path) == ["lock"]
    assert not os.listdir(tmp_path)


def test_a_killed_process_keeps_nobody_out(other, tmp_path):
    other.send_signal(signal.SIGKILL)
    os.waitid(
        os.P_PID, other.pid, os.WEXITED | os.WNOWAIT
    )  # dead, and its parent has not asked for its status: a zombie
    assert (tmp_path / "lock").exists()
    with workdir_lock(str(tmp_path)):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_of_several_that_find_a_dead_lock_one_gets_it(tmp_path):
    lock(tmp_path, pid=1 << 22)  # above the kernel's highest
    several = [start(tmp_path) for _ in range(3)]
    for process in several:
        tell(process)
    said = [process.stdout.readline() for process in several]
    for process in several:
        process.communicate("\n")
    assert said.count("held\n") == 1 and sum("is in use" in line for line in said) == 2, said


def test_who_gets_it_sweeps_and_takes_nothing_from_those_who_still_ask(tmp_path, monkeypatch):
    create = locks._Local._create

    def swept(self, mine):
        files.sweep(str(tmp_path))
        return create(self, mine)

    monkeypatch.setattr(locks._Local, "_create", swept)
    lock(tmp_path, host="elsewhere")
    with pytest.raises(UserError, match="is in use by process"), workdir_lock(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == ["lock"]


def lock(folder, silent=0, **other):
    """The lock of a process like this one, but for `other`, that gave its last sign of life
    `silent` seconds ago."""
    me = locks._Local(str(folder / "lock"), "", "").me
    (folder / "lock").write_text(json.dumps({**me, **other}))
    os.utime(folder / "lock", (time.time() - silent,) * 2)


def test_a_number_that_went_to_another_process_is_not_the_owner(tmp_path):
    lock(tmp_path, pid=os.getppid(), start=5)
    with workdir_lock(str(tmp_path)):
        pass


def test_a_reboot_of_this_machine_frees_it(tmp_path, monkeypatch):
    read = locks._first_line
    monkeypatch.setattr(locks, "_first_line", lambda path: "m" if "machine" in path else read(path))
    lock(tmp_path, boot="earlier", pid=1)
    with workdir_lock(str(tmp_path)):
        pass


@pytest.mark.parametrize("owner", [{"host": "elsewhere"}, {"namespace": "pid:[1]", "pid": 1}, None])
def test_what_cannot_be_known_from_here_is_refused_while_it_gives_signs_of_life(owner, tmp_path):
    """Another machine, another container, a lock that says nothing."""
    for silent, text in (
        (100, r"last sign of life was 1\d\d s ago.*--steal_lock"),
        (locks.EXPIRES + 1, None),
    ):
        lock(tmp_path, **(owner or {}))
        if owner is None:
            (tmp_path / "lock").write_text("")
        os.utime(tmp_path / "lock", (time.time() - silent,) * 2)
        if text:
            with pytest.raises(UserError, match=text), workdir_lock(str(tmp_path)):
                pass
            assert (tmp_path / "lock").exists()
        else:
            with workdir_lock(str(tmp_path)):
                pass


def test_signs_of_life_are_given_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    with workdir_lock(str(tmp_path)):
        os.utime(tmp_path / "lock", (1, 1))
        deadline = time.monotonic() + 20
        while (tmp_path / "lock").stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_who_lost_the_lock_is_told_and_leaves_the_thiefs_alone(scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE", 0)
    workdir = f"{scheme}{tmp_path}"
    with workdir_lock(workdir) as check:
        check()
        lock(tmp_path, host="elsewhere", nonce="another", pid=77)
        with pytest.raises(UserError, match="was taken over by process 77 on elsewhere"):
            check()
    assert (tmp_path / "lock").exists()
    with pytest.raises(UserError, match="process 77 on elsewhere"), workdir_lock(workdir):
        pass
    with workdir_lock(workdir, steal=True) as check:
        check()
    assert not (tmp_path / "lock").exists()


def test_it_is_released_after_errors_and_one_process_may_take_it_twice(tmp_path):
    with pytest.raises(KeyError), workdir_lock(str(tmp_path)):
        with workdir_lock(str(tmp_path)):
            pass
        assert (tmp_path / "lock").exists()
        raise KeyError
    assert not (tmp_path / "lock").exists()


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted"))
    )
    with workdir_lock(str(tmp_path)):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock(tmp_path, pid=1 << 22)
    with workdir_lock(str(tmp_path)):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be locked"), workdir_lock(str(tmp_path / "file")):
        pass

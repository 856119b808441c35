"""Whatever befalls a run, it ends as the undisturbed one, or says in one line why it cannot.

Of the fault matrix, each kind at one moment; all of it: `python tests/faults.py`. The rest here is
slow: `make test-slow`.
"""

import random
import re
import shutil
import signal

import faults
import pytest
from runs import (
    TINY,
    assert_identical,
    command,
    kill_when,
    logged,
    logged_steps,
    two_devices,
    weights,
)

CELLS = [
    (moment, kind)
    for i, moment in enumerate(faults.MOMENTS)
    for j, kind in enumerate(faults.KINDS)
    if (i + j) % len(faults.MOMENTS) == 0
]
STEPS = 60
FLAGS = (*TINY, f"--train_steps={STEPS}", "--checkpoint_steps=7", "--log_steps=1")


def train(*arguments, first=None):
    done = command("train", *arguments, first=first)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(("moment", "kind"), CELLS)
def test_a_cell_of_the_matrix(moment, kind, bench):
    if kind in faults.MOUNTED and not faults.permitted():
        pytest.skip("needs a file system of its own, which this process may not mount")
    wrong, said = bench.cell(moment, kind)
    assert wrong is None, said


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 30, 300])
def test_an_outage_is_told_within_a_minute_and_trains_on_no_copies(seconds, bench):
    _, away, said, ended, copies, end, _ = (
        cell.strip() for cell in bench.outage(seconds).split("|")
    )
    assert (seconds == 2 and said.startswith("not met")) or float(said.removesuffix(" s")) < 60
    assert copies == "0 of 1200" and end == "equal, bit for bit"
    assert (
        ended == "went on"
        if seconds < 40
        else 39 <= float(ended.split()[3]) - float(said.removesuffix(" s")) < 60
    )


@pytest.fixture(scope="module")
def damaged(photos, tmp_path_factory):
    """The photos, one in ten of them broken in one way or another."""
    folder = tmp_path_factory.mktemp("damaged") / "photos"
    shutil.copytree(photos, folder)
    files = sorted(folder.rglob("*.jpg"))
    content = files[3].read_bytes()
    for path, broken in zip(
        files[3::10], [content[:200], b"", b"no image", content[:2], b"\x89PNG\r\n" + content]
    ):
        path.write_bytes(broken)
    return folder


@pytest.mark.slow
def test_twenty_kills_and_a_tenth_of_the_files_broken(damaged, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, _, err = train(f"--dataset=folder:{damaged}", f"--workdir={whole}", *FLAGS)
    assert status == 0 and "skipped unreadable" in err, err

    chance = random.Random(0)
    arguments = (f"--dataset=folder:{damaged}", f"--workdir={killed}", *FLAGS)
    reached = 0
    for kill in range(20):
        # Three steps later each time, and up to three more: before, while and after something is
        # saved.
        status, _ = kill_when(arguments, f"step {3 * kill + 1}/", delay=chance.uniform(0, 0.15))
        assert status == -signal.SIGKILL
        kept = [int(p.stem[len("ckpt-") :]) for p in (killed / "checkpoints").glob("*.index")]
        assert max(kept, default=0) >= reached, "a saved step was lost"
        reached = max(kept, default=0)
    status, out, _ = train(*arguments)
    assert status == 0 and f"resuming at step {reached}" in out
    assert_identical(weights(killed, STEPS), weights(whole, STEPS))
    assert logged_steps(killed) == list(range(1, STEPS + 1))
    for mine, other in zip(logged(killed), logged(whole)):
        assert (mine["step"], mine["loss"], mine["accuracy"]) == (
            other["step"],
            other["loss"],
            other["accuracy"],
        )


@pytest.mark.slow
def test_a_run_moves_between_one_replica_and_two(photos, tmp_path):
    arguments = (
        f"--dataset=folder:{photos}",
        *FLAGS[:-3],
        "--train_steps=24",
        "--log_steps=1",
        "--sync_batch_norm",
    )
    arguments += (
        "--learning_rate=0.002",
    )  # each step's loss tells its images; large steps would blow rounding errors up
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert train(f"--workdir={whole}", *arguments)[0] == 0
    arguments += (f"--workdir={moved}",)
    for awaited, first, strategy in (
        ("step 6/", two_devices, "mirrored"),
        ("step 14/", None, "default"),
    ):
        status, said = kill_when(
            [*arguments, f"--strategy={strategy}"], awaited, signal.SIGTERM, first=first
        )
        assert status == 75, said
    status, out, err = train(*arguments, "--strategy=mirrored", first=two_devices)
    assert status == 0 and re.search(r"resuming at step 1[4-9] of 24", out), err
    for mine, other in zip(logged(moved), logged(whole)):
        # Single precision, in which another order of summation makes a difference; in double the
        # test is exact (pretext/test_task.py).
        assert mine["loss"] == pytest.approx(other["loss"], rel=0.02), mine["step"]


@pytest.mark.slow
def test_nan_on_two_replicas(photos, tmp_path):
    run = tmp_path / "run"
    arguments = (f"--dataset=folder:{photos}", f"--workdir={run}", *FLAGS, "--strategy=mirrored")
    assert train(*arguments, "--train_steps=14", first=two_devices)[0] == 0
    # As a spike of the rate would: the flags of the run itself may not change, so its record does.
    record = run / "flags.flags"
    record.write_text(record.read_text().replace("--learning_rate=0.5", "--learning_rate=1e+30"))
    status, _, err = train(*arguments, "--learning_rate=1e30", first=two_devices)
    assert status == 1 and "Traceback" not in err
    assert (
        re.search(r"(at|after) step 1[5-9]", err.splitlines()[-1])
        and "last good checkpoint is step 14" in err
    )
    record.write_text(record.read_text().replace("--learning_rate=1e+30", "--learning_rate=0.5"))
    status, out, err = train(*arguments, "--train_steps=20", first=two_devices)
    assert status == 0 and "resuming at step 14" in out, err

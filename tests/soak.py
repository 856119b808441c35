"""A long run: does memory grow, do descriptors leak, and does a run that is stopped again and again
end as one that is not?

    python tests/soak.py --intervals=500 --restarts=20

Two trainings on the embedded data set, with validation, nearest-neighbor probe and a checkpoint in
each interval; the second is told to stop (SIGTERM) at random times and started again. Memory
(resident, MB) and open descriptors are read from /proc at each interval; the slope of memory is a
least-squares line over the intervals after the first fifth of the undisturbed run. Exit status 1
where it is 1 MB or more per 100 intervals, where descriptors grow, or where a tensor of the last
checkpoint or a logged value differs between the two. On Python 3.11, TensorFlow 2.15 leaves 48
bytes behind for every eager tensor (its issue 62551, mended for 3.12), some hundreds of them in
each checkpoint that it writes: what is ours shows on another Python.
"""

import argparse
import gc
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parent / "helpers"))
from runs import TINY, Forked, assert_identical, logged, weights  # noqa: E402

EVERY = 4  # steps in an interval


def arguments(workdir, intervals):
    """Flags of a run of so many intervals."""
    return (
        *TINY,
        "--dataset=glyphs",
        "--train_split=train[:256]",
        "--val_split=train[256:320]",
        "--knn_probe=5",
        f"--train_steps={intervals * EVERY}",
        f"--checkpoint_steps={EVERY}",
        f"--log_steps={EVERY}",
        "--learning_rate=0.02",
        f"--workdir={workdir}",
    )


def usual_collection():
    """Python looks for garbage as often as in a process of its own; in forked ones, which end soon,
    hardly ever."""
    gc.set_threshold(700, 10, 10)


def training(workdir, intervals):
    return Forked("train", *arguments(workdir, intervals), first=usual_collection)


def watch(run, workdir, stop_after=None):
    """Wait for a run, or tell it to stop at an interval: [(interval, MB, descriptors)], and the
    finished process."""
    rows, process = [], f"/proc/{run.process.pid}"
    while run.process.is_alive():
        with_lines = workdir / "metrics.jsonl"
        done = (
            sum('"validation_' in line for line in with_lines.open()) if with_lines.exists() else 0
        )
        if not rows or done > rows[-1][0]:
            try:
                pages = int(pathlib.Path(process, "statm").read_text().split()[1])
                rows.append(
                    (
                        done,
                        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                        len(os.listdir(f"{process}/fd")),
                    )
                )
            except (FileNotFoundError, ProcessLookupError):
                break
        if stop_after is not None and done >= stop_after:
            time.sleep(random.uniform(0, 0.5))
            if run.process.is_alive():
                os.kill(run.process.pid, signal.SIGTERM)
            stop_after = None
        time.sleep(0.05)
    return rows, run.finished()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--intervals", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=20)
    args = parser.parse_args()
    random.seed(0)
    begun, bad = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = pathlib.Path(folder, "whole"), pathlib.Path(folder, "stopped")
        rows, done = watch(training(whole, args.intervals), whole)
        assert done.returncode == 0, done.stderr
        steady = np.array([row for row in rows if row[0] >= args.intervals / 5])
        slope = 100 * np.polyfit(steady[:, 0], steady[:, 1], 1)[0]
        descriptors = steady[:, 2]
        resumed: list[int] = []
        restarts, stops = 0, sorted(random.sample(range(1, args.intervals), args.restarts))
        for stop in (*stops, None):
            _, done = watch(training(stopped, args.intervals), stopped, stop)
            restarts += done.returncode == 75
            resumed += map(int, re.findall(r"resuming at step (\d+)", done.stdout))
            if done.returncode not in (0, 75):
                bad.append(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        last = args.intervals * EVERY
        try:
            assert_identical(weights(stopped, last), weights(whole, last))
        except AssertionError as e:
            bad.append(f"tensors differ: {str(e).strip().splitlines()[:3]}")
        if _values(stopped, resumed) != _values(whole, resumed):
            bad.append("logged values differ")
    if slope >= 1:
        bad.append("memory grows")
    if np.ptp(descriptors) > 0 and descriptors[-1] > descriptors[0]:
        bad.append("descriptors grow")
    minutes, (first, held, _) = (time.monotonic() - begun) / 60, steady[0]
    print(
        f"{args.intervals} intervals, {restarts} restarts after SIGTERM, {minutes:.0f} minutes: "
        f"memory {held:.0f} MB at interval "
        f"{first:.0f}, {steady[-1, 1]:.0f} MB at the end, slope {slope:+.2f} MB per 100 intervals; "
        f"descriptors {descriptors.min():.0f} to {descriptors.max():.0f}; "
        f"{'; '.join(bad) or 'equal to the undisturbed run, bit for bit'}"
    )
    sys.exit(bool(bad))


def _values(workdir, resumed):
    """What was logged, without times, and without the means over intervals within which a run was
    resumed: those are of the steps from there on."""
    cut = {-(-step // EVERY) * EVERY for step in resumed if step % EVERY}
    lines = [
        {k: v for k, v in line.items() if k not in ("images_per_second", "input_wait")}
        for line in logged(workdir)
        if "loss" not in line or line["step"] not in cut
    ]
    return json.dumps(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    main()

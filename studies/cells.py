"""What studies of many encoders share.

A cell is commands that a user would give, and ends as a line of OUT/results.jsonl. What has a line
is not run again: the same command goes on where it was stopped, on another day or machine too, from
results.jsonl alone.
"""

import concurrent.futures
import functools
import json
import os
import shutil
import subprocess
import sys
import time


def read(out):
    """The lines of OUT/results.jsonl: list of dict."""
    path = os.path.join(out, "results.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f]


def run(cells, measure, out, hours=None, processes=1):
    """Measure cells that have no line yet.

    Args:
      cells: list of dicts of plain values, in the order that they are wanted.
      measure: function (cell, call) -> dict of results; `call` runs a command of tfssl on its share
        of the cores.
      out: folder; the cell, its results and its minutes become a line of results.jsonl.
      hours: begin no cell that would end after so long, by the time of the slowest so far; None:
        begin all.
      processes: cells side by side; small networks leave cores idle.
    """
    os.makedirs(out, exist_ok=True)
    done = read(out)
    waiting = [cell for cell in cells if not any(cell.items() <= line.items() for line in done)]
    print(f"{len(cells) - len(waiting)} cells are done, {len(waiting)} to do", flush=True)
    begun, slowest, call = time.time(), 0.0, functools.partial(command, processes=processes)

    def worker(shared):
        nonlocal slowest
        for cell in shared:
            if hours and time.time() - begun + slowest > 3600 * hours:
                break
            started = time.time()
            result = {**cell, **measure(cell, call), "minutes": (time.time() - started) / 60}
            slowest = max(slowest, 60 * result["minutes"])
            with open(os.path.join(out, "results.jsonl"), "a") as f:
                f.write(json.dumps(result) + "\n")
            done.append(result)
            waiting.remove(cell)
            name = " ".join(str(value) for value in cell.values())
            rest = (
                f"{len(waiting)} left, about {expected(waiting, done) / 60 / processes:.1f} hours"
            )
            print(f"{name}: {result['minutes']:.1f} min ({rest})", flush=True)

    shared = iter(list(waiting))  # the interpreter's lock makes taking the next cell safe
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for finished in [pool.submit(worker, shared) for _ in range(processes)]:
            finished.result()


def each_seed(measure, args):
    """Measure one cell for each seed of a command line (see `options`), by a function (seed, args,
    call) -> dict; returns all lines there are."""
    todo = [{"seed": int(seed)} for seed in args.seeds.split(",")]

    def of(cell, call):
        return measure(cell["seed"], args, call)

    run(todo, of, args.out, args.hours, args.processes)
    return read(args.out)


def expected(cells, done):
    """Minutes that cells will take, if each takes as long as those of its task did, or else as all
    did."""

    def mean(found):
        return sum(line["minutes"] for line in found) / len(found)

    return sum(
        mean([line for line in done if line.get("task") == cell.get("task")] or done)
        for cell in cells
    )


def command(module, *flags, processes=1):
    """Run `python -m tfssl.MODULE FLAGS`, and pass on what it says of images left out; SystemExit
    with its last words where it fails. A module that a stopped cell had exported is exported
    anew."""
    for flag in flags:
        if module == "export" and flag.startswith("--export_dir="):
            shutil.rmtree(flag.partition("=")[2], ignore_errors=True)
    line = [sys.executable, "-m", f"tfssl.{module}", *flags]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )  # what taskset leaves it
    threads = str(max(1, cores // processes))
    env = {**os.environ, "TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr[-2000:]}")
    for said in done.stderr.splitlines():
        if "left out" in said or "skipped unreadable" in said:
            print(f"{module}: {said}", flush=True)


def results_of(folder):
    """The results of an evaluation's workdir."""
    with open(os.path.join(folder, "results.json")) as f:
        return json.load(f)["results"]


def by_endpoint(folder, protocols):
    """The accuracies of an evaluation's workdir: {protocol: {endpoint: value, in [0, 1]},
    protocol_best: the endpoint that the validation images chose, "pixels" apart}."""
    row = {}
    for protocol in protocols:
        found = [r for r in results_of(folder) if r["protocol"] == protocol]
        own = [r for r in found if r["endpoint"] != "pixels"]
        row[protocol] = {r["endpoint"]: r["value"] for r in found}
        row[f"{protocol}_best"] = max(own, key=lambda r: r["val_value"])["endpoint"]
    return row


def options(parser, out, seeds="0,1,2"):
    """Adds what every study's command line has; `out` and `seeds` are defaults."""
    parser.add_argument("--out", default=out, help="folder for runs and results")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--hours", type=float, help="begin no cell that would end after so long")
    parser.add_argument("--processes", type=int, default=1, help="cells side by side")


def mean_and_range(values):
    """Mean and, of several, range: "52.3 (50.8 to 53.1)"; "" of none. `values`: a list or array of
    numbers, in percent."""
    if not len(values):
        return ""
    around = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{around}"


def table(head, lines):
    """Markdown: `head` is a list of titles, `lines` lists of cells."""
    return "\n".join(
        f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *lines]
    )

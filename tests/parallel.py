"""Runs the tests, several files at a time, each in a process of its own: `python tests/parallel.py
[--processes=2] [pytest's options]`.

The processes are forked from one that has imported the libraries, so that a file costs no start-up;
with the process goes all memory that TensorFlow never gives back (what XLA compiled, say); and no
test can lean on one in another file.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(pathlib.Path(__file__).parent / "helpers"))

import pytest  # noqa: E402
import runs  # noqa: E402

TESTS = pathlib.Path(__file__).parent
FIRST = (  # which take longest, or wait most
    "testing/test_tasks.py",
    "pretext/test_task.py",
    "test_four_replicas.py",
    "test_train.py",
    "test_faults.py",
    "test_evaluate.py",
    "downstream/features/test_extract.py",
    "backbones/test_revnet.py",
    "data/test_gaps.py",
    "test_workers.py",
    "step/test_phases.py",
)
PARTS = {
    "testing/test_tasks.py": (
        "(byol or colorization or simsiam or swav)",
        "(barlow_twins or dino or lejepa or mae or simmim or vicreg)",
        "(clsa or cmc or split_brain or frames or order_verification)",
        "(deepcluster or local_aggregation or pic or pixpro)",
    )
}  # -k of parts that run apart: they grow large


AGAIN = (  # on the other stack, by what a file's path begins with: what leans on TensorFlow itself
    "backbones/test_build.py", "backbones/test_keras_application.py", "backbones/test_norm.py",
    "backbones/test_rematerialize.py", "backbones/test_vit.py", "classifiers/test_classifier.py",
    "classifiers/test_labels.py", "data/ops/test_patches.py", "data/ops/test_photometric.py", "data/ops/test_randaugment.py",
    "data/sources/test_base.py", "data/sources/test_records.py", "data/sources/test_webdataset.py",
    "data/test_augmentation.py", "data/test_pipeline.py", "data/test_service.py",
    "downstream/features/test_cache.py", "downstream/features/test_encoder.py",
    "downstream/features/test_forward.py", "export/test_converted.py", "export/test_module.py",
    "export/test_published.py", "hub/", "pretext/test_task.py",
    "runtime/test_preemption.py", "runtime/test_processor.py", "runtime/test_strategy.py", "runtime/test_watchdog.py", "step/test_gradients.py",
    "test_compatibility.py", "test_notebook.py", "test_outside_package.py",
    "test_own_task.py", "test_package.py", "test_predict.py", "test_registry.py", "test_train.py",
    "testing/test_backbones.py", "testing/test_optimizers.py",
    "testing/test_tasks.py", "training/",
)  # fmt: skip


PATIENCE = ("-o", "faulthandler_timeout=400")  # of a test that shares two cores with two others


def work(only=""):
    """[(name, pytest's arguments)], in the order in which they begin, of the files whose paths
    begin with one of `only`."""
    files = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))
    files = [file for file in files if file.startswith(only)]
    for file in sorted(files, key=lambda file: FIRST.index(file) if file in FIRST else len(FIRST)):
        parts = PARTS.get(file, ())
        for part in parts:
            yield f"{file} -k {part}", [str(TESTS / file), "-k", part]
        yield (
            file,
            [
                str(TESTS / file),
                *(("-k", " and ".join(f"not {part}" for part in parts)) if parts else ()),
            ],
        )


def run(name, arguments, folder):
    """(exit status, what it printed, what it cost) of a forked pytest."""
    folder.mkdir()
    process = runs.PROCESSES.Process(
        target=_session, args=([*arguments, f"--costs={folder}/costs.json"], folder)
    )
    process.start()
    process.join()
    with contextlib.suppress(ProcessLookupError):  # what a test that was timed out had started
        os.killpg(process.pid, signal.SIGKILL)
    costs, status = folder / "costs.json", folder / "status"
    return (
        # On a busy machine the fork server loses a status now and then, and says 255.
        int(status.read_text()) if status.exists() else process.exitcode or 255,
        (folder / "out").read_text(),
        json.loads(costs.read_text()) if costs.exists() else None,
    )


def _session(arguments, folder):
    os.setsid()
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(out, number)
    status = int(pytest.main(arguments))
    for (
        child
    ) in multiprocessing.active_children():  # what a test that failed has left would be waited for
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "status").write_text(str(status))
    os._exit(status)  # threads of TensorFlow's that are left may crash while Python is torn down


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--again",
        action="store_true",
        help="after the other stack: only what leans on TensorFlow itself, except what is marked `once`",
    )
    parser.add_argument("--only", help="files, by what their paths begin with: data/,test_train")
    parser.add_argument("--costs", help="a JSON file of what each test took, to be written")
    options, others = parser.parse_known_args()
    only = tuple(options.only.split(",")) if options.only else AGAIN if options.again else ""
    if options.again:
        others += ["-m", "not slow and not once"]
    sys.path.insert(0, str(TESTS.parent))  # this tree's tfssl, in the forked processes too
    begun, failed, rows, tests = time.monotonic(), [], [], {}
    outcomes = collections.Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(options.processes) as pool,
    ):
        waiting = {
            pool.submit(
                run, name, [*arguments, *PATIENCE, *others], pathlib.Path(folder, str(i))
            ): name
            for i, (name, arguments) in enumerate(work(only))
        }
        for done in concurrent.futures.as_completed(waiting):
            name, (status, said, costs) = waiting[done], done.result()
            if (
                status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
                or costs is None
            ):
                failed.append(f"{name} (exit status {status})")
                print(said, flush=True)
            if costs and costs["tests"]:
                rows.append((costs["seconds"], costs["gigabytes"], name))
                outcomes.update(costs["outcomes"])
                tests.update(costs["tests"])
                print("{:7.1f} s {:5.2f} GB  {}".format(*rows[-1]), flush=True)
    print("\nprocessor seconds, and the most memory of a process, GB")
    for row in sorted(rows, reverse=True):
        print("{:7.1f} {:6.2f}  {}".format(*row))
    print(f"{sum(row[0] for row in rows):7.1f} {max(row[1] for row in rows):6.2f}  in all")
    seconds = round(time.monotonic() - begun)
    print(
        ", ".join(f"{n} {what}" for what, n in outcomes.items()),
        f"in {seconds // 60} min {seconds % 60} s",
    )
    if options.costs:
        pathlib.Path(options.costs).write_text(json.dumps(tests))
    for name in failed:
        print("FAILED", name)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

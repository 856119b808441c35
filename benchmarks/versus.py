"""Is tfssl as fast as an earlier commit? Start of the command, import, and training steps of both,
in turns.

    python benchmarks/versus.py --old=29fa314                                   # all four rows, five rounds
    python benchmarks/versus.py --old=29fa314 --rounds=15 --rows=help,import    # without TensorFlow: seconds

Each round measures both commits, in another order from round to round. `help` is `tfssl-train
--help`, `import` is `import tfssl`, each a process of its own; a task is the median of --steps
compiled training steps by `fit` on one batch that is there already (ResNet-18 of width 1/4, 32
pixels, 64 images). CPU is user and system time of the process, the steadier on a busy machine; of a
task, of the timed steps.

How to read the table: medians over the rounds, and new / old, the median of the rounds' ratios with
the least and the largest of them. Below 1 the new one is faster. A ratio whose range holds 1 says
nothing.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ("rotation", "simclr")
COMMANDS = {"help": ["-m", "tfssl.train", "--help"], "import": ["-c", "import tfssl"]}


def checkout(revision, folder):
    """The files of a commit, in a new folder: its path."""
    archive = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder)
    return folder


def run(tree, arguments):
    """(wall seconds, CPU seconds, stdout) of a Python process that sees the tfssl of `tree`."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": tree, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, cpu, done.stdout


def measure(row, tree, steps):
    """(wall seconds, CPU seconds) of one row on one tree."""
    if row in COMMANDS:
        return run(tree, COMMANDS[row])[:2]
    return json.loads(
        run(tree, [os.path.abspath(__file__), f"--task={row}", f"--steps={steps}"])[2].splitlines()[
            -1
        ]
    )


def time_steps(task, steps):
    """The process that is measured: prints [seconds, CPU seconds] of a training step of a task."""
    import tensorflow as tf

    import tfssl

    assert os.path.dirname(os.path.dirname(tfssl.__file__)) == os.getcwd(), (
        f"another tfssl: {tfssl.__file__}"
    )
    backbone = tfssl.backbones.build("resnet18_v2", width_multiplier=0.25, stem="small")
    model = tfssl.pretext.build(task, backbone, image_size=32)
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1, momentum=0.9))
    batch = next(iter(model.dataset(tfssl.open_source("glyphs", "train"), batch_size=64, seed=0)))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    model.fit(data, steps_per_epoch=3, verbose=0)  # traces

    class Clock(tf.keras.callbacks.Callback):
        laps = []

        def on_train_batch_end(self, number, logs=None):
            self.laps.append((time.perf_counter(), time.process_time()))

    model.fit(data, steps_per_epoch=steps + 1, verbose=0, callbacks=[Clock()])
    each = [
        [b - a for a, b in zip(before, after)] for before, after in zip(Clock.laps, Clock.laps[1:])
    ]
    print(json.dumps([statistics.median(values) for values in zip(*each)]), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="the earlier commit")
    parser.add_argument(
        "--rows", default=",".join((*COMMANDS, *TASKS)), help="help, import, and names of tasks"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=20, help="that are timed, of each task in each round"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return time_steps(args.task, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        trees = {"old": checkout(args.old, os.path.join(folder, "old")), "new": ROOT}
        print(f"{'':12}{'old':>10}{'new':>10}  new / old{'':14}CPU new / old")
        for row in args.rows.split(","):
            taken = {name: [] for name in trees}
            for turn in range(args.rounds):
                for name in sorted(trees, reverse=bool(turn % 2)):
                    taken[name].append(measure(row, trees[name], args.steps))
            wall, cpu = (
                [[times[kind] for times in taken[name]] for name in ("old", "new")]
                for kind in range(2)
            )
            medians = [f"{statistics.median(times):9.3f}s" for times in wall]
            print(f"{row:12}{''.join(medians)}  {ratio(*wall)}  {ratio(*cpu)}", flush=True)


def ratio(old, new):
    """Median, least and largest of the rounds' ratios."""
    ratios = [b / a for a, b in zip(old, new)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()

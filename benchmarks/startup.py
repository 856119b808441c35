"""Where does the time go between `tfssl-train` and its first step?

    python benchmarks/startup.py                                                     # make demo's recipe, on the embedded letters
    python benchmarks/startup.py --flagfile=tfssl:simclr/cifar10_cpu.flags --dataset=folder:cifar10 '--train_split=train[:90%]'
    python benchmarks/startup.py --rounds=5 --tree=../tfssl-before ...               # another checkout as well, in turns

What follows (but --rounds and --tree) are flags of tfssl-train; it runs in a process of its own, in
a new workdir, with one step.

How to read the table: medians over the processes, of the parts in their order; CPU seconds are the
steadier on a busy machine. First views are written before the first step, or after it. TensorFlow's
import is not ours to change: the last row is a process that imports TensorFlow and its Keras,
without tfssl, and calls a tf.function that counts to 1. "heavy modules": which of a list that a
training run has no use for were imported by then.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

WHOLE, VIEWS = "to the end of the first step", "write the first views"
HEAVY = (
    "tensorflow_datasets",
    "tensorflow_hub",
    "tensorflow_addons",
    "matplotlib",
    "sklearn",
    "pandas",
)


def instrumented(begun):
    """The process that is measured: tfssl-train, whose functions say when they end."""
    laps, last = {}, (begun, 0.0)

    def lap(name):
        nonlocal last
        now = time.time(), time.process_time()
        laps[name] = [
            sum(pair) for pair in zip(laps.get(name, (0, 0)), (a - b for a, b in zip(now, last)))
        ]
        last = now

    def finish():
        print(json.dumps([laps, [name for name in HEAVY if name in sys.modules]]), flush=True)
        os._exit(0)

    def timed(owner, function, name, then=lambda: None):
        plain = getattr(owner, function)

        def wrapped(*args, **settings):
            lap("imports of ours, and the rest")
            result = plain(*args, **settings)
            lap(name)
            then()
            return result

        setattr(owner, function, wrapped)

    lap("interpreter")
    from tfssl import train
    from tfssl.runtime import cli

    train.define_flags()
    lap("flags of all tasks")
    timed(cli, "_import_tensorflow", "import tensorflow")

    def main(argv):
        import tensorflow as tf

        from tfssl import data
        from tfssl.pretext.task import Pretext
        from tfssl.runtime import strategy
        from tfssl.training import build, summaries

        timed(data, "open_source", "list the images")
        timed(build, "build_model", "build the network")
        timed(build, "set_up", "create the variables")
        timed(summaries, "write_start", VIEWS, lambda: WHOLE in laps and finish())
        timed(strategy, "training_data", "trace the input pipeline")
        make = Pretext.make_train_function

        def make_train_function(model, force=False):
            function = make(model, force)

            def first(iterator):
                lap("fit, to its first step")
                traced = function.get_concrete_function(iterator)
                lap("trace the step")
                result = {name: float(value) for name, value in traced(iterator).items()}
                lap("first step")
                laps[WHOLE] = [sum(column) for column in zip(*laps.values())]
                if VIEWS in laps:
                    finish()
                return {name: tf.constant(value) for name, value in result.items()}

            model.train_function = first
            return first

        Pretext.make_train_function = make_train_function
        train.main(argv)

    main.__module__ = "tfssl.train"
    cli.run(main, "tfssl-train")


FLOOR = """
import tensorflow as tf
count = tf.keras.backend.variable(0)
tf.function(lambda: count.assign_add(1))()
"""


def measure(flags, tree):
    """({part: (seconds, CPU seconds)}, heavy modules) of one process; of the checkout `tree`, or of
    the tfssl that is installed."""
    path = {"PYTHONPATH": tree} if tree else {}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, __file__, *flags, f"--workdir={workdir}/run"]
        environment = {**os.environ, **path, "STARTED": repr(time.time())}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, check=False
        )
    if done.returncode:
        sys.exit(done.returncode)
    laps, heavy = json.loads(done.stdout.splitlines()[-1])
    return {**laps, "TensorFlow and one op, without tfssl": floor()}, heavy


def floor():
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([sys.executable, "-c", FLOOR], env=environment, check=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    return ended - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout")
    parser.add_argument("--tree", help="another checkout of tfssl to measure beside this one")
    args, flags = parser.parse_known_args()
    flags = flags or ["--flagfile=tfssl:glyphs/rotation.flags"]
    sides = {"": None, **({args.tree: os.path.abspath(args.tree)} if args.tree else {})}
    measured = {side: [] for side in sides}
    for _ in range(args.rounds + 1):  # the first fills caches
        for side, tree in sides.items():
            measured[side].append(measure(flags, tree))
    print(
        "| | "
        + " | ".join(f"seconds {side} | CPU seconds {side}" for side in sides)
        + " |\n"
        + "|---" * (1 + 2 * len(sides))
        + "|"
    )
    names = dict.fromkeys(name for runs in measured.values() for name in runs[-1][0])
    for name in names:
        times = [
            zip(*(laps.get(name, (math.nan, math.nan)) for laps, _ in runs[1:]))
            for runs in measured.values()
        ]
        print(
            f"| {name} | "
            f"{' | '.join(f'{statistics.median(column):.2f}' for pair in times for column in pair)} |"
        )
    print(
        "| heavy modules | "
        f"{' | '.join((', '.join(runs[-1][1]) or 'none') + ' |' for runs in measured.values())}"
    )


if __name__ == "__main__":
    if "STARTED" in os.environ:
        instrumented(float(os.environ.pop("STARTED")))
    else:
        main()

"""Where does the time go between `tfssl-train` and its first step?

    python benchmarks/startup.py                                                     # make demo's recipe, on the embedded letters
    python benchmarks/startup.py --flagfile=tfssl:simclr/cifar10_cpu.flags --dataset=folder:cifar10 '--train_split=train[:90%]'
    python benchmarks/startup.py --rounds=5 ...                                      # medians of so many processes

What follows (but --rounds) are flags of tfssl-train; it runs in a process of its own, in a new workdir, with one step.

How to read the table: medians over the processes, of the parts in their order; CPU seconds are the steadier on a busy machine. TensorFlow's
import is not ours to change. "heavy modules": which of a list that a training run has no use for were imported by then.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HEAVY = ("tensorflow_datasets", "tensorflow_hub", "tensorflow_addons", "matplotlib", "sklearn", "pandas")


def instrumented(begun):
    """The process that is measured: tfssl-train, whose functions say when they end."""
    laps, last = {}, (begun, 0.0)

    def lap(name):
        nonlocal last
        now = time.time(), time.process_time()
        laps[name] = [sum(pair) for pair in zip(laps.get(name, (0, 0)), (a - b for a, b in zip(now, last)))]
        last = now

    def timed(owner, function, name):
        plain = getattr(owner, function)

        def wrapped(*args, **settings):
            lap("imports of ours, and the rest")
            result = plain(*args, **settings)
            lap(name)
            return result

        setattr(owner, function, wrapped)

    lap("interpreter")
    from tfssl import train
    from tfssl.runtime import cli

    train.define_flags()
    lap("flags of all tasks")
    timed(cli, "_import_tensorflow", "import tensorflow")

    def main(argv):
        from tfssl import data
        from tfssl.pretext.base import Pretext
        from tfssl.runtime import strategy, summaries

        timed(data, "open_source", "list the images")
        timed(train, "build_model", "build the network")
        timed(train, "set_up", "create the variables")
        timed(summaries, "write_start", "write the first views")
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
                heavy = [name for name in HEAVY if name in sys.modules]
                print(json.dumps([laps, heavy]), flush=True)
                os._exit(0)
                return result

            model.train_function = first
            return first

        Pretext.make_train_function = make_train_function
        train.main(argv)

    main.__module__ = "tfssl.train"
    cli.run(main, "tfssl-train")


def main():
    flags = sys.argv[1:]
    rounds = int(next((flag.split("=")[1] for flag in flags if flag.startswith("--rounds=")), 3))
    flags = [flag for flag in flags if not flag.startswith("--rounds=")] or ["--flagfile=tfssl:glyphs/rotation.flags"]
    measured = []
    for _ in range(rounds + 1):  # the first fills caches
        with tempfile.TemporaryDirectory() as workdir:
            begun = time.time()
            command = [sys.executable, __file__, *flags, f"--workdir={workdir}/run"]
            environment = {**os.environ, "STARTED": repr(begun)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
            if done.returncode:
                sys.exit(done.returncode)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    print("| | seconds | CPU seconds |\n|---|---|---|")
    tables = [laps for laps, _ in measured[1:]]
    for laps in tables:
        laps["to the end of the first step"] = [sum(column) for column in zip(*laps.values())]
    for name in tables[0]:
        print(
            f"| {name} | {' | '.join(f'{statistics.median(column):.2f}' for column in zip(*(t[name] for t in tables)))} |"
        )
    print(f"| heavy modules | {', '.join(measured[-1][1]) or 'none'} | |")


if __name__ == "__main__":
    if "STARTED" in os.environ:
        instrumented(float(os.environ.pop("STARTED")))
    else:
        main()

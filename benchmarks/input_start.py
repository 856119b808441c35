"""What TensorFlow's graph optimizer costs when an input pipeline begins, and what it gains after.

    python benchmarks/input_start.py                          # 256 JPEGs of its own, 500 x 375 as in ImageNet
    python benchmarks/input_start.py --data photos --rounds 7 # of yours

Two programs take turns, each in a new process: as the commands do where processors alone compute
(`strategy.build`: the functions of input pipelines are left as they are), and as TensorFlow begins
by itself. Printed are medians and quartiles: processor seconds until the first batch of 64 is
there, and images per processor second after. The views are SimCLR's and rotation's, at 96 pixels.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import input as jpegs

TASKS = ("rotation", "simclr")
KINDS = {"left as they are": True, "optimized": False}
BATCH = 64


def measure(task, data, unoptimized, batches):
    """(processor seconds to the first batch, images per processor second after) of this process."""
    import tfssl
    from tfssl.runtime import strategy

    if unoptimized:
        strategy.build("default")
    source = tfssl.open_source(f"folder:{data}")
    network = tfssl.backbones.build("vit_tiny", 1 / 16, depth=1, patch=16, grid=6)
    model = tfssl.pretext.build(task, network, image_size=96)
    pipeline = model.dataset(source, BATCH, seed=1)
    begun = time.process_time()
    iterator = iter(pipeline)
    next(iterator)
    first = time.process_time() - begun
    next(iterator)
    begun = time.process_time()
    for _ in range(batches):
        next(iterator)
    return first, batches * BATCH / (time.process_time() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of images; none: JPEGs of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a program of one round
    options = parser.parse_args()
    if options.one:
        task, kind = options.one
        print(*measure(task, options.data, KINDS[kind], options.batches))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.data:
            options.data = folder
            jpegs.write_jpegs(folder)
        found = {(task, kind): [] for task in TASKS for kind in KINDS}
        for _ in range(options.rounds):
            for pair, values in found.items():
                given = ("--data", options.data, "--batches", str(options.batches))
                command = [sys.executable, __file__, *given, "--one", *pair]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                values.append(tuple(map(float, said.splitlines()[-1].split())))
    print(f"{'':30}  to the first batch, s  images per processor second")
    for (task, kind), values in found.items():
        shown = []
        for column in zip(*values):
            low, middle, high = statistics.quantiles(column, n=4)
            shown.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"{task}, {kind:22}  {shown[0]:22}  {shown[1]}")


if __name__ == "__main__":
    main()

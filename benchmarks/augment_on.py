"""Does a training step take less time with the colors on the device, a batch at once, or on the
host, image by image?

    python benchmarks/augment_on.py --data folder:cifar10 --flagfile tfssl:simclr/cifar10_cpu.flags
    python benchmarks/augment_on.py --data folder:imagenette --flagfile tfssl:simclr/imagenet.flags --flags "--train_split=train
        --backbone=resnet18_v1 --width_multiplier=0.25 --batch_size=32 --train_steps=30 --log_steps=5 --warmup_epochs=0"

Both are what a user runs: tfssl-train, with --augment_on=device and with --augment_on=host, in
turns; all else is the recipe's.

How to read the table: images/s by the clock, median over the rounds, each the median of a run's log
intervals but the first, which compiles. The ratio is device over host within a round, with its
range: above 1 the device is the better place. The share of the time that steps wait for input is
the runs' own. On a machine without an accelerator both sides share the same cores: that says which
of the two costs less computation, and nothing of a GPU that would take the colors from a busy
host.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

PLACES = ("device", "host")


def measure(place, folder, args):
    """{"images/s", "waits"} of one run, medians over its log intervals."""
    recipe = [f"--flagfile={args.flagfile}"] if args.flagfile else []
    given = [
        *recipe,
        *args.flags.split(),
        f"--dataset={args.data}",
        f"--augment_on={place}",
        f"--workdir={folder}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tfssl.train", *given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"tfssl-train {' '.join(given)}\n{done.stderr[-2000:]}")
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        lines = [line for line in map(json.loads, f) if "images_per_second" in line][1:]
    shutil.rmtree(folder)
    if not lines:
        raise SystemExit(
            "the run is shorter than two log intervals: more --train_steps, or fewer --log_steps"
        )
    return {
        "images/s": statistics.median(line["images_per_second"] for line in lines),
        "waits": statistics.median(line["input_wait"] for line in lines),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a source with a split train")
    parser.add_argument("--flagfile", default="", help="the recipe")
    parser.add_argument("--flags", default="", help="more training flags, separated by blanks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", default="runs/augment_on", help="folder for the runs; they are removed"
    )
    args = parser.parse_args()
    rounds = []
    for i in range(args.rounds):
        order = PLACES if i % 2 == 0 else PLACES[::-1]
        rounds.append(
            {place: measure(place, os.path.join(args.out, place), args) for place in order}
        )
    print(
        "| colours on the | images/s | steps wait for input | ratio to host (range) "
        "|\n|---|---|---|---|"
    )
    for place in PLACES:
        found = {key: statistics.median(r[place][key] for r in rounds) for key in rounds[0][place]}
        ratios = [r[place]["images/s"] / r["host"]["images/s"] for r in rounds]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {place} | {found['images/s']:.1f} | {found['waits']:.0%} | {ratio} |")


if __name__ == "__main__":
    main()

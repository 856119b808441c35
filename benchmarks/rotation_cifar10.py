"""Does rotation prediction learn? CIFAR-10, several seeds, beside random initialisation and raw pixels.

    python benchmarks/rotation_cifar10.py --data folder:cifar10 --out runs/cifar10 --seeds 0,1,2

Runs the three commands that a user would (train, export, evaluate) once per seed; a finished part is not run again, so that it can be
stopped and started. How to read the table: each row is one encoder; `pre_logits` and `best` are test accuracies of logistic regression on
all labels, l2 chosen on a validation part of the training images, `best` at the endpoint that the same validation part chose. Pixels are
the same protocol on the images themselves. The last rows give mean differences over the seeds, and the smallest.
"""

import argparse
import json
import os
import subprocess
import sys
import time

FLAGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flags", "cifar10")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tfds:cifar10", help="a source with splits train and test")
    parser.add_argument("--out", default="runs/cifar10", help="folder for runs and results")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--flagfile", default=f"{FLAGS}/rotation.flags")
    parser.add_argument("--extra", default="", help="more training flags, separated by blanks")
    args = parser.parse_args()
    rows = [measure(int(seed), args) for seed in args.seeds.split(",")]
    print("| seed | encoder | pre_logits | best | endpoint | training |\n|---|---|---|---|---|---|")
    for row in rows:
        for name in ("rotation", "random"):
            r = row[name]
            minutes = f"{row['minutes']:.1f} min" if name == "rotation" else "none"
            print(f"| {row['seed']} | {name} | {r['pre_logits']:.1%} | {r['best']:.1%} | {r['endpoint']} | {minutes} |")
        print(f"| {row['seed']} | raw pixels | {row['pixels']:.1%} | {row['pixels']:.1%} | pixels | none |")
    for what in ("pre_logits", "best"):
        gains = [row["rotation"][what] - row["random"][what] for row in rows]
        print(
            f"\n{what}: rotation - random = {100 * sum(gains) / len(gains):+.1f} points (smallest {100 * min(gains):+.1f})"
        )
    above = [min(row["rotation"]["pre_logits"], row["rotation"]["best"]) - row["pixels"] for row in rows]
    print(
        f"rotation's lower figure - raw pixels = {100 * sum(above) / len(above):+.1f} points (smallest {100 * min(above):+.1f})"
    )


def measure(seed, args):
    run = os.path.join(args.out, f"seed{seed}")
    timing = os.path.join(run, "minutes.json")
    if not os.path.exists(timing):
        begun = time.perf_counter()
        call(
            "tfssl.train",
            f"--flagfile={args.flagfile}",
            f"--dataset={args.data}",
            f"--workdir={run}",
            f"--seed={seed}",
            *args.extra.split(),
        )
        with open(timing, "w") as f:
            json.dump((time.perf_counter() - begun) / 60, f)
    modules = {"rotation": [], "random": ["--random_init"]}
    for name, flags in modules.items():
        if not os.path.exists(f"{run}/module/{name}"):
            call("tfssl.export", f"--workdir={run}", f"--export_dir={run}/module/{name}", *flags)
    results = os.path.join(run, "eval", "results.json")
    if not os.path.exists(results):
        handles = ",".join(f"{name}={run}/module/{name}" for name in modules)
        call(
            "tfssl.evaluate",
            f"--module={handles}",
            f"--flagfile={FLAGS}/eval.flags",
            f"--dataset={args.data}",
            f"--workdir={run}/eval",
            f"--seed={seed}",
        )
    with open(results) as f, open(timing) as t:
        found = [r for r in json.load(f)["results"] if r["protocol"] == "logistic"]
        row = {"seed": seed, "minutes": json.load(t)}
    for name in modules:
        mine = [r for r in found if r["module"] == name and r["endpoint"] != "pixels"]
        chosen = max(mine, key=lambda r: r["val_value"])
        at = {r["endpoint"]: r["value"] for r in mine}
        row[name] = {"pre_logits": at["pre_logits"], "best": chosen["value"], "endpoint": chosen["endpoint"]}
    row["pixels"] = next(r["value"] for r in found if r["endpoint"] == "pixels")
    return row


def call(module, *flags):
    print("$", "python -m", module, *flags, flush=True)
    subprocess.run([sys.executable, "-m", module, *flags], check=True)


if __name__ == "__main__":
    main()

"""Are frames worth more than images? Sequences of moving crops are made of photographs, and the same
frames train SimCLR with views of one frame, SimCLR with views of two frames (--max_gap), and order
verification.

    python studies/frames.py --photos imagenette --out runs/frames --seeds 0,1,2
    python studies/frames.py --out runs/frames --table                      # of what has been measured

A sequence is a photograph seen by a window that wanders and zooms: --length frames of 40 pixels.
Whatever moves is the camera: there are no objects that turn, no light that changes and no second
sight of a class, so that two frames show no more than two crops of the photograph do, and gains are
a lower bound of a video's. `simclr, crops` has no photometric augmentation: there the
crops are all that tells views apart.

Each line of OUT/results.jsonl is one encoder (see studies/cells.py): all train with as many steps of
as many examples on the same frames, though an example of order verification has three. How to read
the table: test accuracy in percent of logistic regression and of 20 nearest neighbors on the
photographs themselves, at 32 pixels; the endpoint is the best on validation images, for each
protocol by itself. Untrained networks and raw pixels are rows.
"""

import argparse
import os
import shutil

import cells
import numpy as np
from PIL import Image

NETWORK = (
    "--backbone=resnet18_v2", "--width_multiplier=0.25", "--stem=small", "--image_size=24",
    "--resize=32", "--bn_momentum=0.9",
)  # fmt: skip
SCHEDULE = (
    "--learning_rate=0.06", "--lr_scaling=128", "--weight_decay=5e-4", "--schedule=cosine",
    "--warmup_epochs=0.2", "--log_steps=50",
)  # fmt: skip
VIEWS = ("--task=simclr", "--temperature=0.2", "--min_area=0.3")
ROWS = {
    "untrained": (),
    "simclr, one frame": (*VIEWS, "--augmentation=cifar"),
    "simclr, two frames": (*VIEWS, "--augmentation=cifar", "--max_gap={gap}"),
    "simclr, crops, one frame": (*VIEWS, "--augmentation=crop"),
    "simclr, crops, two frames": (*VIEWS, "--augmentation=crop", "--max_gap={gap}"),
    "order_verification": ("--task=order_verification", "--max_span={gap}", "--min_gap=2"),
    "order_verification, hidden layer": (
        "--task=order_verification", "--max_span={gap}", "--min_gap=2", "--head_layers=1",
        "--head_units=128",
    ),
}  # fmt: skip
PROTOCOLS = ("logistic", "knn")
SIDE = 40  # of a frame, in pixels


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", default="imagenette", help="folder with train/CLASS, val/CLASS")
    parser.add_argument("--rows", default=";".join(ROWS), help="rows of the table, by semicolons")
    parser.add_argument("--sequences", type=int, default=2000, help="photographs that are filmed")
    parser.add_argument("--length", type=int, default=12, help="frames of a sequence")
    parser.add_argument("--gap", type=int, default=6, help="--max_gap, and --max_span, in frames")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--labels", type=int, default=2000, help="training images of the probes")
    cells.options(parser, "runs/frames", "0")
    parser.add_argument("--table", action="store_true", help="print the table, and train nothing")
    args = parser.parse_args()
    if not args.table:
        film(args)
        todo = [
            {"row": row, "seed": int(seed)}
            for seed in args.seeds.split(",")
            for row in args.rows.split(";")
        ]
        cells.run(
            todo,
            lambda cell, call: measure(**cell, args=args, call=call),
            args.out,
            args.hours,
            args.processes,
        )
    print(table(cells.read(args.out)))


def film(args):
    """Write OUT/sequences/PHOTOGRAPH/FRAME.jpg, unless they are there."""
    root = os.path.join(args.out, "sequences")
    if os.path.isdir(root):
        return
    train = os.path.join(args.photos, "train")
    photos = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(train) for name in names
    )
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(photos))[: args.sequences]
    for number in chosen:
        photo = Image.open(photos[number]).convert("RGB")
        folder = os.path.join(f"{root}.part", f"{number:06}")
        os.makedirs(folder)
        for i, box in enumerate(windows(photo.size, args.length, rng)):
            frame = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
            frame.save(os.path.join(folder, f"{i}.jpg"), quality=92)
    os.rename(f"{root}.part", root)


def windows(size, length, rng):
    """Boxes (left, top, right, bottom) in an image of (width, height): a square that goes from one
    random location to another by way of a third, and zooms."""
    shorter = min(size)
    t = np.linspace(0, 1, length)[:, None]
    weights = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)  # a Bezier curve
    side = weights @ rng.uniform(0.45, 0.8, 3) * shorter
    corner = weights @ rng.random([3, 2]) * (np.array(size) - side[:, None])
    return np.concatenate([corner, corner + side[:, None]], 1)


def measure(row, seed, args, call):
    """One encoder: what its line says. The folder of its run is removed at the end."""
    run = os.path.join(args.out, f"{row.replace(', ', '-').replace(' ', '_')}-{seed}")
    own = [flag.format(gap=args.gap) for flag in ROWS[row]]
    given = [f"--dataset=frames:{args.out}/sequences", *NETWORK, f"--seed={seed}", *own]
    if row == "untrained":
        call("export", "--random_init", *given, f"--export_dir={run}/module")
    else:
        call(
            "train", *given, *SCHEDULE, f"--train_steps={args.steps}",
            f"--batch_size={args.batch_size}", f"--checkpoint_steps={args.steps}",
            f"--workdir={run}",
        )  # fmt: skip
        call("export", f"--workdir={run}", f"--export_dir={run}/module")
    call(
        "evaluate", f"--module={run}/module", f"--dataset=folder:{args.photos}",
        "--image_size=32", "--resize=32", f"--train_split=train[:{args.labels}]",
        f"--val_split=train[{args.labels}:{args.labels + 1000}]", "--test_split=val",
        f"--protocol={','.join(PROTOCOLS)}", f"--seed={seed}", f"--workdir={run}/eval",
        "--nocache",
    )  # fmt: skip
    line = {"steps": args.steps, "batch_size": args.batch_size, "gap": args.gap}
    line |= cells.by_endpoint(f"{run}/eval", PROTOCOLS)
    shutil.rmtree(run)
    return line


def table(lines):
    """Markdown: a line for each row, means over its seeds and ranges."""
    shown = []
    for row in [row for row in ROWS if any(line["row"] == row for line in lines)]:
        mine = [line for line in lines if line["row"] == row]
        values = [[100 * line[p][line[f"{p}_best"]] for line in mine] for p in PROTOCOLS]
        endpoints = ["/".join(dict.fromkeys(line[f"{p}_best"] for line in mine)) for p in PROTOCOLS]
        shown.append([row, len(mine), *map(cells.mean_and_range, values), ", ".join(endpoints)])
    if lines:
        pixels = [[100 * line[p]["pixels"] for line in lines[:1]] for p in PROTOCOLS]
        shown.append(["raw pixels", "", *map(cells.mean_and_range, pixels), ""])
    return cells.table(["row", "seeds", "logistic, best", "kNN, best", "endpoints"], shown)


if __name__ == "__main__":
    main()

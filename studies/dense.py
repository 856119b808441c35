"""Does pretraining on a data set's own images help to find and to outline what they show? Beside
random initialization and raw pixels.

    python studies/dense.py --bccd boxes:bccd --camvid masks:camvid --out runs/dense --seeds 0,1,2
    python studies/dense.py --bccd_detector boxes:bccd --glyphs '' --tasks random,simclr,simclr_fpn,pixcontrast,pixcontrast_fpn --out runs/dense

--bccd_detector asks it of a whole detector that is fine-tuned: FCOS with a new neck on a trunk, or
with the neck that the tasks in `_fpn` trained on as many images: does it help to pretrain the
detector's own layers?

Three small data sets: blood cells (BCCD, boxes; 205 images to learn from, 87 to choose on, 72 to
test), streets (CamVid, masks; 60, 20 and 30 in the pack), and `glyphs` (both; heads learn from
1,000 letters). Each cell is commands that a user would give: tfssl-train without labels on the
training images, tfssl-export, tfssl-eval with every map; see studies/cells.py for how it goes on
where it was stopped.

How to read the table: AP50 of detection and mIoU of segmentation on the test images, in percent, at
the endpoint that the validation images chose; frozen trunks, except in --bccd_detector. A task
helps where its lower figure is above random initialization's and above raw pixels, in each seed.
"""

import argparse
import os
import shutil

import cells

CROPS = "--image_size=96 --resize=240 --augmentation=simclr"
# Blood cells look alike, and so do street scenes: with all of SimCLR's colors and small crops no
# view can be told (0.7 and 2 % of pairs, chance 0.8). Strength, area and rate are, for each, those
# of two tries with the better figure on the validation images.
BCCD = f"{CROPS} --strength=0.15 --min_area=0.15 --learning_rate=0.01"
DATA = {  # data set: (protocols, training flags, evaluation flags)
    "bccd": (
        "detection",
        BCCD,
        "--train_split=train --val_split=val --test_split=test --dense_size=240,320 "
        "--dense_epochs=20 --detection_layers=1 "
        "--detection_units=64",
    ),
    "camvid": (
        "segmentation",
        f"{CROPS} --strength=0.3 --min_area=0.15 --learning_rate=0.03",
        "--train_split=train --val_split=val --test_split=test --dense_size=180,240 "
        "--ignore_class=11",
    ),
    "glyphs": (
        "detection,segmentation",
        "--image_size=24 --resize=32 --stem=small --augmentation=cifar --min_area=0.3 "
        "--learning_rate=0.06",
        "--train_split=train[:1000] --val_split=train[1000:1500] --test_split=test[:1000] "
        "--dense_epochs=20 --dense_batch_size=32 "
        "--detection_layers=1 --detection_units=64",
    ),
    "bccd_detector": (
        "fcos",
        BCCD,
        "--train_split=train --val_split=val --test_split=test --dense_size=240,320 "
        "--dense_trunk=fine_tuned --dense_trunk_rate=0.3 --dense_epochs=6 --detection_layers=1 "
        "--detection_units=64 --fcos_neck_width=64",
    ),
}
NETWORK = "--backbone=resnet18_v2 --width_multiplier=0.25 --bn_momentum=0.9"
# Of two tries on BCCD, SimCLR's views and rate the other (64.8 on the validation images, 69.4 these).
CONTRAST = "--kind=contrast --strength=0.5 --min_area=0.2 --learning_rate=0.05"
PIXPRO = "--task=pixpro --projection_hidden=512 --projection_size=128 --target_momentum=0.97"
TASKS = {
    "random": "--task=simclr",
    "simclr": "--task=simclr --temperature=0.2",
    "simclr_fpn": "--task=simclr --temperature=0.2 --neck=fpn --neck_width=64",
    "moco": "--task=moco --queue_size=2048 --temperature=0.1",
    "byol": "--task=byol",
    "pixpro": f"{PIXPRO} --map_endpoints=block3",
    "pixcontrast": f"{PIXPRO} {CONTRAST} --map_endpoints=block3",
    "pixcontrast_fpn": f"{PIXPRO} {CONTRAST} --neck=fpn --neck_width=64",
}
TRAINING = (
    "--batch_size=64 --lr_scaling=64 --schedule=cosine --warmup_epochs=1 --weight_decay=1e-4 "
    "--precision=auto"
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bccd", default="", help="its source, such as boxes:bccd; empty: without it"
    )
    parser.add_argument(
        "--camvid", default="", help="its source, such as masks:camvid; empty: without it"
    )
    parser.add_argument("--bccd_detector", default="", help="its source again; empty: without it")
    parser.add_argument("--glyphs", default="glyphs", help="empty: without it")
    parser.add_argument("--tasks", default="random,simclr")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of 64 images")
    cells.options(parser, "runs/dense")
    args = parser.parse_args()
    sources = {name: getattr(args, name) for name in DATA if getattr(args, name)}
    todo = [
        {"seed": int(seed), "data": data, "task": task}
        for seed in args.seeds.split(",")
        for data in sources
        for task in args.tasks.split(",")
    ]

    def measure(cell, call):
        folder = os.path.join(args.out, "-".join(map(str, cell.values())))
        protocols, images, evaluation = DATA[cell["data"]]
        source = f"--dataset={sources[cell['data']]}"
        flags = [
            source,
            f"--seed={cell['seed']}",
            *NETWORK.split(),
            *images.split(),
            *TASKS[cell["task"]].split(),
        ]
        if cell["task"] == "random":
            call("export", "--random_init", *flags, f"--export_dir={folder}/module")
        else:
            steps = [f"--train_steps={args.steps}", f"--checkpoint_steps={args.steps}"]
            call("train", *flags, *TRAINING.split(), *steps, f"--workdir={folder}")
            call("export", f"--workdir={folder}", f"--export_dir={folder}/module")
        call(
            "evaluate", f"--module={folder}/module", source, f"--protocol={protocols}", f"--seed={cell['seed']}", *evaluation.split(),
            f"--workdir={folder}/eval",
        )  # fmt: skip
        found = {}
        for r in cells.results_of(f"{folder}/eval"):
            of = found.setdefault(r["protocol"], {"values": {}, "coco_ap": {}})
            of["values"][r["endpoint"]] = r["value"]
            of["coco_ap"][r["endpoint"]] = r.get("coco_ap")
            if r["chosen"]:
                of["chosen"] = r["endpoint"]
        shutil.rmtree(folder)
        return {"steps": args.steps, "results": found}

    cells.run(todo, measure, args.out, args.hours, args.processes)
    print(table(cells.read(args.out)))


def table(rows):
    """Markdown: mean and range over the seeds, the smallest distance of each task to its baselines,
    then a line for each cell."""
    columns, lines = {}, []
    for row in sorted(rows, key=lambda row: (row["data"], row["task"], row["seed"])):
        for protocol, of in row["results"].items():
            value, pixels = 100 * of["values"][of["chosen"]], of["values"].get("pixels")
            found = columns.setdefault((row["data"], protocol), {})
            found.setdefault(row["task"], {})[row["seed"]] = value
            if pixels is not None:  # which have no pyramid
                found.setdefault("pixels", {})[row["seed"]] = 100 * pixels
            found.setdefault("random's best on test", {})
            if row["task"] == "random":
                found["random's best on test"][row["seed"]] = 100 * max(
                    v for k, v in of["values"].items() if k != "pixels"
                )
            lines.append(
                [
                    row["data"],
                    protocol,
                    row["task"],
                    row["seed"],
                    of["chosen"],
                    f"{value:.1f}",
                    "" if pixels is None else f"{100 * pixels:.1f}",
                ]
            )

    means, margins = [], []
    for (data, protocol), found in columns.items():
        for encoder, values in found.items():
            v = list(values.values())
            if v:
                shown = [f"{x:.1f}" for x in (sum(v) / len(v), min(v), max(v))]
                means.append([data, protocol, encoder, len(v), *shown])
            if encoder in TASKS and encoder != "random":
                for baselines in (("random", "pixels"), ("random's best on test",)):
                    gains = [
                        values[seed] - max(found[b][seed] for b in baselines if b in found)
                        for seed in values
                        if seed in found.get("random", {})
                    ]
                    if gains:
                        above = " and ".join(b for b in baselines if b in found)
                        margins.append(
                            f"{data}, {protocol}, {encoder}: at least {min(gains):+.1f} above "
                            f"{above} ({len(gains)} seeds)."
                        )
    means = cells.table(
        ["data", "protocol", "encoder", "seeds", "mean", "smallest", "largest"], means
    )
    lines = cells.table(
        ["data", "protocol", "task", "seed", "chosen endpoint", "value", "raw pixels"], lines
    )
    return "\n\n".join([means, "\n".join(margins), lines])


if __name__ == "__main__":
    main()

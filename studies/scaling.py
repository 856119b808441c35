"""The axes of Goyal, Mahajan, Gupta and Misra (arXiv 1905.01235) at home scale: does
self-supervised learning gain from more images, a harder problem, a larger network?

    python studies/scaling.py --imagenette folder:imagenette --out runs/scaling --axes base,complexity --hours 6   # the minimum
    python studies/scaling.py --imagenette folder:imagenette --out runs/scaling --hours 12                         # everything
    python studies/scaling.py --out runs/scaling --report docs/scaling                                # tables and plots, at any time

Jigsaw and colorization are pretrained on Imagenette by flags/goyal scaled down (the jigsaw with a
hidden layer and eight permutations per image, as the study of 2019 has it: with the paper's own
head so few steps teach it too little), and judged by the paper's SVMs (mean average precision, one
Imagenette class against the rest) and by logistic regression, beside the same networks untrained
and raw pixels. Each cell is three commands that a user would give (tfssl-train, tfssl-export,
tfssl-eval); its result is a line of OUT/results.jsonl: see studies/cells.py for how it goes on
where it was stopped.

    axis        cells
    base        the first network, all images, |P| = 100 and K = 10; --seeds; untrained networks
    complexity  |P| permutations of the jigsaw; K nearest bins in a color's target; --sweep_seeds
    data        nested subsets: an eighth, a quarter, a half of the images; --sweep_seeds
    capacity    the other networks, on all images and on the subsets; --sweep_seeds

base and complexity are the minimum: 17 trainings and 6 untrained networks, three to four hours of
one core if nothing else runs. With data and capacity there are 39 and 10. All cells of a task have
the same number of steps: half of the images are seen twice as often. The paper's own |P| = 2000 and
224 pixels are out of reach here; the head of docs/scaling/study.md, which --report writes, tells
what follows from that.
"""

import argparse
import json
import os
import shutil

import cells
import numpy as np

NETWORKS = "resnet18_v2:0.25,alexnet:0.5,resnet18_v2:0.5"
LEVELS = {
    "jigsaw": (100, 701, 2000, 5000, 10000),
    "colorization": (2, 5, 10, 20, 40, 80, 160),
}  # and all bins
DEFAULTS = {"jigsaw": 100, "colorization": 10}
SUBSETS = (8, 4, 2)  # parts of the images
PRETEXT = {
    "random": "colorization",
    "random_patches": "jigsaw",
}  # an untrained network sees what those do
TASKS = {
    "jigsaw": "--batch_size=16 --learning_rate=0.05 --image_size=128 --scaled_size=146 --patch_size=32 --keep_aspect --flip "
    "--permutations_per_image=8 --head_layers=1 --head_units=512 --head_bn_momentum=0.9",
    "colorization": "--batch_size=64 --learning_rate=0.1 --image_size=96 --resize=110 --rebalance=0.5",
}
BATCH = {"jigsaw": 16, "colorization": 64}
STEMS = {
    ("jigsaw", "resnet18_v2"): "patch", ("jigsaw", "alexnet"): "small",
    ("colorization", "resnet18_v2"): "stride16", ("colorization", "alexnet"): "imagenet",
}  # fmt: skip
ENDPOINTS = {
    "resnet18_v2": "after_root,block1,block2,block3,block4,pre_logits", "alexnet": "conv1,conv2,conv3,conv4,conv5,pre_logits",
}  # fmt: skip
TRAINING = "--lr_scaling=0 --schedule=cosine --bn_momentum=0.9 --log_steps=100"
STEPS = {
    "jigsaw": 2,
    "colorization": 1,
}  # times --steps: the jigsaw learns more slowly, and its steps are shorter
WARMUP = 32  # steps
EVALUATION = (
    "--train_split=train[:3000] --val_split=train[3000:4000] --test_split=val "
    "--protocol=svm,logistic --pool=adaptive_avg"
)
COSTS = "--svm_costs=0.1,1,10,100"


def wanted(args, images, bins):
    """Dicts of seed, task, level, network, images, in the order of the axes."""
    levels = {
        "jigsaw": LEVELS["jigsaw"],
        "colorization": (*(k for k in LEVELS["colorization"] if k < bins), bins),
    }
    networks, axes = args.networks.split(","), args.axes.split(",")
    seeds, sweep = ([int(s) for s in text.split(",")] for text in (args.seeds, args.sweep_seeds))
    subsets, found = [images // part for part in SUBSETS], {}

    def add(axis, seeds, tasks, networks, sizes, levels_of=lambda task: [DEFAULTS.get(task, 0)]):
        for seed in seeds if axis in axes else ():
            for network in networks:
                for size in sizes:
                    for task in tasks:
                        for level in levels_of(task):
                            cell = {
                                "seed": seed,
                                "task": task,
                                "level": level,
                                "network": network,
                                "images": size,
                            }
                            found.setdefault(tuple(cell.values()), cell)

    add("base", seeds, (*TASKS, *PRETEXT), networks[:1], [images])
    add("complexity", sweep, TASKS, networks[:1], [images], levels.get)
    add("data", sweep, TASKS, networks[:1], [images, *subsets])
    add("capacity", sweep, (*TASKS, *PRETEXT), networks[1:], [images])
    add("capacity", sweep, TASKS, networks[1:], subsets)
    return list(found.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--imagenette",
        default="",
        help="its source, with splits train (4,000 images or more) and val",
    )
    parser.add_argument("--out", default="runs/scaling")
    parser.add_argument(
        "--report",
        default="",
        help="run nothing: write study.md and plots of OUT's results to this folder",
    )
    parser.add_argument(
        "--hours", type=float, default=6.0, help="begin no cell that would end after so long"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="cells side by side; small networks leave cores idle",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1500,
        help="training steps of colorization; the jigsaw takes twice as many",
    )
    parser.add_argument("--axes", default="base,complexity,data,capacity")
    parser.add_argument("--seeds", default="0,1,2", help="of the base")
    parser.add_argument("--sweep_seeds", default="0", help="of the other axes")
    parser.add_argument(
        "--networks",
        default=NETWORKS,
        help="backbone:width; the first is that of base, complexity and data",
    )
    parser.add_argument(
        "--precision",
        default="mixed_bfloat16",
        help="of the pretraining; float32 where the processor has no bfloat16",
    )
    parser.add_argument(
        "--evaluation",
        default="",
        help="more flags of tfssl-eval, such as fewer images, for a trial",
    )
    args = parser.parse_args()
    if args.report:
        from scaling_report import report

        return report(cells.read(args.out), args.report)
    if not args.imagenette:
        raise SystemExit("--imagenette is missing: name its source, such as folder:imagenette")
    import tfssl

    images = tfssl.open_source(args.imagenette, "train").num_examples
    args.bins = os.path.join(args.out, "ab_bins.npz")  # of all images, for all subsets
    if not os.path.exists(args.bins):
        cells.command("ab_bins", f"--dataset={args.imagenette}", f"--output={args.bins}")
    todo = wanted(args, images, len(np.load(args.bins)["points"]))
    cells.run(
        todo, lambda cell, call: measure(cell, call, args), args.out, args.hours, args.processes
    )


def measure(cell, call, args):
    """Train, export, evaluate: what the cell's line says. The folder is removed at the end."""
    task = PRETEXT.get(cell["task"], cell["task"])
    folder = os.path.join(args.out, "cell-" + "-".join(map(str, cell.values())))
    backbone, width = cell["network"].split(":")
    level, steps = cell["level"] or DEFAULTS[task], args.steps * STEPS[task]
    flags = [
        f"--task={task}", f"--dataset={args.imagenette}", f"--train_subset={cell['images']}", f"--seed={cell['seed']}",
        f"--backbone={backbone}", f"--width_multiplier={width}", f"--stem={STEMS[task, backbone]}", *TASKS[task].split(),
        *([f"--permutations={level}"] if task == "jigsaw" else [f"--nearest={level}", f"--bins={args.bins}"]),
        *TRAINING.split(), f"--warmup_epochs={WARMUP * BATCH[task] / cell['images']}",
        f"--train_steps={steps}", f"--checkpoint_steps={steps}", f"--precision={args.precision}",
    ]  # fmt: skip
    last = {}
    if cell["task"] in PRETEXT:
        call("export", "--random_init", *flags, f"--export_dir={folder}/module")
    else:
        call("train", *flags, "--val_split=val", f"--workdir={folder}")
        call("export", f"--workdir={folder}", f"--export_dir={folder}/module")
        with open(os.path.join(folder, "metrics.jsonl")) as f:
            last = {k: v for line in f for k, v in json.loads(line).items()}
    pixels = (
        ",pixels"
        if cell["task"] == "random" and cell["network"] == args.networks.split(",")[0]
        else ""
    )
    call(
        "evaluate", f"--module={folder}/module", f"--dataset={args.imagenette}", *EVALUATION.split(), COSTS,
        f"--endpoints={ENDPOINTS[backbone]}{pixels}", f"--seed={cell['seed']}", f"--workdir={folder}/eval", "--cache=false",
        *args.evaluation.split(),
    )  # fmt: skip
    results = cells.results_of(f"{folder}/eval")
    value = {}
    for r in results:
        value.setdefault(r["endpoint"], {})[r["protocol"]] = r["value"]
    shutil.rmtree(folder)
    return {
        "value": value,
        "chosen": {r["protocol"]: r["endpoint"] for r in results if r["chosen"]},
        "costs": sorted(
            {c for r in results if r["protocol"] == "svm" for c in r["costs"].values()}
        ),
        "steps": steps,
        "labels": results[0]["train_labels"],
        "pretext": {
            k: last[k] for k in last if k in ("loss", "accuracy") or k.startswith("validation_")
        },
        "images_per_second": last.get("images_per_second"),
    }


if __name__ == "__main__":
    main()

"""Do the methods learn? CIFAR-10, about ten minutes of a CPU core each, beside random
initialization, raw pixels and supervised training.

    python studies/methods_cifar10.py --data folder:cifar10 --out runs/methods --methods simclr,moco,byol,swav --seeds 0,1,2
    python studies/methods_cifar10.py --data folder:cifar10 --out runs/short --short
    python studies/methods_cifar10.py --out docs/cifar10 --plot docs/cifar10/methods.svg         # the README's picture, trains nothing

--short is the same table after 600 steps of 128 images in float32, or as many as PACE says of a
method that needs more: minutes depend on the processor, steps do not.

Each line of OUT/results.jsonl is one encoder: tfssl-train with the method's cifar10_cpu.flags,
tfssl-export, tfssl-eval; see studies/cells.py for how it goes on where it was stopped. How to read
the tables: test accuracies in percent of logistic regression and of 20 nearest neighbors on
--labels training images; `best` is the endpoint that 4,000 others of them chose, for each protocol
by itself. The first table has means over the seeds, and ranges. A method counts as learning where
it is above random initialization's best and above raw pixels by both protocols, in each seed: that
is the column of distances. Minutes are the longest training's, on the cores that --processes left
it.
"""

import argparse
import os
import re
import shutil
import time

import cells

FLAGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flags")
METHODS = (
    "random", "cmc_random", "split_brain_random", "deepcluster_random", "rotation", "exemplar_cnn", "instance_discrimination", "pirl", "simclr", "dcl", "moco",
    "infomin", "byol", "simsiam", "swav", "barlow_twins", "vicreg", "nnclr", "moco_v3", "dino",
    "lejepa", "cmc", "split_brain", "clsa", "pic", "pixpro", "deepcluster", "deepcluster_v2", "local_aggregation",
    "sup_con", "supervised", "vit_random", "vit_lejepa", "vit_simclr", "vit_dino",
)  # fmt: skip
OWN = {  # flagfile, and what is added to it
    "random": ("cifar10/rotation.flags",),
    "cmc_random": ("cmc/cifar10_cpu.flags", "--num_images=20000"),
    "split_brain_random": ("split_brain/cifar10_cpu.flags",),
    "deepcluster_random": ("deepcluster/cifar10_cpu.flags", "--num_images=20000"),
    "rotation": ("cifar10/rotation.flags",),
    "supervised": ("cifar10/supervised.flags",),
    "dcl": ("simclr/cifar10_cpu.flags", "--decoupled"),
    "vit_random": ("lejepa/cifar10_vit_cpu.flags",),
    "vit_lejepa": ("lejepa/cifar10_vit_cpu.flags",),
    "vit_simclr": ("simclr/cifar10_vit_cpu.flags",),
    "vit_dino": ("dino/cifar10_vit_cpu.flags",),
}
UNTRAINED = {  # what a method has to be above, where that is not `random` alone
    **{name: ("random", f"{name}_random") for name in ("cmc", "split_brain", "deepcluster")},
    **{name: ("vit_random",) for name in ("vit_lejepa", "vit_simclr", "vit_dino")},
}
PROTOCOLS = ("logistic", "knn")
PACE = {  # steps of --short
    "dcl": 1200, "barlow_twins": 1200, "vicreg": 1200, "nnclr": 1200, "moco_v3": 1200, "dino": 2400, "lejepa": 1200,
    "cmc": 2400, "split_brain": 2400, "clsa": 1200, "pic": 2400, "pixpro": 1200,
    "deepcluster": 3000, "deepcluster_v2": 1200, "local_aggregation": 3600,
    "vit_lejepa": 1200, "vit_simclr": 1200, "vit_dino": 1200,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="tfds:cifar10", help="a source with splits train and test"
    )
    parser.add_argument(
        "--labels", type=int, default=10000, help="training images of the evaluation"
    )
    parser.set_defaults(held_out=4000, evaluation=())
    parser.add_argument(
        "--short", action="store_true", help="600 steps, or those of PACE, of 128 images in float32"
    )
    parser.add_argument("--extra", default="", help="more training flags, separated by blanks")
    parser.add_argument(
        "--plot", help="draw OUT/results.jsonl into this SVG file, and do nothing else"
    )
    run(parser, "runs/methods", METHODS, "0,1,2")


def run(parser, out, methods, seeds):
    """Measure what the command line asks of a parser that knows a study's own settings, and print
    the table, or draw it; `out`, `methods` and `seeds` are defaults."""
    parser.add_argument("--methods", default=",".join(methods))
    cells.options(parser, out, seeds)
    args = parser.parse_args()
    if args.plot:
        return plot(cells.read(args.out), args.plot)
    todo = [
        {"method": method, "seed": int(seed)}
        for seed in args.seeds.split(",")
        for method in args.methods.split(",")
    ]
    for line in cells.read(args.out):
        asked = " ".join(settings(line["method"], args)), args.labels
        if line["method"] in args.methods.split(",") and asked != (line["extra"], line["labels"]):
            raise SystemExit(
                f"{args.out} has {line['method']} with {line['labels']} labels and "
                f"{line['extra'] or 'no more flags'}, not with {args.labels} and "
                f"{asked[0] or 'none'}: take another --out, or remove the line"
            )
    cells.run(
        todo,
        lambda cell, call: measure(**cell, args=args, call=call),
        args.out,
        args.hours,
        args.processes,
    )
    print(table(cells.read(args.out)))


def settings(method, args):
    """Training flags of a method beyond its flagfile, a list."""
    short = (f"--train_steps={PACE.get(method, 600)}", "--batch_size=128", "--precision=float32")
    return [*(short if args.short else ()), *args.extra.split()]


def measure(method, seed, args, call):
    """One encoder: what its line says. The folder of its run is removed at the end."""
    run = os.path.join(args.out, f"{method}-{seed}")
    flagfile, *own = OWN.get(method, (f"{method}/cifar10_cpu.flags",))
    extra = settings(method, args)
    given = [
        f"--flagfile={os.path.join(FLAGS, flagfile)}",
        f"--dataset={args.data}",
        f"--seed={seed}",
        *own,
        *extra,
    ]
    begun, minutes = time.perf_counter(), None
    if method.endswith("random"):
        call("export", "--random_init", *given, f"--export_dir={run}/module")
    else:
        call("train", *given, f"--workdir={run}")
        minutes = (time.perf_counter() - begun) / 60
        call("export", f"--workdir={run}", f"--export_dir={run}/module")
    call(
        "evaluate", f"--module={run}/module", f"--flagfile={FLAGS}/cifar10/eval.flags", f"--dataset={args.data}",
        f"--train_split=train[:{args.labels}]", f"--val_split=train[{args.labels}:{args.labels + args.held_out}]",
        f"--protocol={','.join(PROTOCOLS)}", f"--seed={seed}", f"--workdir={run}/eval", "--nocache",
        *args.evaluation,
    )  # fmt: skip
    row = {"labels": args.labels, "training_minutes": minutes, "extra": " ".join(extra)}
    row |= cells.by_endpoint(f"{run}/eval", PROTOCOLS)
    shutil.rmtree(run)
    return row


def table(rows):
    """Markdown: a line per method, means over its seeds and ranges, with the least distance to its
    baselines; and a line per encoder."""
    rows = sorted(rows, key=lambda r: (METHODS.index(r["method"]), r["seed"]))
    random = {r["seed"]: r for r in rows if r["method"] == "random"}
    untrained = {(r["method"], r["seed"]): r for r in rows if r["method"].endswith("random")}

    def levels(r, protocol):
        """Figures of the untrained networks beside it, and of pixels; none where one is missing."""
        names = UNTRAINED.get(r["method"], ("random",))
        if r["method"].endswith("random") or any((n, r["seed"]) not in untrained for n in names):
            return []
        return [best(untrained[n, r["seed"]], protocol) for n in names] + [r[protocol]["pixels"]]

    means = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        shown = [
            cells.mean_and_range([100 * best(r, protocol) for r in mine]) for protocol in PROTOCOLS
        ]
        above = [
            best(r, protocol) - max(levels(r, protocol))
            for r in mine
            for protocol in PROTOCOLS
            if levels(r, protocol)
        ]
        means.append(
            [method, len(mine), *shown, f"{100 * min(above):+.1f}" if above else "", took(mine)]
        )
    if random:
        pixels = [
            cells.mean_and_range([100 * r[protocol]["pixels"] for r in random.values()])
            for protocol in PROTOCOLS
        ]
        means.append(["raw pixels", len(random), *pixels, "", ""])
    lines = []
    for r in rows:
        shown = []
        for protocol in PROTOCOLS:
            shown += [
                f"{r[protocol]['pre_logits']:.1%}",
                f"{best(r, protocol):.1%} ({r[f'{protocol}_best']})",
            ]
        lines.append([r["method"], r["seed"], *shown, took([r])])
    return "\n\n".join(
        [
            cells.table(
                [
                    "method",
                    "seeds",
                    "logistic, best",
                    "kNN, best",
                    "above both baselines, at least",
                    "training",
                ],
                means,
            ),
            cells.table(
                [
                    "method",
                    "seed",
                    "logistic, pre_logits",
                    "best",
                    "kNN, pre_logits",
                    "best",
                    "training",
                ],
                lines,
            ),
        ]
    )


def plot(rows, path):
    """A line for each method: accuracy of logistic regression at the chosen endpoint, a dot for
    each seed; baselines as vertical lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "tfssl",
            "font.size": 9,
            "font.family": "sans-serif",
        }
    )
    values = {}
    for row in rows:
        values.setdefault(row["method"], []).append(100 * best(row, "logistic"))
    pixels = [100 * row["logistic"]["pixels"] for row in rows]
    untrained = values["random"]
    methods = [method for method in values if not method.endswith("random")]
    methods = sorted(methods, key=lambda method: sum(values[method]) / len(values[method]))
    figure, axes = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
    for height, method in enumerate(methods):
        color = "#888888" if method == "supervised" else "#1f77b4"
        axes.plot(
            values[method],
            [height] * len(values[method]),
            "o",
            color=color,
            markersize=5,
            alpha=0.8,
        )
    for name, level in (("raw pixels", pixels), ("untrained network", untrained)):
        axes.axvline(sum(level) / len(level), color="#444444", linewidth=0.8, linestyle="--")
        axes.text(
            sum(level) / len(level) - 0.4,
            len(methods) - 1,
            name,
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
        )
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlabel("test accuracy, %, of logistic regression on frozen features")
    axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def took(rows):
    """Steps, where a study has set them, and the longest training."""
    steps = sorted(set(re.findall(r"--train_steps=(\d+)", " ".join(r["extra"] for r in rows))))
    minutes = [r["training_minutes"] for r in rows if r["training_minutes"]]
    shown = [f"{max(minutes):.1f} min"] if minutes else []
    return ", ".join([f"{' or '.join(steps)} steps"] * bool(steps and minutes) + shown)


def best(row, protocol):
    return row[protocol][row[f"{protocol}_best"]]


if __name__ == "__main__":
    main()

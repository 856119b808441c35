"""What does a masked autoencoder learn on small images? CIFAR-10, MAE with a ViT of six blocks:
its loss beside chance, what its frozen features know, and fine-tuning with a tenth of the labels
beside the same from random weights.

    python studies/masked.py --data folder:cifar10 --out runs/masked --seeds 0,1,2 --processes 2

Each line of OUT/results.jsonl is a seed (see studies/cells.py): mae/cifar10_cpu.flags in float32
with another number of --steps; logistic regression and 20 nearest neighbors as in
studies/methods_cifar10.py, on the pretrained network, the untrained one, and pixels; and both networks
fine-tuned on --labels images, by the rate of RATES with the better figure on validation images, each by
itself. How to read the tables: `loss` is the mean of the last tenth of the steps, `chance` that of the
mean of each patch; accuracies in percent, on test images. OUT/SEED.png has eight test images after the
last step: what the network sees, what it predicts of the rest, and the image.
"""

import argparse
import json
import os
import shutil

import cells

FLAGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flags")
PROTOCOLS = ("logistic", "knn")
ROWS = ("MAE", "untrained")
RATES = ("0.001", "0.0003")
RECIPE = (
    "--batch_size=128", "--optimizer=adamw", "--lr_scaling=0", "--weight_decay=0.05", "--beta_2=0.999",
    "--schedule=cosine", "--warmup_epochs=2", "--min_area=0.3", "--label_smoothing=0.1",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="tfds:cifar10", help="a source with splits train and test"
    )
    parser.add_argument("--steps", type=int, default=3000, help="of pretraining, of 128 images")
    parser.add_argument("--labels", type=int, default=2000, help="of fine-tuning")
    parser.add_argument("--epochs", type=int, default=40, help="of fine-tuning")
    cells.options(parser, "runs/masked")
    print(tables(cells.each_seed(measure, parser.parse_args())))


def measure(seed, args, call):
    """One seed: what its line says. Its folder is removed at the end."""
    folder = os.path.join(args.out, str(seed))
    data, seeded = f"--dataset={args.data}", f"--seed={seed}"
    mae = [f"--flagfile={FLAGS}/mae/cifar10_cpu.flags", data, seeded, "--precision=float32"]
    call(
        "train", *mae, f"--train_steps={args.steps}", f"--workdir={folder}/run",
        "--val_split=test[:500]",
    )  # fmt: skip
    call("export", f"--workdir={folder}/run", f"--export_dir={folder}/MAE")
    call("export", "--random_init", *mae, f"--export_dir={folder}/untrained")
    line = {"steps": args.steps, "epochs": args.epochs, "labels": args.labels}
    line |= losses(f"{folder}/run")
    with open(os.path.join(args.out, f"{seed}.png"), "wb") as f:
        f.write(summary(f"{folder}/run/validation", "pictures")[2])
    for row in ROWS:
        call(
            "evaluate", f"--module={folder}/{row}", f"--flagfile={FLAGS}/cifar10/eval.flags", data, seeded,
            "--train_split=train[:10000]", "--val_split=train[10000:14000]",
            f"--protocol={','.join(PROTOCOLS)}", f"--workdir={folder}/eval-{row}", "--nocache",
        )  # fmt: skip
        found = []
        for rate in RATES:
            tuned = f"{folder}/{row}-{rate}"
            call(
                "finetune", f"--module={folder}/{row}", data, seeded, "--train_split=train[:14000]",
                "--val_split=train[14000:]", f"--train_labels={args.labels}", f"--epochs={args.epochs}",
                f"--learning_rate={rate}", *RECIPE, f"--workdir={tuned}",
            )  # fmt: skip
            found.append({"rate": rate, **accuracies(tuned)})
        line[row] = {**cells.by_endpoint(f"{folder}/eval-{row}", PROTOCOLS), "tuned": found}
    shutil.rmtree(folder)
    return line


def losses(workdir):
    """{"first": , "loss": , "chance": } of a run: means of the first tenth, the last, and chance."""
    with open(os.path.join(workdir, "metrics.jsonl")) as f:
        seen = [json.loads(line) for line in f]
    values = [line["loss"] for line in seen if "loss" in line]
    tenth = max(len(values) // 10, 1)
    first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
    return {"first": first, "loss": last, "chance": float(summary(f"{workdir}/chance", "loss"))}


def summary(folder, name):
    """The last array of a name in TensorBoard's files; of a picture, [width, height, PNG]."""
    import tensorflow as tf

    found = None
    for path in sorted(tf.io.gfile.glob(os.path.join(folder, "*"))):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == name:
                    found = value.tensor
    if found is None:
        raise SystemExit(f"{folder} has no {name}")
    return tf.make_ndarray(found)


def accuracies(workdir):
    """{"val": , "test": } of a fine-tuned network's last step, of 1."""
    with open(os.path.join(workdir, "metrics.jsonl")) as f:
        validation = [json.loads(line) for line in f if "validation_accuracy" in line][-1]
    (result,) = [r for r in cells.results_of(workdir) if r["metric"] == "accuracy"]
    return {"val": validation["validation_accuracy"], "test": result["value"]}


def tables(lines):
    """Markdown: the loss, and a line for each network, means over the seeds and ranges."""
    shown = []
    for row in ROWS:
        columns = [[100 * r[row][p][r[row][f"{p}_best"]] for r in lines] for p in PROTOCOLS]
        columns.append([100 * max(r[row]["tuned"], key=lambda t: t["val"])["test"] for r in lines])
        shown.append([row, len(lines), *map(cells.mean_and_range, columns)])
    pixels = [[100 * r["MAE"][p]["pixels"] for r in lines] for p in PROTOCOLS]
    shown.append(["raw pixels", len(lines), *map(cells.mean_and_range, pixels), ""])
    head = ["network", "seeds", "logistic, best", "kNN, best", "fine-tuned"]
    of_loss = [
        [r["seed"], *(f"{r[k]:.3f}" for k in ("first", "loss", "chance")), f"{r['loss'] / r['chance']:.2f}"]
        for r in lines
    ]  # fmt: skip
    return "\n\n".join(
        [
            cells.table(["seed", "first tenth", "loss", "chance", "loss / chance"], of_loss),
            cells.table(head, shown),
        ]
    )


if __name__ == "__main__":
    main()

"""How much of an encoder does a network of a quarter of its parameters keep? CIFAR-10 without labels:
a teacher by SimCLR, and students that predict its features.

    python studies/distillation.py --data folder:cifar10 --out runs/distillation --seeds 0,1,2 --processes 2

Each line of OUT/results.jsonl is a seed (see studies/cells.py): the teacher, a ResNet-18 v2 of a
quarter of the width, by simclr/cifar10_cpu.flags; the student, of an eighth, by distill/cifar10_cpu.flags
from it; beside it the student's network untrained, and trained by SimCLR itself in as many
steps as the student had. All in float32. How to read the table: test accuracy in percent of
logistic regression and of 20 nearest neighbors on 10,000 labels, at the endpoint that 4,000 other
images chose, and at the last, whose features the student learns; mean of the seeds, and range.
"""

import argparse
import os
import shutil

import cells

FLAGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flags")
PROTOCOLS = ("logistic", "knn")
HALF = "--width_multiplier=0.125"  # of the teacher's width: a quarter of its parameters
ROWS = ("teacher", "student", "student's network, SimCLR", "student's network, untrained")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="tfds:cifar10", help="a source with splits train and test"
    )
    parser.add_argument("--teacher_steps", type=int, default=1500)
    parser.add_argument("--student_steps", type=int, default=2500)
    cells.options(parser, "runs/distillation")
    print(table(cells.each_seed(measure, parser.parse_args())))


def measure(seed, args, call):
    """The encoders of one seed: what its line says. Their folder is removed at the end."""
    folder = os.path.join(args.out, str(seed))
    common = [f"--dataset={args.data}", f"--seed={seed}", "--precision=float32"]
    simclr = [f"--flagfile={FLAGS}/simclr/cifar10_cpu.flags", *common]
    students = f"--train_steps={args.student_steps}"

    def train(name, *flags):
        call("train", *flags, f"--workdir={folder}/{name}")
        call("export", f"--workdir={folder}/{name}", f"--export_dir={folder}/{name}/module")

    train("0", *simclr, f"--train_steps={args.teacher_steps}")
    distill = [f"--flagfile={FLAGS}/distill/cifar10_cpu.flags", *common]
    train("1", *distill, f"--teacher={folder}/0/module", HALF, students)
    train("2", *simclr, HALF, students)
    call("export", "--random_init", *simclr, HALF, f"--export_dir={folder}/3/module")
    line = {"teacher_steps": args.teacher_steps, "student_steps": args.student_steps}
    for number, row in enumerate(ROWS):
        call(
            "evaluate", f"--module={folder}/{number}/module", f"--flagfile={FLAGS}/cifar10/eval.flags",
            f"--dataset={args.data}", "--train_split=train[:10000]", "--val_split=train[10000:14000]",
            f"--protocol={','.join(PROTOCOLS)}", f"--seed={seed}", f"--workdir={folder}/{number}/eval", "--nocache",
        )  # fmt: skip
        line[row] = cells.by_endpoint(f"{folder}/{number}/eval", PROTOCOLS)
    shutil.rmtree(folder)
    return line


def table(lines):
    """Markdown: a line for each encoder, and raw pixels."""
    shown = []
    for row in ROWS:
        columns = []
        for protocol in PROTOCOLS:
            for at in (lambda r, p: r[p][r[f"{p}_best"]], lambda r, p: r[p]["pre_logits"]):
                columns.append([100 * at(line[row], protocol) for line in lines])
        shown.append([row, len(lines), *map(cells.mean_and_range, columns)])
    pixels = [[100 * line["teacher"][p]["pixels"] for line in lines] for p in PROTOCOLS]
    shown.append(
        ["raw pixels", len(lines), *map(cells.mean_and_range, [pixels[0], [], pixels[1]]), ""]
    )
    head = ["encoder", "seeds", "logistic, best", "logistic, last", "kNN, best", "kNN, last"]
    return cells.table(head, shown)


if __name__ == "__main__":
    main()

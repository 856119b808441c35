"""Fine-tune an encoder on labeled photographs, classify other photographs with it, and use the
classifier from Python.

    python examples/finetune_and_predict.py runs/photos/module/1000 labeled new_photos
    python examples/finetune_and_predict.py runs/photos/module/1000 labeled new_photos --labels 10% --epochs 60

`labeled` holds a folder for each class (labeled/cat/1.jpg); `new_photos` any images. The module is
any TF2 Hub module of images.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from tfssl import predict


def command(name: str, *flags: str) -> None:
    """Run `python -m tfssl.NAME`, as the installed commands do; end with its status where it
    fails."""
    status = subprocess.run([sys.executable, "-m", f"tfssl.{name}", *flags], check=False).returncode
    if status:
        sys.exit(status)


def classify(classifier: str, image_file: str) -> str:
    """The likeliest class of one JPEG or PNG, by the SavedModel alone: all that a server needs."""
    model = tf.saved_model.load(classifier)
    with open(os.path.join(classifier, "assets", "labels.txt"), encoding="utf-8") as f:
        names = f.read().splitlines()
    image = tf.io.decode_image(tf.io.read_file(image_file), channels=3, expand_animations=False)
    image = (
        tf.cast(image, tf.float32)[None] / 255
    )  # [1, H, W, 3] in [0, 1]; `tfssl-predict` also resizes and crops
    return names[int(tf.argmax(model(image)[0]))]


def main(argv: Optional[Sequence[str]] = None) -> list[dict[str, str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="the encoder")
    parser.add_argument(
        "labeled", help="photographs by class; a fifth of them tests the classifier"
    )
    parser.add_argument("new_photos", help="photographs to classify")
    parser.add_argument(
        "--out",
        default="runs/classifier",
        help="folder of the run; the same command again resumes it",
    )
    parser.add_argument(
        "--labels", default="all", help="labels to learn from: all, 10%%, or a number"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--learning_rate", type=float, default=0.0125, help="peak rate of a cosine schedule"
    )
    args = parser.parse_args(argv)

    command(
        "finetune",
        f"--module={args.module}",
        f"--dataset=folder:{args.labeled}",
        "--train_split=train[:80%]",
        "--test_split=train[80%:]",
        f"--train_labels={args.labels}",
        f"--epochs={args.epochs}",
        f"--batch_size={args.batch_size}",
        f"--learning_rate={args.learning_rate}",
        "--lr_scaling=0",
        f"--workdir={args.out}",
    )
    published = os.path.join(args.out, "classifier")
    classifier = os.path.join(published, max(os.listdir(published), key=int))
    table = os.path.join(args.out, "predictions.csv")
    command("predict", f"--module={classifier}", f"--images={args.new_photos}", f"--output={table}")

    rows = predict.read(table)
    for row in rows[:10]:
        print(
            f"{row['name']}: {row['class']} ({float(row['probability']):.0%})"
            if not row["error"]
            else f"{row['name']}: {row['error']}"
        )
    readable = next(row["name"] for row in rows if not row["error"])
    print(f"from Python: {readable}: {classify(classifier, readable)}")
    return rows


if __name__ == "__main__":
    main()

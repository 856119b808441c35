"""How many images per second become two SimCLR views, beside lightly's transform (torchvision on
Pillow)?

    python benchmarks/lightly_views.py --lightly=PYTHON                  # images of its own, 500 x 375 and 4032 x 3024
    python benchmarks/lightly_views.py --lightly=PYTHON --data photos    # JPEGs of yours, found in all folders below

PYTHON is an interpreter with lightly (pip install lightly); it needs not be this one's. Both make
two views of 224 pixels out of an encoded JPEG in memory: random crop, flip, color jitter, gray and
blur as in SimCLR; lightly in its own way, without its normalization.

How to read the table: one process for each side, on the same core, one thread; they take turns, so
that a busy machine slows both alike. images/s are images (not views) per second of CPU time, median
over the turns; the ratio is that to lightly, median within the rounds, with its range. "host" is
`augmentation.host_views`; we aim at 5. "host, device does the colors" is what is left to the host
then: decode, crop, resize, bytes; we aim at 8. "decode" is the whole JPEG, once, at full size: what
none that reads all of it gets below; "1/8" at an eighth, which is mostly reading the file's code.

Linux only: cores are assigned.
"""

import argparse
import io
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {"500 x 375": (500, 375, 48), "4032 x 3024": (4032, 3024, 4)}  # width, height, files


def write_jpegs(folder, width, height, count):
    """Cuts of scikit-learn's two photographs, enlarged where they are too small, with some noise:
    quality 90."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for i in range(count):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        side = random.uniform(0.7, 1)
        w, h = int(photo.width * side), int(photo.height * side)
        x, y = random.integers(0, photo.width - w + 1), random.integers(0, photo.height - h + 1)
        photo = photo.crop((x, y, x + w, y + h)).resize((width, height), Image.BICUBIC)
        levels = np.asarray(photo, np.float32) + random.normal(0, 4, [height, width, 1])
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(
            f"{folder}/{i:03}.jpg", quality=90
        )


def lightly_ways():
    """{row: function (turn's number of images) -> None}."""
    import torch
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    torch.set_num_threads(1)
    transform = SimCLRTransform(input_size=224, normalize=None)

    def way(encoded):
        files = itertools.cycle(encoded)
        return lambda: transform(Image.open(io.BytesIO(next(files))).convert("RGB"))

    return {"lightly": way}


def tfssl_ways():
    import tfssl  # noqa: F401, I001 - before TensorFlow: it chooses Keras 2 behind tf.keras
    import tensorflow as tf
    from tfssl.data import augmentation

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    policies = augmentation.per_view("simclr", 2)

    def way(function):
        def start(encoded):
            seeds = tf.data.Dataset.counter().map(
                lambda number: tf.stack([tf.constant(0, tf.int64), number])
            )
            data = tf.data.Dataset.zip(
                (tf.data.Dataset.from_tensor_slices(encoded).repeat(), seeds)
            ).map(function)
            images = iter(data.with_options(options))
            return lambda: next(images)

        return start

    def crops(data, seed):
        regions = [augmentation.Region(policy, view, 224) for view, policy in enumerate(policies)]
        return tf.stack(augmentation.crops(data, seed, regions))

    jpeg = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
    return {
        "host": way(lambda data, seed: augmentation.host_views(data, seed, policies, 224)),
        "host, device does the colours": way(crops),
        "decode": way(lambda data, seed: tf.io.decode_jpeg(data, **jpeg)),
        "decode at 1/8": way(lambda data, seed: tf.io.decode_jpeg(data, ratio=8, **jpeg)),
    }


def serve(side, folder):
    """For each line "row count" that comes in, the CPU seconds of so many images."""
    encoded = [path.read_bytes() for path in jpegs(folder)]
    ways = {
        row: start(encoded)
        for row, start in (tfssl_ways() if side == "tfssl" else lightly_ways()).items()
    }
    print("\t".join(ways), flush=True)
    for line in sys.stdin:
        row, count = line.rstrip("\n").split("\t")
        begin = time.process_time()
        for _ in range(int(count)):
            ways[row]()
        print(time.process_time() - begin, flush=True)


def jpegs(folder):
    return sorted(
        path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )


def compare(name, folder, args):
    """Prints the table of one folder."""
    core = min(os.sched_getaffinity(0))
    sides = {}
    for side, python in (("lightly", args.lightly), ("tfssl", sys.executable)):
        process = subprocess.Popen(
            [python, __file__, f"--serve={side}", f"--data={folder}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        for row in process.stdout.readline().rstrip("\n").split("\t"):
            sides[row] = process

    def seconds(row, count):
        sides[row].stdin.write(f"{row}\t{count}\n")
        sides[row].stdin.flush()
        return float(sides[row].stdout.readline())

    speeds = {row: [] for row in sides}
    count = len(jpegs(folder))
    for turn in range(args.repeats + 1):
        for row in sides:
            speed = count / seconds(row, count)
            if turn:  # the first compiles, and is for the caches
                speeds[row].append(speed)
    for process in set(sides.values()):
        process.stdin.close()
        process.wait()
    size = statistics.mean(path.stat().st_size for path in jpegs(folder)) / 1000
    print(f"\n{f'{name}, {size:.0f} kB each':36} images/s   ratio to lightly (range)")
    for row, values in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, speeds["lightly"])]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{row:36} {statistics.median(values):8.1f}   {statistics.median(ratios):5.2f} "
            f"{spread}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lightly", help="the interpreter that has lightly")
    parser.add_argument("--data", help="a folder of JPEGs; without it, images of the script's own")
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of each row, of all files once"
    )
    parser.add_argument("--serve", choices=["lightly", "tfssl"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.data)
    if not args.lightly:
        parser.error("--lightly=PYTHON is missing: an interpreter that has lightly")
    if args.data:
        return compare(args.data, args.data, args)
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_jpegs(folder, *size)
            compare(name, folder, args)


if __name__ == "__main__":
    main()

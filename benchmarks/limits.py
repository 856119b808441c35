"""What breaks first at 100 million images? The parts of the library whose cost grows with the
number of images, each in a process of its own.

    python benchmarks/limits.py                     # about ten minutes, 3 GB of memory, 2 GB of disk
    python benchmarks/limits.py --images 1e6,1e7    # the short form

How to read it: `CPU s` is processor time, which other work on the machine hardly changes; GB is
what memory grew by, at its peak.

- order: one epoch's order of a source whose images can be read in any order, to its first record.
- subset: `--train_subset` of one image in a hundred.
- folder: `folder:` of so many files, without the listing itself; from 1e8 on it is left out.
- images/s: what one core makes of JPEGs of 341 x 256 pixels, quality 90, for the tasks as
flags/goyal has them (decoding, crop, flip).
- records/s: records of 25 kB that one core skips when a run is resumed, or sifts when it keeps one
row in sixteen.

Linux only: memory is read from /proc.
"""

import argparse
import os
import statistics
import tempfile
import time

from input import in_a_process  # benchmarks/input.py


def status(field):
    """GB, of /proc/self/status."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1e6 for line in f if line.startswith(field))


def order(count):
    from tfssl.data.sources.base import IndexedSource

    yield
    next(iter(IndexedSource("images", "train", count).records(seed=0)))


def subset(count):
    from tfssl.data.sources.base import IndexedSource
    from tfssl.data.sources.subset import nested

    yield
    nested(IndexedSource("images", "train", count), count // 100)


def folder(count):
    from tfssl.data.sources import folder as folders

    names = [f"{i % 1000:04}/{i:012}.jpg" for i in range(count)]
    folders._list = lambda root, spec: (names, {})
    yield
    folders.FolderSource("folder:images", "images")


def growth(part, count):
    import tfssl  # noqa: F401 (before TensorFlow)

    steps = globals()[part](count)
    next(steps)
    memory, start, clock = status("VmRSS"), time.time(), time.process_time()
    next(steps, None)
    peak = status("VmHWM") - memory
    print(
        f"{part:8} {count:12,} {time.process_time() - clock:8.1f} CPU s {time.time() - start:8.1f} "
        f"s {peak:6.2f} GB",
        flush=True,
    )


def host(task, settings, root):
    """Images a CPU second, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import tfssl

    network = tfssl.backbones.build(
        "resnet18_v1",
        width_multiplier=0.25,
        stem="stride16" if task == "colorization" else "imagenet",
    )
    data = iter(
        tfssl.pretext.build(task, network, **settings).dataset(
            tfssl.open_source(f"folder:{root}"), 64
        )
    )
    speeds = []
    for _ in range(5):
        for batch in range(7):
            if batch == 2:  # the first are what was prepared before
                start = time.process_time()
            next(data)
        speeds.append(5 * 64 / (time.process_time() - start))
    print(
        f"{task:14} {statistics.median(speeds):8.0f} images/s ({min(speeds):.0f} to "
        f"{max(speeds):.0f})",
        flush=True,
    )


def stream(root):
    import tfssl

    source = tfssl.open_source(f"tfrecord:{root}")
    count = source.num_examples
    ways = {"skipped": {"start": count - 10}, "sifted": {"rows": (4096, 0, 256)}}
    for name, settings in ways.items():
        clock = time.process_time()
        for _ in (
            source.records(seed=0, **settings)
            .take(count // 16 - 100 if name == "sifted" else 5)
            .batch(100)
        ):
            pass
        print(f"{name:14} {count / (time.process_time() - clock):8.0f} records/s", flush=True)


def write(root):
    """128 JPEGs in ROOT/photos, and 80,000 records of 25 kB in ROOT/records."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    random, photos = np.random.default_rng(0), load_sample_images().images
    os.makedirs(f"{root}/photos")
    os.makedirs(f"{root}/records")
    sizes = []
    for i in range(128):
        y, x = random.integers(0, [photos[0].shape[0] - 374, photos[0].shape[1] - 499])
        pixels = tf.image.resize(
            tf.cast(photos[i % 2][y : y + 375, x : x + 500], tf.float32), [256, 341], "area"
        )
        jpeg = tf.io.encode_jpeg(tf.cast(tf.round(pixels), tf.uint8), quality=90).numpy()
        sizes.append(len(jpeg))
        with open(f"{root}/photos/{i:03}.jpg", "wb") as f:
            f.write(jpeg)
    print(f"JPEGs of 341 x 256: {np.mean(sizes):.0f} bytes in the mean", flush=True)
    image = tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[jpeg + random.bytes(max(25_000 - len(jpeg), 0))])
    )
    record = tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": image})
    ).SerializeToString()
    for i in range(16):
        with tf.io.TFRecordWriter(f"{root}/records/train-{i:05}-of-00016") as writer:
            for _ in range(5000):
                writer.write(record)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="1e6,1e7,1e8")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for count in (int(float(text)) for text in args.images.split(",")):
        for part in ("order", "subset", "folder"):
            if part != "folder" or count < 1e8:
                in_a_process(growth, part, count)
    tasks = {
        "jigsaw": {
            "image_size": 255, "scaled_size": 256, "patch_size": 64, "keep_aspect": True, "flip": True, "standardize": False, "gray": 0.66,
            "permutations_per_image": 1,
        },
        "colorization": {"image_size": 224, "resize": 256},
        "rotation": {"image_size": 224},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        in_a_process(write, root)
        for task, settings in tasks.items():
            in_a_process(host, task, settings, f"{root}/photos")
        in_a_process(stream, f"{root}/records")


if __name__ == "__main__":
    main()

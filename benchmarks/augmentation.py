"""How many images per second does the host turn into two SimCLR views, beside the published ops
composed from tf.image?

    python benchmarks/augmentation.py --data imagenette/train        # JPEGs of yours, found in all folders below
    python benchmarks/augmentation.py --method bilinear --repeats 9

Both make two views of 224 pixels from an encoded JPEG, without blur: random crop, flip, colour
jitter in a random order with a clip after each op, gray; as floats.

How to read the first table: all rows run in one process on one core, one thread, and take turns, so
that a busy machine slows all alike. images/s are images (not views) per second of CPU time, median
over the turns; the ratio is that to the row "plain", median within the rounds, with its range.
"plain" decodes once, and for each view crops, resizes and runs tf.image's random ops, what no coin
asks for being skipped. "host" is `augmentation.host_views`, which does all of it; we aim at 2.
"host, device does the colors" is what is left to the host then: decode, crop, resize, uint8; we
aim at 3. "plain, crops only" and "host, crops only" say how much of either is not colors.

The second table is the device part on this CPU: milliseconds per image of each op over a batch,
compiled with XLA and not, beside tf.image's op for one image after another where there is one. On a
GPU it is another table: run it there.
"""

import argparse
import os
import pathlib
import statistics
import time


def plain_views(method, size, colour):
    """(encoded image, seed) -> two views [2, size, size, 3] in [0, 1], from tf.image alone."""
    import tensorflow as tf

    def jitter(image):
        order = tf.random.shuffle(tf.range(4))
        for i in range(4):
            ops = [
                lambda x=image: x * tf.random.uniform([], 0.2, 1.8),
                lambda x=image: tf.image.random_contrast(x, 0.2, 1.8),
                lambda x=image: tf.image.random_saturation(x, 0.2, 1.8),
                lambda x=image: tf.image.random_hue(x, 0.2),
            ]
            image = tf.clip_by_value(tf.switch_case(order[i], ops), 0, 1)
        return image

    def gray(image):
        return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])

    def view(image):
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([0, 0, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.resize(tf.slice(image, begin, extent), [size, size], method)
        image = tf.ensure_shape(tf.clip_by_value(image, 0, 1), [size, size, 3])
        if colour:
            image = tf.image.random_flip_left_right(image)
            image = tf.cond(tf.random.uniform([]) < 0.8, lambda: jitter(image), lambda: image)
            image = tf.cond(tf.random.uniform([]) < 0.2, lambda: gray(image), lambda: image)
        return image

    def views(encoded, seed):
        image = tf.image.convert_image_dtype(tf.io.decode_jpeg(encoded, channels=3), tf.float32)
        return tf.stack([view(image) for _ in range(2)])

    return views


def host(args):
    """Prints the first table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores
    import tfssl  # noqa: F401, I001 - before TensorFlow: it chooses Keras 2 behind tf.keras
    import tensorflow as tf
    from tfssl.data import augmentation

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    files = sorted(
        path
        for path in pathlib.Path(args.data).rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg")
    )
    files = files[:: max(1, len(files) // args.files)][: args.files]
    encoded = [path.read_bytes() for path in files]
    policy = augmentation.Policy(crop_method=args.method, blur=0.0)
    nothing = augmentation.Policy(crop_method=args.method, blur=0.0, flip=0.0, jitter=0.0, gray=0.0)
    size = args.image_size

    def bytes_only(data, seed):
        return tf.stack(
            augmentation.crops(
                data, seed, [augmentation.Region(policy, view, size) for view in range(2)]
            )
        )

    ways = {
        "plain": plain_views(args.method, size, colour=True),
        "plain, crops only": plain_views(args.method, size, colour=False),
        "host": lambda data, seed: augmentation.host_views(data, seed, (policy, policy), size),
        "host, crops only": lambda data, seed: augmentation.host_views(
            data, seed, (nothing, nothing), size
        ),
        "host, device does the colours": bytes_only,
    }
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False

    def iterator(way):
        seeds = tf.data.Dataset.counter().map(
            lambda number: tf.stack([tf.constant(0, tf.int64), number])
        )
        data = tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensor_slices(encoded).repeat(), seeds)
        ).map(way)
        return iter(data.with_options(options))

    iterators = {name: iterator(way) for name, way in ways.items()}
    speeds = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, data in iterators.items():
            start = time.process_time()
            for _ in range(args.images):
                next(data)
            if turn:  # the first compiles, and is for the caches
                speeds[name].append(args.images / (time.process_time() - start))

    print(f"{'two views, one core':32} images/s   ratio to plain (range)")
    for name, values in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(values, speeds["plain"])]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{name:32} {statistics.median(values):8.0f}   {statistics.median(ratios):5.2f} "
            f"{spread}",
            flush=True,
        )


def device(args):
    """Prints the second table."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    from tfssl.data.ops import photometric

    size, rows = args.image_size, args.batch
    photos = np.stack(load_sample_images().images)[:, :size, :size].astype(np.float32) / 255
    images = tf.constant(np.tile(photos, [rows // 2, 1, 1, 1]))
    u = tf.random.stateless_uniform([rows, 8], [1, 2])
    factor, shift = 0.2 + 1.6 * u[:, 0], 0.4 * u[:, 1] - 0.2
    sigma = 0.1 + 1.9 * u[:, 2]

    def jitter(x):
        return photometric.color_jitter(
            x, factor, factor[::-1], 0.2 + 1.6 * u[:, 3], shift, u[:, 4:]
        )

    def plain_jitter(x):
        x = tf.clip_by_value(x * factor[0], 0, 1)
        x = tf.clip_by_value(tf.image.adjust_contrast(x, factor[1]), 0, 1)
        x = tf.clip_by_value(tf.image.adjust_saturation(x, factor[2]), 0, 1)
        return tf.clip_by_value(tf.image.adjust_hue(x, shift[0]), 0, 1)

    ops = {
        "brightness": (lambda x: photometric.scale_brightness(x, factor), lambda x: x * factor[0]),
        "contrast": (
            lambda x: photometric.adjust_contrast(x, factor),
            lambda x: tf.image.adjust_contrast(x, factor[0]),
        ),
        "saturation": (
            lambda x: photometric.adjust_saturation(x, factor),
            lambda x: tf.image.adjust_saturation(x, factor[0]),
        ),
        "hue": (
            lambda x: photometric.adjust_hue(x, shift),
            lambda x: tf.image.adjust_hue(x, shift[0]),
        ),
        "jitter, any order": (jitter, plain_jitter),
        "gray": (
            photometric.drop_color,
            lambda x: tf.tile(tf.image.rgb_to_grayscale(x), [1, 1, 3]),
        ),
        "blur": (lambda x: photometric.gaussian_blur(x, sigma), None),
        "solarize": (lambda x: photometric.solarize(x, u[:, 0]), None),
        "noise": (lambda x: photometric.gaussian_noise(x, u[:, 0], u[:, 1]), None),
        "sobel": (photometric.sobel, None),
        "cutout": (lambda x: photometric.cutout(x, u[:, :2], size // 2), None),
        "quarter turns": (
            lambda x: photometric.quarter_turns(x, tf.cast(4 * u[:, 0], tf.int32)),
            None,
        ),
    }

    def milliseconds(function):
        """The fastest of the turns."""

        def once():
            start = time.perf_counter()
            function(images).numpy()
            return (time.perf_counter() - start) * 1000 / rows

        once()
        return min(once() for _ in range(args.repeats))

    print(f"\n{f'batch of {rows}, ms per image':32} batched   with XLA   tf.image, one by one")
    for name, (op, one) in ops.items():
        times = [
            milliseconds(tf.function(op)),
            milliseconds(tf.function(op, autograph=False, jit_compile=True)),
        ]
        if one:
            times.append(
                milliseconds(tf.function(lambda x, one=one: tf.map_fn(one, x), autograph=False))
            )
        print(
            f"{name:32} {times[0]:7.2f} {times[1]:10.2f}   "
            + (f"{times[2]:20.2f}" if one else f"{'-':>20}"),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a folder of JPEGs; without it, only the second table")
    parser.add_argument("--files", type=int, default=256, help="so many of them")
    parser.add_argument("--image_size", type=int, default=224, help="side of the views, in pixels")
    parser.add_argument(
        "--method", default="bicubic", help="of tf.image.resize, in all rows; SimCLR's is bicubic"
    )
    parser.add_argument("--images", type=int, default=192, help="images of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender")
    parser.add_argument("--batch", type=int, default=16, help="images of the second table, even")
    args = parser.parse_args()
    if args.data:
        host(args)
    device(args)


if __name__ == "__main__":
    main()

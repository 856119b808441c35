"""How many images per second does the input deliver, beside a pipeline written by hand; and does
training wait for it?

    python benchmarks/input.py                                # 256 JPEGs of its own, 500 x 375 as in ImageNet
    python benchmarks/input.py --data photos --repeats 9      # JPEGs of yours, found in all folders below

The task is rotation prediction: a random crop of random area and aspect, resized, flipped; four
quarter turns; floats.

How to read the first table: all rows run in one process on one core and take turns, so that a busy
machine slows all alike. images/s per core is images per second of CPU time, median over the turns;
the ratio is that to the row "plain", median within the rounds, with its range. "plain" is what the
TensorFlow guide leads one to write: decode, crop, resize, flip and turn one image at a time, as
floats. "tfssl, host" is all that the input pipeline of the library does: it hands on uint8, and the
rest is for the device; we promise 1.5 or more. "tfssl, host + device on this core" adds that rest,
done on the same core though a GPU would do it: then both rows end in the same floats. The rows
"with colour" add brightness and saturation.

How to read the second table: images/s by the clock (so it wants an idle machine) of `fit` on one
resident batch, of the pipeline alone, and of `fit` on the pipeline. Whether training waits for
input is a question only where the step takes images at more than half of the pipeline's rate, and
not faster than it; so the heaviest network is looked for that does (--network fixes it). "kept" is
fit on the pipeline / fit on the resident batch; we promise 0.9 or more. Without a GPU the step has
one half of the cores and the input the other, since a device of its own is what the question
assumes. "cores used" are CPU seconds per second of fit on the pipeline: near 1 of 2 cores means
that somebody else held the other, and the line is worthless.

Linux only: cores are assigned.
"""

import argparse
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time


def write_jpegs(folder, count=256, size=(375, 500)):
    """Random cuts of scikit-learn's two photographs; 100 kB each, ImageNet's mean."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    random, photos = np.random.default_rng(0), load_sample_images().images
    for i in range(count):
        photo = photos[i % 2]
        y, x = random.integers(0, [photo.shape[0] - size[0] + 1, photo.shape[1] - size[1] + 1])
        cut = photo[y : y + size[0], x : x + size[1]]
        pathlib.Path(folder, f"{i:03}.jpg").write_bytes(tf.io.encode_jpeg(cut, quality=95).numpy())


def plain_pipeline(files, batch, size, colour):
    """-> batches [batch, 4, size, size, 3] of floats in [0, 1], labels [batch, 4]."""
    import tensorflow as tf

    def example(number, path):
        seed = tf.stack([tf.constant(0, tf.int64), number])
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([0, 0, 4]),
            seed,
            min_object_covered=0.1,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.reshape(tf.slice(image, begin, extent), [extent[0], extent[1], 3])
        image = tf.image.resize(image, [size, size]) / 255.0
        image = tf.image.stateless_random_flip_left_right(image, seed)
        if colour:
            image = tf.image.stateless_random_brightness(image, 32 / 255, seed)
            image = tf.image.stateless_random_saturation(image, 0.5, 1.5, seed)
            image = tf.clip_by_value(image, 0.0, 1.0)
        return tf.stack([tf.image.rot90(image, k) for k in range(4)]), tf.range(4)

    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat().enumerate()
    return (
        data.map(example, tf.data.AUTOTUNE)
        .batch(batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def rotation_task(backbone, size, colour):
    import tfssl

    return tfssl.pretext.build(
        "rotation", tfssl.backbones.build(backbone), image_size=size, color=colour
    )


def patch_network(size, channels):
    """As light as a network can be that looks at every pixel: one layer of 14 x 14 patches, and
    their mean."""
    from tensorflow.keras import Sequential, layers

    patch = size // 14
    convolution = layers.Conv2D(
        channels, patch, patch, activation="relu", input_shape=[size, size, 3]
    )
    return Sequential([convolution, layers.GlobalAveragePooling2D()], name=f"patches_{channels}")


def per_core(args):
    """Prints the first table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores
    import tfssl  # noqa: F401, I001 - before TensorFlow: it chooses Keras 2 behind tf.keras
    import tensorflow as tf
    from tfssl.data.ops.draws import Draws

    source = tfssl.open_source(f"folder:{args.data}")
    files = sorted(source.name(index) for index in range(source.num_examples))
    contenders = {}
    for colour in (False, True):
        suffix = ", with colour" if colour else ""
        contenders["plain" + suffix] = (
            plain_pipeline(files, args.batch, args.image_size, colour),
            None,
        )
        task = rotation_task(patch_network(args.image_size, 8), args.image_size, colour)
        data = task.dataset(source, args.batch)
        if not colour:
            contenders["tfssl, host"] = (data, None)

        @tf.function
        def device_part(batch, task=task):
            return task.preview(task.augment(task.to_float(batch), Draws(batch)))

        contenders["tfssl, host + device on this core" + suffix] = (data, device_part)

    def speed(data, device_part, batches):
        """Images per second of CPU time, from a new iterator: nothing was prefetched in another's
        turn."""
        iterator = iter(data)
        for step in range(2 + batches):
            if step == 2:
                start = time.process_time()
            batch = next(iterator)
            if device_part:
                device_part(batch)
        return batches * args.batch / (time.process_time() - start)

    speeds = {name: [] for name in contenders}
    for turn in range(args.repeats + 1):
        for name, (data, device_part) in contenders.items():
            measured = speed(data, device_part, args.batches)
            if turn:  # the first is for the caches
                speeds[name].append(measured)

    print(f"{'per core':50} images/s   ratio to plain (range)")
    for name, values in speeds.items():
        plain = speeds["plain, with colour" if name.endswith("colour") else "plain"]
        ratios = [ours / theirs for ours, theirs in zip(values, plain)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{name:50} {statistics.median(values):8.0f}   {statistics.median(ratios):5.2f} "
            f"{spread}",
            flush=True,
        )


def end_to_end(args):
    """Prints the second table."""
    import tfssl  # noqa: F401, I001
    import tensorflow as tf

    cores, gpu = len(os.sched_getaffinity(0)), bool(tf.config.list_physical_devices("GPU"))
    options = tf.data.Options()
    if not gpu:
        if cores < 2:
            return print("one core and no GPU: nothing to overlap, so no second table")
        tf.config.threading.set_intra_op_parallelism_threads(cores // 2)
        options.threading.private_threadpool_size = cores - cores // 2
        options.autotune.cpu_budget = cores - cores // 2

    source = tfssl.open_source(f"folder:{args.data}")
    warmup, steps = 5, 5 * args.batches  # half a second would say little

    class Clock(tf.keras.callbacks.Callback):
        """Seconds from the end of the warm-up to the last step; `float` waits for the device."""

        _supports_tf_logs = True  # or Keras would wait after every step

        def on_train_batch_end(self, batch, logs=None):
            if batch == warmup - 1:
                float(logs["loss"])
                self.start = time.perf_counter(), time.process_time()
            if batch == warmup + steps - 1:
                float(logs["loss"])
                self.seconds = time.perf_counter() - self.start[0]
                self.cores = (time.process_time() - self.start[1]) / self.seconds

    def fit_speed(task, data):
        clock = Clock()
        task.fit(data, steps_per_epoch=warmup + steps, verbose=0, callbacks=[clock])
        return steps * args.batch / clock.seconds, clock.cores

    def input_speed(data):
        iterator = iter(data)
        for step in range(warmup + steps):
            if step == warmup:
                start = time.perf_counter()
            next(iterator)
        return steps * args.batch / (time.perf_counter() - start)

    def compiled(network):
        task = rotation_task(network, args.fit_image_size, args.colour)
        task.compile(optimizer=tf.keras.optimizers.SGD(0.001, momentum=0.9))
        data = task.dataset(source, args.batch).with_options(options)
        resident = tf.data.Dataset.from_tensors(next(iter(data))).repeat()
        fit_speed(task, resident)  # traces
        return task, data, resident

    networks = ["resnet152_v2", "resnet50_v2", "resnet18_v2"] if gpu else []  # the heaviest first
    networks += [
        patch_network(args.fit_image_size, channels)
        for channels in (512, 256, 192, 128, 96, 64, 32, 16)
    ]
    for network in [args.network] if args.network else networks:
        task, data, resident = compiled(network)
        if fit_speed(task, resident)[0] > 0.6 * input_speed(data):
            break

    speeds = []
    for _ in range(args.repeats):
        speeds.append((fit_speed(task, resident)[0], input_speed(data), *fit_speed(task, data)))
    step, alone, both, busy = (statistics.median(column) for column in zip(*speeds))
    kept = [both / step for step, _, both, _ in speeds]
    print(
        f"\n{'end to end':14} resident images/s   pipeline alone   fit on the pipeline   cores "
        "used   step/pipeline   kept (range)"
    )
    print(
        f"{task.backbone.name:14} {step:17.0f} {alone:16.0f} {both:21.0f} {busy:12.2f} "
        f"{step / alone:15.2f}   "
        f"{statistics.median(kept):.2f} ({min(kept):.2f} to {max(kept):.2f})"
    )
    if not 0.5 < step / alone < 1:
        print(
            "step/pipeline is not between 0.5 and 1, so this says little: see --network, "
            "--fit_image_size and --data"
        )


def in_a_process(function, *args):
    """TensorFlow's threads and cores are set once per process."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", help="a folder of JPEGs; without it, a temporary folder of the script's own"
    )
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--image_size", type=int, default=224, help="side of the crops, in pixels")
    parser.add_argument(
        "--fit_image_size", type=int, default=98, help="end to end: side of the crops, in pixels"
    )
    parser.add_argument("--batches", type=int, default=8, help="batches of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender")
    parser.add_argument("--network", default="", help="end to end: one of tfssl.backbones.NAMES")
    parser.add_argument(
        "--colour", action="store_true", help="end to end: with the colour part in the step"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            args.data = folder
            in_a_process(write_jpegs, folder)
        print(
            f"batch {args.batch}, {args.image_size} pixels, {args.batches} batches a turn, "
            f"{args.repeats} turns",
            flush=True,
        )
        in_a_process(per_core, args)
        in_a_process(end_to_end, args)


if __name__ == "__main__":
    main()

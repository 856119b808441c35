"""Semantic segmentation on frozen maps: a linear or a dilated head on each endpoint, mean intersection over union.

The module sees each image once, as a whole, resized to one size; a head learns from the maps, each channel brought to mean 0 and
deviation 1, by Adam with a cosine schedule. Its logits are brought to the masks' size (bilinear) for loss and prediction alike. The dilated
head is that of MoCo's (He et al., arXiv 1911.05722) FCN: two 3x3 convolutions of 256 channels and dilation 6, each with BN and ReLU, and a
1x1 convolution. A pixel of the baseline `pixels` sees the 8x8 pixels around it.
"""

import time

import numpy as np
import tensorflow as tf

from tfssl.data import image
from tfssl.errors import UserError, check_choice

METRIC = "mIoU"
NEEDS = "mask"  # what examples must have
HEADS = ("linear", "dilated")
BLOCK = 8  # side, in pixels, of what an entry of the baseline's map sees


def run(
    module,
    train,
    test,
    val=None,
    endpoints=None,
    size=(0, 0),
    head="linear",
    epochs=60,
    batch_size=8,
    learning_rate=0.01,
    ignore=255,
    val_fraction=0.2,
    seed=0,
    skip_pixels=False,
):
    """Mean IoU on the test images of a head on each endpoint.

    Args:
      module: a loaded `modules.Module`, some of whose endpoints are maps [N, h, w, C].
      train, test, val: sources whose examples have a "mask" (see `tfssl.data.masks`); without `val` a part of `train` is held out to choose
        the endpoint, and what is reported then learns from all of it.
      endpoints: names; None for all maps of the module. "pixels" is one more: the images themselves.
      size: (height, width) that images are resized to; (0, 0): that of the first training image.
      head: "linear" or "dilated".
      epochs, batch_size, learning_rate: of Adam; the rate is the first.
      ignore: the number of a mask's pixels that have no class.
      val_fraction: see `val`; 0 holds nothing out.
      seed: of weights, order and the held-out part.
      skip_pixels: leave "pixels" out where all endpoints are asked for: they are the same for every module.

    Returns:
      a list of results: {"protocol", "endpoint", "metric", "value", "val_value", "per_class": IoU of each class, ...}.
    """
    check_choice("head", head, HEADS)
    size = _size(train, size)
    names = check_endpoints(module, size, endpoints)
    names = [name for name in names if name != "pixels"] if skip_pixels else names
    parts = {
        part: Maps(module, source, names, size, ignore)
        for part, source in (("train", train), ("test", test), ("val", val))
        if source
    }
    classes = parts["train"].classes
    rows = np.random.default_rng(seed).permutation(len(parts["train"].masks))
    held_out = 0 if val else round(val_fraction * len(rows))
    results = []
    for name in names:
        begun = time.time()
        settings = (name, head, classes, epochs, batch_size, learning_rate, seed)
        val_value = None
        if held_out:
            trial = _fit(parts["train"], rows[held_out:], *settings)
            val_value = iou(trial, parts["train"], rows[:held_out], name, classes)[0]
        predict = _fit(parts["train"], rows, *settings)
        if val:
            val_value = iou(predict, parts["val"], np.arange(len(parts["val"].masks)), name, classes)[0]
        value, per_class = iou(predict, parts["test"], np.arange(len(parts["test"].masks)), name, classes)
        results.append(
            {
                "protocol": "segmentation",
                "endpoint": name,
                "metric": METRIC,
                "value": value,
                "val_value": val_value,
                "per_class": per_class,
                "train_labels": len(rows),
                "head": head,
                "size": list(size),
                "features": int(parts["train"].maps[name].shape[-1]),
                "epochs": epochs,
                "learning_rate": learning_rate,
                "seconds": time.time() - begun,
                "chosen_on": f"{val.spec} {val.split}"
                if val
                else f"val_fraction {val_fraction:g} of {train.spec} {train.split}",
                "reported_on": f"{test.spec} {test.split}",
            }
        )
    return results


def check_endpoints(module, size, endpoints=None):
    """The endpoints that are maps of more than one place, and "pixels"; UserError where there is none, or one that is asked for is not."""
    shapes = module.shapes(size)
    maps = [name for name, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1]
    if not maps:
        raise UserError(
            f"module {module.handle!r} has no endpoint that is a map [N, h, w, C], which segmentation needs: its endpoints are "
            f"{', '.join(shapes)}"
        )
    wanted = [*maps, "pixels"] if endpoints is None else list(endpoints)
    odd = [name for name in wanted if name not in maps and name != "pixels"]
    if odd:
        raise UserError(f"module {module.handle!r}: {', '.join(odd)} is no map; there is {', '.join(maps)}, pixels")
    return wanted


class Maps:
    """What heads learn from, of all images of a source: `maps` {endpoint: float32 [N, h, w, C]}; `masks` int32 [N, H, W], -1: no class."""

    def __init__(self, module, source, names, size, ignore, batch_size=8):
        maps, masks = {name: [] for name in names}, []

        def load(record):
            example = source.fetch(record)
            mask = tf.image.resize(example["mask"][..., None], size, "nearest")[..., 0]
            return image.resize(example["image"], size), mask

        source.probe()
        for images, mask in source.records().map(load, tf.data.AUTOTUNE).ignore_errors().batch(batch_size):
            images = tf.cast(images, tf.float32) / 255
            found = module.endpoints(images) if set(names) - {"pixels"} else {}
            found["pixels"] = _blocks(images)
            for name in names:
                maps[name].append(found[name].numpy())
            masks.append(mask.numpy().astype(np.int32))
        if not masks:
            raise UserError(f"{source.spec} {source.split}: no image with a mask could be read")
        self.maps = {name: np.concatenate(its) for name, its in maps.items()}
        self.masks = np.concatenate(masks)
        self.masks[self.masks == ignore] = -1
        self.classes = int(self.masks.max()) + 1
        if self.classes < 2:
            raise UserError(
                f"{source.spec} {source.split}: the masks tell no classes apart, with {ignore} standing for none"
            )


def _blocks(images):
    """[N, H, W, 3] -> [N, h, w, 192]: each place the pixels of a block."""
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:3])
    return tf.nn.space_to_depth(tf.image.resize(images, [height, width]), BLOCK)


def _size(source, size):
    if all(size):
        return tuple(size)
    for record in source.records().map(source.fetch).ignore_errors().take(1):
        return tuple(int(side) for side in image.image_size(record["image"]))
    raise UserError(f"{source.spec} {source.split}: no image could be read")


def _fit(part, rows, name, head, classes, epochs, batch_size, learning_rate, seed):
    """A head that has learned from `rows` of the maps: a graph function [N, h, w, C] -> classes [N, H, W]."""
    maps, masks = part.maps[name], part.masks
    mean, deviation = maps[rows].mean((0, 1, 2)), maps[rows].std((0, 1, 2)) + 1e-6
    tf.keras.utils.set_random_seed(seed)
    layers = []
    for _ in range(2 * (head == "dilated")):
        layers += [
            tf.keras.layers.Conv2D(256, 3, padding="same", dilation_rate=6, use_bias=False),
            tf.keras.layers.BatchNormalization(momentum=0.9),
            tf.keras.layers.ReLU(),
        ]
    model = tf.keras.Sequential(
        [*layers, tf.keras.layers.Conv2D(classes, 1, kernel_initializer="zeros" if not layers else "glorot_uniform")]
    )
    model.build((None, *maps.shape[1:]))
    batch_size = min(batch_size, len(rows))
    steps = epochs * (len(rows) // batch_size)
    optimizer = tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    optimizer.build(model.trainable_variables)

    def logits(x, training):
        x = model((tf.cast(x, tf.float32) - mean) / deviation, training=training)
        return tf.image.resize(x, masks.shape[1:])

    def step(x, labels):
        with tf.GradientTape() as tape:
            known = labels >= 0
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits(x, True))
            loss = tf.reduce_sum(tf.where(known, losses, 0.0)) / tf.maximum(
                tf.reduce_sum(tf.cast(known, tf.float32)), 1.0
            )
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))  # noqa: B905

    specs = tf.TensorSpec([batch_size, *maps.shape[1:]]), tf.TensorSpec([batch_size, *masks.shape[1:]], tf.int32)
    step = tf.function(step, autograph=False).get_concrete_function(*specs)
    order = np.random.default_rng([seed, 1])
    for _ in range(epochs):
        shuffled = order.permutation(rows)
        for i in range(0, len(rows) - batch_size + 1, batch_size):
            batch = shuffled[i : i + batch_size]
            step(tf.constant(maps[batch]), tf.constant(masks[batch]))
    # Traced by hand: TensorFlow would warn of many functions made of one piece of code.
    predict = tf.function(lambda x: tf.argmax(logits(x, False), -1, tf.int32), autograph=False)
    return predict.get_concrete_function(tf.TensorSpec([None, *maps.shape[1:]]))


def iou(predict, part, rows, name, classes, batch_size=8):
    """(mean IoU, list of each class's IoU) on `rows`; None of a class that neither occurs nor is predicted, which the mean leaves out."""
    confusion = np.zeros([classes, classes], np.int64)
    for i in range(0, len(rows), batch_size):
        batch = rows[i : i + batch_size]
        guess, truth = predict(tf.constant(part.maps[name][batch])).numpy(), part.masks[batch]
        known = (truth >= 0) & (truth < classes)
        confusion += np.bincount(truth[known] * classes + guess[known], minlength=classes**2).reshape(classes, classes)
    hit, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    each = [float(h / u) if u else None for h, u in zip(hit, union)]  # noqa: B905 (Python 3.9)
    return float(np.mean([v for v in each if v is not None])), each

"""From a source to batches: parallel decoding in a fixed order, bad images replaced in place, static shapes.

Row r of global batch s is example number n = s * batch_size + r, and it is a pure function of (seed, n). So a pipeline can begin at any
step, and several can share a batch, without any state to save.
"""

import sys

import tensorflow as tf

from tfssl.data import image
from tfssl.data.service import examples as service_examples

# What examples are made by has no Python branch on a tensor: to look for one would take longer than tracing does.
plain = tf.autograph.experimental.do_not_convert


def training_batches(
    source, example, batch_size, seed=0, start_step=0, steps=None, rows=None, chunk=None, endless=False, service=None
):
    """The batches of a training run, from step `start_step` on.

    Args:
      source: a `tfssl.data.Source`.
      example: function (image, seed) -> what becomes of one image; `image` is encoded (a string) or uint8 [H, W, 3], `seed` int64 [2].
      batch_size: images of one global batch, B.
      seed: seed of the run: of the order and of each example's augmentation.
      start_step: the first step.
      steps: how many steps; None for an endless data set.
      rows: (low, high), the rows of each global batch that this input pipeline delivers; all by default.
      chunk: images per element, a divisor of the number of rows (one replica's share); all rows by default.
      endless: do not stop after `steps`: several workers' strategies keep static shapes only where they know that data do not end.
      service: (address, job) of a tf.data service that makes the examples (see `data.service`), in an order of its own. The run then begins
        with the data epoch in which `start_step` lies.

    Returns:
      A data set of {"image": [chunk, ...], "label" int64, "index" int64, "number" int64 (global example number), "seed" int64 (of the run),
      "weight" float32 (1), "replaced" bool (an unreadable image stood here)}, each of shape [chunk].
    """
    low, high = rows or (0, batch_size)
    chunk = chunk or high - low

    @plain
    def load(record):
        fetched = source.fetch(record)
        image = example(fetched["image"], tf.stack([tf.cast(seed, tf.int64), record["number"]]))
        return {"image": image, "label": fetched["label"], "index": fetched["index"]}

    def number(position):
        return (start_step + position // (high - low)) * batch_size + low + position % (high - low)

    @plain
    def fill(last, batch):
        """Repeat each row over the gap before it: positions last+1 .. position are unreadable images, and this row stands for them."""
        position = batch.pop("position")
        filled = tf.range(last + 1, position[-1] + 1)

        def close_gaps():
            copies = tf.experimental.numpy.diff(tf.concat([last[None], position], 0))
            replaced = tf.repeat(position, copies) != filled
            _name_unreadable(source, seed, number(filled[replaced]))
            return tf.nest.map_structure(lambda x: tf.repeat(x, copies, axis=0), batch), replaced

        whole = tf.size(position) == tf.size(filled)
        batch, replaced = tf.cond(whole, lambda: (batch, tf.zeros_like(filled, tf.bool)), close_gaps)
        batch |= {
            "replaced": replaced,
            "number": number(filled),
            "seed": tf.fill(tf.shape(filled), tf.cast(seed, tf.int64)),
            "weight": tf.ones_like(filled, tf.float32),
        }
        return position[-1], batch

    if service is None:
        records = source.records(
            seed=seed, start=start_step * batch_size, rows=None if rows is None else (batch_size, low, high)
        )
        data = records.enumerate().map(
            lambda position, record: {"position": position, **load(record)}, tf.data.AUTOTUNE, deterministic=True
        )
        data = data.ignore_errors()
    else:
        first = start_step * batch_size // source.num_examples
        # One more than the steps take: unreadable images are missing, and one of several consumers may be ahead of the others.
        epochs = 1 if steps is None else -(-(start_step + steps) * batch_size // source.num_examples) - first + 1
        made = service_examples(source, load, seed, first, epochs, *service).repeat()
        data = made.enumerate().map(lambda position, example: {"position": position, **example})
    # The gaps are closed per batch, not per image: rebatch hands on a batch that is already whole without copying it.
    data = data.batch(chunk).scan(tf.constant(-1, tf.int64), fill).rebatch(chunk, drop_remainder=True)
    if steps is not None and not endless:
        data = data.take(steps * ((high - low) // chunk))
    return _known_to_be(endless, data).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(source, example, batch_size, rows=None, chunk=None, endless=False):
    """One pass over a source in split order, without randomness; unreadable images are left out.

    The last batch is filled with blank rows of weight 0, so that all batches have one static shape. `example` is called with seed None.
    """
    low, high = rows or (0, batch_size)
    chunk = chunk or high - low

    @plain
    def load(record):
        fetched = source.fetch(record)
        example_ = {"image": example(fetched["image"], None), "label": fetched["label"], "index": fetched["index"]}
        extra = {"number": record["number"], "seed": tf.constant(0, tf.int64), "weight": 1.0, "replaced": False}
        return {**example_, **{k: tf.convert_to_tensor(v) for k, v in extra.items()}}

    records = source.records(rows=None if rows is None else (batch_size, low, high))
    data = records.map(load, tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    blank = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), data.element_spec)
    batches = -(-source.num_examples // batch_size)
    data = data.concatenate(tf.data.Dataset.from_tensors(blank).repeat())
    if not endless:
        data = data.take(batches * (high - low))
    return _known_to_be(endless, data.batch(chunk, drop_remainder=True)).prefetch(tf.data.AUTOTUNE)


def evaluation_crops(source, size, resize, batch_size):
    """`evaluation_batches` of central crops: uint8 [B, size, size, 3] of images whose shorter side is brought to `resize`."""
    return evaluation_batches(source, lambda encoded, _: image.resize_central_crop(encoded, size, resize), batch_size)


def _known_to_be(endless, data):
    return data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)) if endless else data


def _name_unreadable(source, seed, numbers):
    """Print (in the graph, to stderr) which images could not be read, each once: in the first data epoch."""
    numbers = numbers[numbers < source.num_examples]

    def name(n):
        return source.records(seed=seed, start=n).take(1).map(source.name_in_graph).get_single_element()

    def report():
        if not source.random_access:  # to look a record up means to read the stream again
            return tf.print(
                "skipped unreadable images at these places of the order:", numbers, output_stream=sys.stderr
            )
        names = tf.map_fn(name, numbers, fn_output_signature=tf.string)
        return tf.print(
            "skipped unreadable image:", tf.strings.reduce_join(names, separator=", "), output_stream=sys.stderr
        )

    tf.cond(tf.size(numbers) > 0, lambda: tf.group(report()), tf.no_op)

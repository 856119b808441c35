"""What protocols share that answer for every place of an image: maps of endpoints, heads on them, one loop that lets heads learn.

A protocol adds a `Task`: what is to be told of an image, a head, its loss, and how good its answers are.

Maps are made once (`maps.py`); where the trunk learns too, the images pass through the module in each step.
"""

import contextlib
import time

import numpy as np
import tensorflow as tf

from tfssl.downstream.features.maps import IMAGES, Maps, check_endpoints, image_sides
from tfssl.downstream.solvers import sgd
from tfssl.errors import UserError, check_choice

TRUNKS = ("frozen", "fine_tuned")
HEADS = ("linear", "dilated")


class Task:
    """What a protocol adds; `run` calls these in this order.

    Attributes:
      protocol, metric: their names; `value` of a result is in [0, 1], the higher the better.
      mirrored: whether heads learn from mirrored images too.
      size: (height, width) of all images, and seed: of chance in the views, which `run` sets.
    """

    protocol = metric = None
    mirrored = False

    def read(self, example):
        """Graph function: an example of a source -> (image uint8 [*size, 3], dict of what is to be told of it)."""
        raise NotImplementedError

    def mirror(self, image, answers):
        """Graph function: what `read` gives, of the mirrored image."""
        raise NotImplementedError

    def others(self):
        """The further views of training images: functions (image, answers, the image's number) -> (image, answers)."""
        return [lambda image, answers, _: self.mirror(image, answers)] if self.mirrored else []

    def prepare(self, maps, source):
        """From all training images (`Maps`): what the head needs to know, such as how many classes there are."""

    def tested(self, maps):
        """Whether the images (`Maps`) show anything that answers are compared with."""
        return True

    def targets(self, maps):
        """Dict of arrays [R, ...], what `loss` compares with."""
        raise NotImplementedError

    def head(self):
        """A Keras model [N, h, w, C] -> outputs."""
        raise NotImplementedError

    def loss(self, outputs, batch):
        """Graph function: scalar."""
        raise NotImplementedError

    def decode(self, outputs):
        """Graph function: a nest of tensors with as many rows, as `measure` gets them in NumPy."""
        raise NotImplementedError

    def measure(self, answered, maps, images):
        """What a result says, {"value": ..., ...}; `answered` gives (`decode`'s answer of an image, its number) as `images` are ordered."""
        raise NotImplementedError

    def picture(self, answered, maps, images):
        """PNG bytes of a few answers, for a report; None: there is no such picture."""


def run(
    task,
    module,
    train,
    test,
    val=None,
    endpoints=None,
    size=(0, 0),
    trunk="frozen",
    trunk_rate=1.0,
    epochs=60,
    batch_size=8,
    learning_rate=0.01,
    val_fraction=0.2,
    seed=0,
    skip_pixels=False,
    **settings,
):
    """A task's head on each endpoint, learned from `train` and measured on `test`.

    Args:
      task: a Task.
      module: a loaded `modules.Module`, some of whose endpoints are maps [N, h, w, C].
      train, test, val: sources whose examples have what the task reads; without `val` a part of `train` is held out to choose the
        endpoint, and what is reported then learns from all of it.
      endpoints: names; None for all maps of the module, and "pixels", the images themselves.
      size: (height, width) that images are brought to; (0, 0): that of the first training image.
      trunk: "frozen", or "fine_tuned": the module's variables learn too, by batch statistics where it has BN, and are then put back.
      trunk_rate: factor of their learning rate.
      epochs, batch_size, learning_rate: of Adam; the rate is the first, and falls along a cosine.
      val_fraction: see `val`; 0 holds nothing out.
      seed: of weights, order and the held-out part.
      skip_pixels: leave "pixels" out where all endpoints are asked for: they are the same for every module.
      **settings: of the task, which the results repeat.

    Returns:
      a list of results: {"protocol", "endpoint", "metric", "value", "val_value", "picture": PNG bytes or None, ...}.
    """
    check_choice("trunk", trunk, TRUNKS)
    task.size = size = image_sides(train, size)
    task.seed = seed
    names = check_endpoints(module, size, task.protocol, endpoints, skip_pixels or trunk != "frozen")
    kept = names if trunk == "frozen" else [IMAGES]
    parts = {
        part: Maps(module, source, kept, task.read, task.others() if part == "train" else ())
        for part, source in (("train", train), ("test", test), ("val", val))
        if source
    }
    learned = parts["train"]
    task.prepare(learned, train)
    if not task.tested(parts["test"]):
        raise UserError(f"{test.spec} {test.split}: no image shows what {task.protocol} asks for: nothing to measure")
    targets, order = task.targets(learned), np.random.default_rng(seed).permutation(len(learned))
    held_out = order[: 0 if val else round(val_fraction * len(order))]

    def fit(name, images, title):
        tf.keras.utils.set_random_seed(seed)
        rows = learned.rows(images, all_views=True)
        network = Network(task.head(), module, learned, name, rows, trunk, trunk_rate)
        loss = learn(network, task.loss, targets, rows, epochs, batch_size, learning_rate, seed, title)
        return predictor(network, task.decode), loss

    def answers(predict, part, images, name, at_once=8):
        array, rows = parts[part].arrays[name if trunk == "frozen" else IMAGES], parts[part].rows(images)
        for i in range(0, len(rows), at_once):
            batch = tf.nest.map_structure(np.asarray, predict(tf.constant(array[rows[i : i + at_once]])))
            for j, image_number in enumerate(images[i : i + at_once]):
                yield tf.nest.map_structure(lambda value: value[j], batch), image_number  # noqa: B023

    def measure(predict, part, images, name):
        return task.measure(answers(predict, part, images, name), parts[part], images)

    results = []
    for name in names:
        begun, val_value, title = time.time(), None, f"{task.protocol} {name}"
        with restored(module.variables if trunk != "frozen" else []):
            if len(held_out):
                trial, _ = fit(name, order[len(held_out) :], f"{title}, to choose")
                val_value = _known(measure(trial, "train", held_out, name)["value"])
        with restored(module.variables if trunk != "frozen" else []):
            predict, loss = fit(name, order, title)
            if val:
                val_value = _known(measure(predict, "val", np.arange(len(parts["val"])), name)["value"])
            images = np.arange(len(parts["test"]))
            found = measure(predict, "test", images, name)
            shown = list(parts["test"].shown)
            picture = task.picture(answers(predict, "test", shown, name), parts["test"], shown)
        results.append(
            {
                "protocol": task.protocol,
                "endpoint": name,
                "metric": task.metric,
                **found,
                "val_value": val_value,
                "train_labels": len(order),
                "size": list(size),
                "trunk": trunk,
                **({"trunk_rate": trunk_rate} if trunk != "frozen" else {}),
                **settings,
                "epochs": epochs,
                "learning_rate": learning_rate,
                "loss": loss,
                "diverged": loss is None,
                "unreadable": {part: maps.dropped for part, maps in parts.items()},
                "seconds": time.time() - begun,
                "chosen_on": f"{val.spec} {val.split}"
                if val
                else f"val_fraction {val_fraction:g} of {train.spec} {train.split}"
                if len(held_out)
                else None,
                "reported_on": f"{test.spec} {test.split}",
                "picture": picture,
            }
        )
    return results


def _known(value):
    """None of what is the mean of nothing."""
    return None if np.isnan(value) else value


def head(kind, outputs):
    """The layers of a head: "linear", a 1x1 convolution to `outputs` channels; "dilated", that of MoCo's (He et al., arXiv 1911.05722) FCN:
    before it two 3x3 convolutions of 256 channels and dilation 6, each with BN and ReLU."""
    layers = []
    for _ in range(2 * (kind == "dilated")):
        layers += [
            tf.keras.layers.Conv2D(256, 3, padding="same", dilation_rate=6, use_bias=False),
            tf.keras.layers.BatchNormalization(momentum=0.9),
            tf.keras.layers.ReLU(),
        ]
    last = tf.keras.layers.Conv2D(outputs, 1, kernel_initializer="zeros" if not layers else "glorot_uniform")
    return tf.keras.Sequential([*layers, last])


def cross_entropy(logits, labels, size):
    """Mean cross-entropy of logits [N, h, w, C], brought to `size`, and labels int [N, *size], -1 where there is none."""
    labels = tf.cast(labels, tf.int32)
    logits = tf.image.resize(logits, size)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    known = tf.cast(labels >= 0, tf.float32)
    return tf.reduce_sum(known * losses) / tf.maximum(tf.reduce_sum(known), 1.0)


class Network:
    """A head on one endpoint: callable [N, h, w, C] (or images uint8 [N, H, W, 3] where the trunk learns), training -> its outputs.

    Each channel is brought to mean 0 and deviation 1 first: those of the maps of `rows`; or, where the trunk learns, of the batch, by BN.
    """

    def __init__(self, head, module, maps, name, rows, trunk="frozen", trunk_rate=1.0):
        self.head, self._trunk_rate = head, trunk_rate
        if trunk == "frozen":
            shape = maps.arrays[name].shape[1:]
            mean, deviation = _moments(maps.arrays[name], rows)
            self.array, self._trunk = maps.arrays[name], []
            self._map = lambda x, training: (tf.cast(x, tf.float32) - mean) / deviation
        else:
            shape = module.shapes(maps.arrays[IMAGES].shape[1:3])[name]
            norm = tf.keras.layers.BatchNormalization(center=False, scale=False, momentum=0.9)
            norm.build((None, *shape))
            self.array, self._trunk = maps.arrays[IMAGES], list(module.trainable_variables)
            self._map = lambda x, training: norm(
                module.endpoints(tf.cast(x, tf.float32) / 255, training)[name], training=training
            )
        head.build((None, *shape))

    def __call__(self, x, training=False):
        return self.head(self._map(x, training), training=training)

    def groups(self):
        """[(variables, factor of their learning rate)]."""
        return [(self.head.trainable_variables, 1.0), (self._trunk, self._trunk_rate)][: 1 + bool(self._trunk)]


def _moments(array, rows):
    """Mean and deviation [C] over some rows, in float64."""
    total, squares, count = 0.0, 0.0, 0
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        values = array[np.sort(part)].astype(np.float64).reshape(-1, array.shape[-1])
        total, squares, count = total + values.sum(0), squares + (values**2).sum(0), count + len(values)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-6
    return mean.astype(np.float32), deviation.astype(np.float32)


def learn(network, loss, answers, rows, epochs, batch_size, learning_rate, seed=0, title=""):
    """Let a network learn by Adam, its rate falling to 0 along a cosine.

    Args:
      network: a Network.
      loss: graph function (outputs, dict of answers' batches) -> scalar.
      answers: dict of arrays [R, ...].
      rows: int [n], of the network's array and of the answers.
      epochs, batch_size: batches of an epoch: floor(n / batch_size), but at least one of all rows.
      learning_rate: the first.
      seed: of the order.
      title: of the line that shows the progress.

    Returns:
      the mean loss of the last epoch, None where it is not finite.
    """
    batch_size = min(batch_size, len(rows))
    steps = len(rows) // batch_size
    groups = [
        (tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(rate * learning_rate, epochs * steps)), its)
        for its, rate in network.groups()
    ]
    for optimizer, variables in groups:
        optimizer.build(variables)
    total = tf.Variable(0.0, trainable=False)

    def step(x, batch):
        with tf.GradientTape() as tape:
            value = loss(network(x, training=True), batch)
        gradients = iter(tape.gradient(value, [v for _, variables in groups for v in variables]))
        for optimizer, variables in groups:
            pairs = [(next(gradients), v) for v in variables]  # beyond a shallow endpoint the trunk has none
            optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        total.assign_add(value)

    specs = [
        tf.TensorSpec([batch_size, *array.shape[1:]], array.dtype)
        for array in (network.array, *(answers[key] for key in sorted(answers)))
    ]
    step = tf.function(step, autograph=False).get_concrete_function(specs[0], dict(zip(sorted(answers), specs[1:])))  # noqa: B905
    order, progress = np.random.default_rng([seed, 1]), sgd.Progress(title, sgd.Plan(epochs, (), batch_size, 0), steps)
    for epoch in range(1, epochs + 1):
        shuffled = order.permutation(rows)
        total.assign(0.0)
        for i in range(0, steps * batch_size, batch_size):
            batch = shuffled[i : i + batch_size]
            x = tf.constant(network.array[batch])
            step(x, {key: tf.constant(value[batch]) for key, value in answers.items()})
            progress.step(epoch)
    progress.close()
    mean = float(total) / steps
    return mean if np.isfinite(mean) else None


def predictor(network, decode):
    """The graph function of a batch of the network's array -> decode(its outputs); traced by hand, else TensorFlow would warn of many."""
    spec = tf.TensorSpec([None, *network.array.shape[1:]], network.array.dtype)
    return tf.function(lambda x: decode(network(x)), autograph=False).get_concrete_function(spec)


@contextlib.contextmanager
def restored(variables):
    """Whatever happens to variables inside, they are afterwards what they were."""
    values = [v.numpy() for v in variables]
    try:
        yield
    finally:
        for v, value in zip(variables, values):  # noqa: B905 (Python 3.9)
            v.assign(value)

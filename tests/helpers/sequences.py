"""Made sequences, in memory and as folders of frames."""

import numpy as np
import tensorflow as tf

from tfssl.data.sources.base import IndexedSource


class Sequences(IndexedSource):
    """Sequences of given lengths, one after the other or `mixed`; the frames are uint8 [S, S, 3], of
    a picture that moves by a pixel a frame behind a window, and labels are the sequences modulo
    `classes`."""

    provides = ("frames",)

    def __init__(self, lengths, size=20, classes=2, seed=0, mixed=False):
        super().__init__("sequences", "train", sum(lengths), classes)
        rng = np.random.default_rng(seed)
        frames, labels = [], []
        for number, length in enumerate(lengths):
            picture = rng.integers(0, 256, [size, size + length, 3])
            frames += [picture[:, i : i + size] for i in range(length)]
            labels += [number % classes] * length
        self._numbers = np.repeat(np.arange(len(lengths)), lengths).astype(np.int64)
        if mixed:
            self._numbers = rng.permutation(self._numbers)
            order = np.argsort(np.argsort(self._numbers, kind="stable"))
            frames, labels = ([x[i] for i in order] for x in (frames, labels))
        with tf.device("CPU"):
            self._frames = tf.constant(np.stack(frames), tf.uint8)
            self._labels = tf.constant(labels, tf.int64)

    def sequences(self):
        return self._numbers

    def fetch(self, record):
        index = record["index"]
        image, label = tf.gather(self._frames, index), tf.gather(self._labels, index)
        return {"image": image, "label": label, "index": index}

    def name_in_graph(self, record):
        return tf.strings.join(["frame ", tf.strings.as_string(record["index"])])

    def name(self, index):
        return f"frame {index}"

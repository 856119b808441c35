"""Arrays in one file, on any file system that TensorFlow knows."""

import io
import os

import numpy as np
import tensorflow as tf


def write(path, **arrays):
    """Write a .npz. An earlier file of this name is there until the new one is complete."""
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    with tf.io.gfile.GFile(path + ".unfinished", "wb") as f:
        np.savez(_Sink(f), **arrays)
    tf.io.gfile.rename(path + ".unfinished", path, overwrite=True)


class _Sink(io.RawIOBase):
    """A file that can only be written from start to end, as `zipfile` takes it."""

    def __init__(self, file):
        self._file = file

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        self._file.write(data)
        return len(data)

"""Arrays in one file, on any file system that TensorFlow knows."""

import numpy as np

from tfssl.runtime.files import write_file


def write(path, **arrays):
    """Write a .npz. An earlier file of this name is there until the new one is complete."""
    write_file(path, lambda file: np.savez(file, **arrays))

"""Arrays in one file, on any file system that TensorFlow knows."""

import zipfile

import numpy as np

from tfssl.storage.files import write_file


def write(path, **arrays):
    """Write a .npz, as `np.savez`. An earlier file of this name is there until the new one is complete."""

    def fill(file):
        # NumPy leaves its archive open when the disk is full, and Python then complains of it, wherever it is by then.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)

    write_file(path, fill)

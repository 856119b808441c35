"""Arrays in one file, on any file system that TensorFlow knows."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tfssl.storage.files import write_file


def write(path: str | os.PathLike[str], **arrays: npt.ArrayLike) -> None:
    """Write a .npz, as `np.savez`. An earlier file of this name is there until the new one is
    complete."""

    def fill(file: BinaryIO) -> None:
        # NumPy leaves its archive open when the disk is full, and Python then complains of it,
        # wherever it is by then.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)

    write_file(path, fill)

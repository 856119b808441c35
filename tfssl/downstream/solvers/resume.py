"""Progress of `sgd.train` on disk: an interrupted evaluation resumes after its last complete
epoch."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.errors import one_line
from tfssl.storage.npz import write

# seconds between two saves, after which the next epoch is saved; shorter runs save results only
_EVERY = 60


Curve = list[list[Any]]  # [epoch, *what is measured after it]
# of each classifier over the last epoch; None where it is not finite
Losses = list[Optional[float]]


class State:
    """The state of one run of `sgd.train`.

    Batches are a pure function of seed and step, so that resuming is exact. There is one file,
    which is replaced atomically. That of a finished run holds the results alone.

    Args:
      folder: on any file system that TensorFlow knows; None: nothing is kept.
      key: everything that the run depends on, JSON-able: another key is another file.

    Attributes:
      epoch: complete epochs.
      curve, losses: of these epochs, as `sgd.train` returns them.
    """

    def __init__(self, folder: Optional[str] = None, key: Any = None) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._path, self._saved = folder and os.path.join(folder, f"{name}.npz"), time.time()
        self.curve: Curve = []
        self.losses: Losses = []
        self._arrays: dict[str, np.ndarray] = {}
        if self._path and tf.io.gfile.exists(self._path):
            try:
                with tf.io.gfile.GFile(self._path, "rb") as f, np.load(f) as arrays:
                    self._arrays = dict(arrays)  # checksums included: it is a zip file
                self.curve, self.losses = json.loads(str(self._arrays.pop("facts")))
            except Exception as error:  # NumPy and zipfile raise many kinds
                logging.warning(
                    "%s is damaged (%s): its classifiers start anew", self._path, one_line(error)
                )
                self.curve, self.losses, self._arrays = [], [], {}
        self.epoch = len(self.curve)

    def restore(self, variables: Sequence[tf.Variable]) -> None:
        """Assign the saved values, if there are any; a finished run has none."""
        for i, variable in enumerate(variables if self._arrays else ()):
            variable.assign(self._arrays[str(i)])
        self._arrays = {}

    def save(self, variables: Sequence[tf.Variable], curve: Curve, losses: Losses) -> None:
        """Save after an epoch, at most every _EVERY seconds; without variables (a finished run)
        always."""
        if not self._path or variables and time.time() - self._saved < _EVERY:
            return
        arrays = {str(i): variable.numpy() for i, variable in enumerate(variables)}
        write(self._path, facts=json.dumps([curve, losses]), **arrays)
        self._saved = time.time()

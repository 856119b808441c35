"""How far classifiers that learn by SGD have come, on disk: an evaluation that was killed goes on after its last whole epoch."""

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

_EVERY = 60  # seconds that are lost at most, and an epoch; shorter runs leave nothing on disk but their results


Curve = list[list[Any]]  # [epoch, *what is measured after it]
Losses = list[Optional[float]]  # of each classifier over the last epoch; None where it is not finite


class State:
    """One run of `sgd.train`. Batches are a pure function of seed and step, so that what is resumed ends as if nothing had happened.

    There is one file, which is replaced as a whole. Of a finished run it holds the results alone.

    Args:
      folder: any that TensorFlow knows; None: nothing is kept.
      key: JSON-able, everything that the run depends on: another key is another file.

    Attributes:
      epoch: whole epochs done.
      curve, losses: what `sgd.train` returns of them.
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
                    self._arrays = dict(arrays)  # with their checksums: it is a zip file
                self.curve, self.losses = json.loads(str(self._arrays.pop("facts")))
            except Exception as error:  # NumPy and zipfile raise many kinds
                logging.warning("%s is damaged (%s): its classifiers start anew", self._path, one_line(error))
                self.curve, self.losses, self._arrays = [], [], {}
        self.epoch = len(self.curve)

    def restore(self, variables: Sequence[tf.Variable]) -> None:
        """Assign what was saved of them; nothing where there is nothing, or the run is finished."""
        for i, variable in enumerate(variables if self._arrays else ()):
            variable.assign(self._arrays[str(i)])
        self._arrays = {}

    def save(self, variables: Sequence[tf.Variable], curve: Curve, losses: Losses) -> None:
        """After a whole epoch, unless the last time was a moment ago; without variables (the run is finished), in any case."""
        if not self._path or variables and time.time() - self._saved < _EVERY:
            return
        arrays = {str(i): variable.numpy() for i, variable in enumerate(variables)}
        write(self._path, facts=json.dumps([curve, losses]), **arrays)
        self._saved = time.time()

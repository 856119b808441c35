"""How far classifiers that learn by SGD have come, on disk: an evaluation that was killed goes on after its last whole epoch."""

import hashlib
import json
import os
import time

import numpy as np
import tensorflow as tf

from tfssl.downstream.npz import write

_EVERY = 60  # seconds that are lost at most, and an epoch; shorter runs leave nothing on disk but their results


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

    def __init__(self, folder=None, key=None):
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._path, self._saved = folder and os.path.join(folder, f"{name}.npz"), time.time()
        self.curve, self.losses = [], None
        if self._path and tf.io.gfile.exists(self._path):
            with tf.io.gfile.GFile(self._path, "rb") as f:
                self.curve, self.losses = json.loads(str(np.load(f)["facts"]))
        self.epoch = len(self.curve)

    def restore(self, variables):
        """Assign what was saved of them; nothing where there is nothing, or the run is finished."""
        if not self.epoch:
            return
        with tf.io.gfile.GFile(self._path, "rb") as f:
            arrays = np.load(f)
            if "0" in arrays:
                for i, variable in enumerate(variables):
                    variable.assign(arrays[str(i)])

    def save(self, variables, curve, losses):
        """After a whole epoch, unless the last time was a moment ago; without variables (the run is finished), in any case."""
        if not self._path or variables and time.time() - self._saved < _EVERY:
            return
        arrays = {str(i): variable.numpy() for i, variable in enumerate(variables)}
        write(self._path, facts=json.dumps([curve, losses]), **arrays)
        self._saved = time.time()

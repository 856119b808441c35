"""What the files of tests/interop/fixtures hold, as make_fixtures.py says."""

import numpy as np

BASE = np.arange(24, dtype=np.float32)
TENSORS = {
    "plain": BASE[:6].reshape(2, 3),
    "transposed": BASE[:6].reshape(2, 3).T,
    "part": BASE[10:14],
    "half": np.float16([0.5, -2.0]),
    "brain": np.float32([1.5, -3.0]),  # bfloat16 in the file
    "count": np.int64(7),
    "empty": np.zeros([0, 3], np.float32),
}

"""How far classifiers have come is right, or absent."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.solvers.resume import State

DAMAGE = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "one bit of a weight": lambda content: content.replace(
        np.float32(1.5).tobytes(), np.float32(1.25).tobytes()
    ),
    "another first byte": lambda content: b"\0" + content[1:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_absent_and_said(tmp_path, damage, caplog):
    state = State(str(tmp_path), {"k": 1})
    state._saved = 0  # long ago
    state.save([tf.Variable([1.5, 2.5])], [[1, 0.5, 0.5]], [0.1])
    whole = State(str(tmp_path), {"k": 1})
    variable = tf.Variable([0.0, 0.0])
    whole.restore([variable])
    assert whole.epoch == 1 and variable.numpy().tolist() == [1.5, 2.5]
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with caplog.at_level("WARNING", logger="absl"):
        again = State(str(tmp_path), {"k": 1})
    assert (again.epoch, again.curve, again.losses) == (0, [], [])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "is damaged" in line and "anew" in line and "\n" not in line
    again.restore([variable])
    assert variable.numpy().tolist() == [1.5, 2.5]

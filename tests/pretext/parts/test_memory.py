"""Queues and banks."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.pretext.parts.memory import Bank, Queue


def test_queue_keeps_the_newest_first():
    queue = Queue(6, 2, filled=False)
    for first in (0.0, 4.0, 8.0):
        queue.push(tf.constant([[first + i, 0.0] for i in range(4)]))
    np.testing.assert_array_equal(queue.rows[:, 0], [8, 9, 10, 11, 4, 5])
    assert int(queue.count) == 6
    with pytest.raises(UserError, match="a queue of 6 does not hold the 7 embeddings of one step"):
        queue.push(tf.zeros([7, 2]))
    np.testing.assert_allclose(np.linalg.norm(Queue(50, 8).rows, axis=1), 1, rtol=1e-6)


def test_bank_moves_entries_and_keeps_their_norm():
    bank = Bank(5, 3, momentum=0.5)
    before = bank.entries.numpy()
    rows = tf.math.l2_normalize(tf.constant([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), 1)
    bank.update(
        tf.constant([4, 1, 4], tf.int64), rows
    )  # an image that stands there twice: by its first row
    for i, row in ((4, rows[0]), (1, rows[1])):
        moved = 0.5 * before[i] + 0.5 * row.numpy()
        np.testing.assert_allclose(bank.entries[i], moved / np.linalg.norm(moved), rtol=1e-6)
    np.testing.assert_array_equal(bank.entries.numpy()[[0, 2, 3]], before[[0, 2, 3]])

"""Queues and banks."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import mirrored_strategy

from tfssl import optim
from tfssl.errors import UserError
from tfssl.pretext.parts.clusterings import Clusterings
from tfssl.pretext.parts.memory import Bank, Queue


def test_queue_keeps_the_newest_first():
    queue = Queue(6, 2, filled=False)
    for first in (0.0, 4.0, 8.0):
        queue.push(tf.constant([[first + i, 0.0] for i in range(4)]))
    np.testing.assert_array_equal(queue.rows[:, 0], [8, 9, 10, 11, 4, 5])
    assert int(queue.count) == 6
    with pytest.raises(UserError, match="queue_size=6 does not hold the 7 embeddings of one step"):
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


def test_copies_are_written_where_xla_lets_no_replica_wait(replicas, monkeypatch):
    """On GPUs alone and within XLA, TensorFlow has no `merge_call`: what writes variables whose
    copies are aggregated fails as soon as it is traced."""
    rows, index = tf.ones([2, 4]), tf.constant([1, 3], tf.int64)
    with replicas.scope():
        queue, bank, clusterings = Queue(8, 4), Bank(6, 4), Clusterings(6, 2, 1)
        weight = tf.Variable(tf.ones([4, 4]))
        optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build([weight])

    def step():
        queue.push(rows)
        bank.update(index, rows)
        clusterings.see({"index": index, "label": index})
        optim.forget(optimizer, [weight])

    def traced(step=step):
        compiled = tf.function(step, jit_compile=True)
        of_replica = tf.autograph.experimental.do_not_convert(lambda: [compiled(), None][1])
        tf.function(lambda: replicas.run(of_replica), autograph=False).get_concrete_function()

    monkeypatch.setattr(mirrored_strategy, "_is_gpu_device", lambda device: True)
    traced()
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    with replicas.scope():
        aggregated = tf.Variable(tf.zeros([4, 4]), aggregation=first)
    with pytest.raises(RuntimeError, match="merge_call"):  # as all of them were before
        traced(lambda: aggregated.assign(weight + 1))

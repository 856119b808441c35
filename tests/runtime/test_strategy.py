"""Strategies by name, and batches that must divide."""

import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.runtime import strategy as strategies


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(replicas):
    strategies.check_batch(replicas, 8)
    with pytest.raises(UserError, match="--batch_size=9 does not divide over 2 replicas: use 8 or 10"):
        strategies.check_batch(replicas, 9)
    with pytest.raises(UserError, match="use 2$"):
        strategies.check_batch(replicas, 1)


def test_names():
    assert strategies.build("default").num_replicas_in_sync == 1
    assert strategies.build("auto").num_replicas_in_sync == 1  # no GPU here: one device
    assert strategies.build("mirrored").num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) == 2
    with pytest.raises(UserError, match="auto, default, mirrored, multi_worker, tpu"):
        strategies.build("miror")


def test_multi_worker_needs_its_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="TF_CONFIG"):
        strategies.build("multi_worker")

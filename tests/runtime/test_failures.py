"""TensorFlow's own errors, turned into lines with a remedy; others stay what they are."""

import tensorflow as tf

from tfssl.runtime import failures


def test_a_full_disk():
    error = tf.errors.ResourceExhaustedError(None, None, "metrics.jsonl; No space left on device")
    assert "the disk is full" in failures.explain(error) and "make room" in failures.explain(error)


def test_out_of_memory_names_the_flags_that_help():
    """The real error of the real allocator."""
    try:
        tf.zeros([1 << 20, 1 << 22]) + 1  # 16 TiB
    except tf.errors.ResourceExhaustedError as e:
        line = failures.explain(e)
    for flag in ("--batch_size", "--accumulate_steps", "--rematerialize", "--precision"):
        assert flag in line
    assert "\n" not in line


def test_a_lost_worker_is_told_only_where_there_are_workers(monkeypatch):
    error = tf.errors.UnavailableError(None, None, "Connection reset by peer")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert failures.explain(error) is None
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert "start all workers again with the same command" in failures.explain(error)


def test_others_keep_their_traceback():
    assert failures.explain(KeyError("x")) is None

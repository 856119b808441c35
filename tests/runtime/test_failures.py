"""Exceptions, turned into lines with a remedy; of others the traceback is kept in a file."""

import pytest
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
    assert "the traceback is in" in failures.explain(error)
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert "start all workers again with the same command" in failures.explain(error)


@pytest.mark.parametrize("folder", ["there", "not there", "a file", None])
def test_what_nobody_foresaw_is_one_line_and_a_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "a file").touch()
    try:
        {}["caf\u00e9"]
    except KeyError as e:
        line = failures.explain(e, folder and str(tmp_path / folder))
    where = "there" if folder == "there" else "elsewhere"
    (kept,) = (tmp_path / where).iterdir()
    assert line == f"unexpected KeyError: 'caf\u00e9'; the traceback is in {kept}"
    text = kept.read_text(encoding="utf-8")
    assert text.startswith("Traceback") and __file__ in text and text.endswith("KeyError: 'caf\u00e9'\n")

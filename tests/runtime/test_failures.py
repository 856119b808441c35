"""Exceptions, turned into lines with a remedy; of others the traceback is kept in a file."""

import errno
import os

import pytest
import tensorflow as tf

from tfssl import errors
from tfssl.runtime import failures
from tfssl.storage import files


def test_a_full_disk():
    error = tf.errors.ResourceExhaustedError(None, None, "metrics.jsonl; No space left on device")
    assert "the disk is full" in failures.explain(error) and "make room" in failures.explain(error)


@pytest.mark.parametrize("number", errors.TROUBLES)
def test_troubles_of_the_disk_name_cause_path_and_remedy(number, tmp_path, monkeypatch):
    """As Python says them, with a path and without, and as TensorFlow does; none of them leaves a
    traceback."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text, (cause, remedy) = os.strerror(number), errors.TROUBLES[number]
    for error, path in (
        (OSError(number, text), None),
        (OSError(number, text, "/mnt/run/metrics.jsonl"), "/mnt/run/metrics.jsonl"),
        (
            tf.errors.UnknownError(None, None, f"/mnt/my run/metrics.jsonl; {text}"),
            "/mnt/my run/metrics.jsonl",
        ),
        (
            tf.errors.PermissionDeniedError(
                None,
                None,
                "{{function_node "
                "__wrapped__FlushSummaryWriter_device_/job:localhost/replica:0/task:0/device:CPU:0}} "
                f"gs://bucket/events.v2; {text} [Op:FlushSummaryWriter]",
            ),
            "gs://bucket/events.v2",
        ),
    ):
        line = failures.explain(error)
        assert (
            cause in line
            and remedy in line
            and text in line
            and line.endswith("nothing complete was lost")
        )
        assert path is None or line.startswith(f"{path}: {cause}")
        assert "unexpected" not in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_as_tensorflow_and_python_find_it():
    """/dev/full is always full."""
    with (
        pytest.raises(tf.errors.OpError) as of_tensorflow,
        tf.io.gfile.GFile("/dev/full", "w") as file,
    ):
        file.write("x")
        file.flush()
    with pytest.raises(OSError) as of_python, open("/dev/full", "w") as file:
        file.write("x")
    assert failures.explain(of_tensorflow.value).startswith(
        "/dev/full: the disk is full (No space left on device)"
    )
    assert failures.explain(of_python.value).startswith(
        "the disk is full ([Errno 28] No space left on device"
    )


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """Not the name of the unfinished one, which is gone, nor none, as `os.fsync` has it."""

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as error:
        files.write_file(tmp_path / "results.json", b"{}")
    assert failures.explain(error.value).startswith(
        f"{tmp_path}/results.json: the disk or its server has failed (Input/output error)"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_that_refuses():
    error = tf.errors.PermissionDeniedError(
        None, None, "Error executing an HTTP request: HTTP response code 403"
    )
    assert "has no right" in failures.explain(error) and "403" in failures.explain(error)


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
    assert (
        text.startswith("Traceback")
        and __file__ in text
        and text.endswith("KeyError: 'caf\u00e9'\n")
    )

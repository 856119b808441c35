"""A reader that goes away takes nothing with it."""

import os

import pytest

from tfssl.runtime import console


def test_what_is_printed_to_a_closed_pipe_is_lost_and_nothing_else(monkeypatch):
    reader, writer = os.pipe()
    stream = open(writer, "w")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", None)
    console.outlive()
    print("heard", flush=True)
    assert os.read(reader, 100) == b"heard\n"
    os.close(reader)
    for _ in range(3):
        print("x" * 100_000, flush=True)
    import sys

    print("never opened", file=sys.stderr)
    assert sys.stdout.encoding == stream.encoding and not sys.stdout.isatty()
    stream.close()  # writes the rest of its buffer


def test_other_refusals_are_still_told(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        console.outlive()
        with pytest.raises(OSError, match="No space left"):
            print("x", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())

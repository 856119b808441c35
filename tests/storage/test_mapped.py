"""Pages of memory-mapped arrays go back to the system, and nothing of what they held is lost."""

import sys

import numpy as np
import pytest

from tfssl.storage import mapped


def resident():
    """Bytes of memory-mapped files that this process holds."""
    with open("/proc/self/status") as f:
        (line,) = (line for line in f if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_was_written_and_read_leaves_the_process_and_is_there(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1 << 14, 1 << 10))
    before = resident()
    array[:] = np.arange(1 << 10)
    assert resident() - before > 50 << 20  # of 64
    mapped.release(array[5:][::2])  # a view of a view
    assert resident() - before < 8 << 20
    assert (array[-1] == np.arange(1 << 10)).all()
    assert (np.load(tmp_path / "x.npy")[-1] == np.arange(1 << 10)).all()


def test_other_arrays_stay_as_they_are():
    array = np.arange(5)
    mapped.release(array[1:])
    assert array.tolist() == [0, 1, 2, 3, 4]

"""Maps that are larger than what is kept in memory; what heads learn from them is in
test_segmentation.py."""

import contextlib
import errno
import os

import numpy as np
import pytest

from tfssl.downstream.features import maps
from tfssl.errors import UserError


def test_maps_without_room_on_the_disk_are_one_line(monkeypatch):
    """Not a killed process, at the first page that cannot be written."""
    monkeypatch.setattr(maps, "_RESIDENT", 0)
    made = maps.Maps.__new__(maps.Maps)
    with contextlib.ExitStack() as made._files:
        array = made._room((3, 4), np.dtype("float32"))
        assert isinstance(array, np.memmap) and array.shape == (3, 4)

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"have no room in .*No space left.*TMPDIR"):
            made._room((3, 4), np.dtype("float32"))

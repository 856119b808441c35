"""Sets of permutations: each pick against a search of all candidates, the distances that we
promise, and the published file format."""

import itertools
import struct

import numpy as np
import pytest

from tfssl.errors import UserError
from tfssl.pretext.parts import permutations


@pytest.mark.parametrize("criterion,score", [("mean", np.mean), ("min", np.min)])
@pytest.mark.parametrize("length,count", [(4, 24), (5, 30), (2, 2), (1, 1)])
def test_each_pick_is_the_farthest(criterion, score, length, count):
    """No permutation that was left out is farther from those before, whatever way ties went."""
    table = permutations.greedy(count, length, criterion, seed=3)
    assert table.dtype == np.int32 and len(set(map(tuple, table))) == count

    def value(candidate, before):
        return score([sum(a != b for a, b in zip(candidate, row)) for row in before])

    for i in range(1, count):
        left = set(itertools.permutations(range(length))) - set(map(tuple, table[:i]))
        assert value(table[i], table[:i]) == max(value(candidate, table[:i]) for candidate in left)


def test_distances_are_hammings():
    table = [[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]]
    np.testing.assert_array_equal(permutations.distances(table), [2, 4, 4])


def test_sets_of_nine_are_as_far_apart_as_promised():
    """The largest mean that n permutations of 9 can have is 9 - (n - 9) / (n - 1): where each value
    is everywhere equally often."""
    mean = permutations.greedy(1000)
    assert permutations.distances(mean).mean() > 8.0
    assert (
        permutations.distances(mean[:100]).mean() > 9 - 91 / 99 - 0.005
    )  # the published 100: 8.08
    assert permutations.distances(permutations.greedy(1000, criterion="min")).min() >= 5
    np.testing.assert_array_equal(np.sort(mean, 1), np.tile(np.arange(9), [1000, 1]))


def test_a_set_is_a_function_of_its_arguments():
    table = permutations.greedy(50, seed=1)
    np.testing.assert_array_equal(table, permutations.greedy(50, seed=1))
    np.testing.assert_array_equal(table[:20], permutations.greedy(20, seed=1))
    assert (table != permutations.greedy(50, seed=2)).any()
    # A run that goes on under another version of NumPy has the same classes as before.
    expected = ["673801425", "056234781", "240685137"]
    assert ["".join(map(str, row)) for row in table[:3]] == expected


def test_the_published_format(tmp_path):
    path = str(tmp_path / "set.bin")
    table = permutations.greedy(100)
    permutations.write(path, table)
    contents = (tmp_path / "set.bin").read_bytes()
    assert len(contents) == 3608  # as the published file of 100
    assert struct.unpack("<902i", contents) == (100, 9, *(table.ravel() + 1).tolist())
    np.testing.assert_array_equal(permutations.read(path), table)
    assert permutations.read(path).dtype == np.int32


@pytest.mark.parametrize(
    "numbers,message",
    [
        ([1], "is no file of permutations"),
        ([2, 3, 1, 2, 3], "is no file of permutations"),
        ([1, 3, 1, 2, 3, 4], "is no file of permutations"),
        ([-1, -3, 1, 2, 3], "is no file of permutations"),
        ([1, 2, 1, 2], "holds permutations of 2 patches, and the grid has 3"),
        ([1, 3, 0, 1, 2], "no permutations of 1 to 3"),
        ([2, 3, 1, 2, 3, 1, 2, 3], "the same one twice"),
    ],
)
def test_a_file_that_holds_something_else(numbers, message, tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(struct.pack(f"<{len(numbers)}i", *numbers))
    with pytest.raises(UserError, match=message):
        permutations.read(str(path), 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="permutations=25 of 4 patches: choose 1 to 24"):
        permutations.greedy(25, 4)
    with pytest.raises(UserError, match="at most 9, or a file"):
        permutations.greedy(100, 16)
    with pytest.raises(UserError, match="choose one of mean, min"):
        permutations.greedy(10, criterion="max")
    with pytest.raises(UserError, match="there is no file"):
        permutations.read("/nowhere/set.bin")

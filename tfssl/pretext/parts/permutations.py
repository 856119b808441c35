"""Sets of permutations that are far apart in Hamming distance: the classes of the jigsaw task.

Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
ECCV 2016 (arXiv 1603.09246), Algorithm 1.
"""

import math

import numpy as np
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.storage.files import write_file

CRITERIA = ("mean", "min")


def greedy(count: int, length: int = 9, criterion: str = "mean", seed: int = 0) -> np.ndarray:
    """The first permutation is a random one; each further one is the farthest from those before it,
    ties drawn by lot.

    A pure function of its arguments, on every machine; the first n of a larger set are the set of
    n.

    Args:
      count: number of permutations, at most length!.
      length: of each, at most 9 (the 362,880 candidates are all looked at for each pick).
      criterion: what is made large: the "mean" distance to the permutations before it, as in the
        paper, or the "min" (smallest).
      seed: of the first permutation and of ties.

    Returns:
      int32 [count, length], values 0..length-1, all rows distinct.

    Raises:
      UserError: an argument out of range.
    """
    if criterion not in CRITERIA:
        raise UserError(
            f"unknown criterion {criterion!r} for permutations: choose one of {', '.join(CRITERIA)}"
        )
    if length > 9:
        raise UserError(
            f"permutations of {length} patches are too many to search: at most 9, or a file of "
            "permutations"
        )
    if not 1 <= count <= math.factorial(length):
        raise UserError(
            f"permutations={count} of {length} patches: choose 1 to {math.factorial(length)}, for "
            "there are no more"
        )
    candidates = _all(length)
    # RandomState, whose numbers are the same in every version of NumPy. In random order, the first
    # of equals is drawn by lot.
    order = np.random.RandomState(seed).permutation(len(candidates))
    columns = np.ascontiguousarray(candidates[order].T)  # LxF: each position's values side by side
    closeness: np.ndarray = np.zeros(len(candidates), np.int32 if criterion == "mean" else np.uint8)
    picked = [0]
    while len(picked) < count:
        new = picked[-1]
        matches = (
            (columns == columns[:, [new]]).view(np.uint8).sum(0, dtype=np.uint8)
        )  # F: length less the distance to the new one
        if criterion == "mean":
            closeness += matches
            closeness[new] = np.iinfo(np.int32).max // 2
        else:
            np.maximum(
                closeness, matches, out=closeness
            )  # a picked one matches itself everywhere, and no other does
        picked.append(int(np.argmin(closeness)))
    return columns[:, picked].T.astype(np.int32)


def read(path: str, length: int = 9) -> np.ndarray:
    """Permutations from a file in the format that Noroozi published: `write` tells it.

    Returns:
      int32 [count, length], values 0..length-1.

    Raises:
      UserError: no such file, or it holds something else.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"there is no file of permutations {path!r}")
    with tf.io.gfile.GFile(path, "rb") as f:
        contents = f.read()
    numbers = np.frombuffer(contents[: len(contents) // 4 * 4], "<i4")
    if (
        len(numbers) < 2
        or len(contents) != 4 * (2 + int(numbers[0]) * int(numbers[1]))
        or numbers[0] < 1
    ):
        raise UserError(
            f"{path!r} is no file of permutations: int32 count, length, then count * length "
            "numbers from 1"
        )
    table = numbers[2:].reshape(numbers[:2]).astype(np.int32) - 1
    if table.shape[1] != length:
        raise UserError(
            f"{path!r} holds permutations of {table.shape[1]} patches, and the grid has {length}"
        )
    if (np.sort(table, 1) != np.arange(length)).any() or len(np.unique(table, axis=0)) < len(table):
        raise UserError(
            f"{path!r} holds rows that are no permutations of 1 to {length}, or the same one twice"
        )
    return table


def write(path: str, table: np.ndarray) -> None:
    """Write int [count, length], values from 0, as little-endian int32: count, length, then the
    rows with values from 1."""
    table = np.asarray(table)
    write_file(path, np.concatenate([table.shape, table.ravel() + 1]).astype("<i4").tobytes())


def distances(table: np.ndarray) -> np.ndarray:
    """Hamming distances of all pairs of rows: int [count, length] -> int
    [count * (count - 1) / 2]."""
    table = np.asarray(table, np.uint8)
    rows = [(table[i + 1 :] != table[i]).sum(1, dtype=np.uint8) for i in range(len(table))]
    return np.concatenate(rows)


def _all(length: int) -> np.ndarray:
    """All permutations: uint8 [length!, length]."""
    table = np.zeros([1, 1], np.uint8)
    for new in range(1, length):
        table = np.concatenate([np.insert(table, at, new, axis=1) for at in range(new + 1)])
    return table

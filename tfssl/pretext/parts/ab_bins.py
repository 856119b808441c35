"""The bins that colorization classifies colors into: points of a grid in the ab plane, how often
each occurs, and soft targets.

    python -m tfssl.ab_bins --dataset=folder:photos --output=bins.npz  # in one pass over them

Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016 (arXiv 1603.08511), as Goyal et al.
(arXiv 1905.01235) use it.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.ops import image, lab
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.errors import UserError
from tfssl.storage.files import write_file

LOW, HIGH = -128, 128  # of the table's lattice: beyond all colors of sRGB


@dataclasses.dataclass(frozen=True)
class Bins:
    """Colors to tell apart.

    Attributes:
      points: float [Q, 2], (a, b) of each bin's center.
      prior: float [Q], the share of pixels whose nearest bin it is; sums to 1. None where it is not
        known.
    """

    points: np.ndarray
    prior: np.ndarray | None = None

    def save(self, path: str) -> None:
        arrays = {"points": self.points, **({} if self.prior is None else {"prior": self.prior})}
        write_file(path, lambda file: np.savez(file, **arrays))

    def table(self, nearest: int, sigma: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
        """Soft targets of all colors on the lattice of whole numbers, on which images of 8 bits
        lie to within half a step.

        Args:
          nearest: K, bins that share in a color's target: 1 (hard labels) to Q.
          sigma: deviation of the Gaussian that weighs them by their distance.

        Returns:
          (int32 [65536, k], bins, the nearest first; float32 [65536, k], their weights, which sum
          to 1). The row of (a, b) is 256 * (a + 128) + b + 128. k is K, less what float32 cannot
          tell from 0 for any color.
        """
        lattice = np.stack(np.meshgrid(*[np.arange(LOW, HIGH)] * 2, indexing="ij"), -1).reshape(
            -1, 2
        )
        parts = [
            soft_targets(rows, self.points, nearest, sigma) for rows in np.array_split(lattice, 64)
        ]
        bins, weights = (np.concatenate(part) for part in zip(*parts))
        kept = max(1, int((weights.max(0) > 2.0**-30).sum()))
        return bins[:, :kept].astype(np.int32), weights[:, :kept].astype(np.float32)

    def weights(self, rebalance: float = 0.5) -> np.ndarray:
        """float [Q]: how much a pixel of each bin counts, so that rare colors are learned too:
        inverse to (1 - `rebalance`) * prior + `rebalance` / Q, with a mean of 1 over the prior's
        pixels. `rebalance` 1 is no rebalancing."""
        if self.prior is None:
            return np.ones(len(self.points))
        seen = self.prior > 0
        mixed = (1 - rebalance) * self.prior + rebalance * seen / seen.sum()
        weights = np.where(seen, 1 / np.where(seen, mixed, 1), 0)
        return weights / np.sum(self.prior * weights)


def soft_targets(
    colors: np.ndarray, points: np.ndarray, nearest: int, sigma: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """The `nearest` bins of each color and their weights, exp(-distance^2 / (2 sigma^2)) over
    their sum.

    Args:
      colors: float [N, 2]; points: float [Q, 2]; nearest: 1 to Q; sigma: in units of ab.

    Returns:
      (int [N, nearest], the nearest bin first; float [N, nearest]).
    """
    if not 1 <= nearest <= len(points):
        if len(points) == 1:
            raise UserError(
                "there is one bin of color only, and nothing to tell apart: the images it was "
                "counted in have no color"
            )
        raise UserError(
            f"nearest={nearest}: there are {len(points)} bins, so give 1 to {len(points)}, or "
            "images of more colors"
        )
    squared = ((colors[:, None] - points[None]) ** 2).sum(-1)  # NxQ
    bins = np.argsort(squared, 1, kind="stable")[:, :nearest]
    squared = np.take_along_axis(squared, bins, 1)
    weights = np.exp(
        (squared[:, :1] - squared) / (2 * sigma**2)
    )  # relative to the nearest: colors outside have one too
    return bins, weights / weights.sum(1, keepdims=True)


def of_gamut(grid: int = 10) -> Bins:
    """The points of a grid that are nearest to some color of sRGB; without a prior.

    They are fewer than the 313 of Zhang et al., whose file counts cells that a color outside sRGB
    reaches: 261 for a grid of 10.
    """
    levels = np.arange(0, 256, 3) / 255  # 0 and 255 among them
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    cells = np.unique(np.round(lab.from_rgb(colors).numpy()[:, 1:] / grid).astype(int), axis=0)
    return Bins(cells * float(grid))


def of_images(
    source: Source,
    grid: int = 10,
    images: int = 10_000,
    smooth: float = 0.0,
    progress: Callable[[int, int], object] | None = None,
) -> Bins:
    """The bins that occur in images, and how often.

    Args:
      source: a `tfssl.data.Source`; unreadable images are passed over.
      grid: distance of the points.
      images: at most so many, spread over the source (of records, the first).
      smooth: deviation of a Gaussian over the ab plane that smooths the prior, in units of ab (the
        2016 paper: 5); 0: none.
      progress: function (images done, images in all), or None.

    Raises:
      UserError: no image can be read; or all are gray, as far as the grid tells.
    """
    side, reach = 128, 128 // grid + 1
    part = evenly_spaced(source, images)
    histogram = np.zeros((2 * reach + 1, 2 * reach + 1))

    @tf.function(autograph=False)
    def cells(batch: tf.Tensor) -> tf.Tensor:
        ab = lab.from_rgb(tf.cast(batch, tf.float32) / 255)[..., 1:]
        a, b = tf.unstack(tf.cast(tf.round(ab / grid), tf.int32) + reach, axis=-1)
        return tf.math.bincount(tf.reshape(a * (2 * reach + 1) + b, [-1]), minlength=histogram.size)

    batches = pipeline.evaluation_batches(
        part, lambda example, _: {"image": image.resize(example["image"], side)}, 16
    )
    for done, batch in enumerate(batches, 1):
        real = batch["image"][: int(tf.reduce_sum(batch["weight"]))]
        histogram += cells(real).numpy().reshape(histogram.shape)
        if progress:
            progress(min(16 * done, part.num_examples), part.num_examples)
    if not histogram.sum():
        raise UserError(f"{source.spec} {source.split}: no image could be read to count colours in")
    rows = np.argwhere(histogram > 0)
    if np.array_equal(rows, [[reach, reach]]):
        raise UserError(
            f"{source.spec} {source.split}: the {part.num_examples} images that were looked at are "
            "gray: there is no color to learn from; "
            "choose another task"
        )
    points, prior = (rows - reach) * float(grid), histogram[histogram > 0] / histogram.sum()
    if smooth:
        near = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / (2 * smooth**2))
        prior = (near / near.sum(1, keepdims=True)).T @ prior
    return Bins(points, prior)


def read(path: str) -> Bins:
    """Bins from a file that `Bins.save` wrote, or of points alone: .npy or text of Q lines "a b",
    such as Zhang's pts_in_hull.npy.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"no file of colour bins {path!r}: python -m tfssl.ab_bins makes one")
    try:
        with tf.io.gfile.GFile(path, "rb") as f:
            content = io.BytesIO(f.read())
        held: Any = np.load(content) if path.endswith((".npz", ".npy")) else np.loadtxt(content)
        points, prior = (
            (held["points"], held.get("prior")) if path.endswith(".npz") else (held, None)
        )
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as e:
        raise UserError(f"{path!r} holds no colour bins ({' '.join(str(e).split())[:100]})") from e
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or (prior is not None and prior.shape != points.shape[:1])
    ):
        raise UserError(f"{path!r} holds an array {points.shape}, and bins are [Q, 2]")
    return Bins(points.astype(float), prior)

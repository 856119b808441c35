"""A picture of nearest neighbors: test images, and the training images of highest cosine
similarity."""

import io
from typing import TYPE_CHECKING

import numpy as np

from tfssl.data import pipeline
from tfssl.data.sources.subset import Subset
from tfssl.downstream.features.extract import Features
from tfssl.downstream.report.names import plain
from tfssl.downstream.solvers import nearest
from tfssl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUERIES = 10


def find(
    train: Features, test: Features, endpoint: str, k: int, seed: int = 0, queries: int = QUERIES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest training images of a few test images, by cosine similarity.

    Args:
      train, test: `Features`.
      endpoint: name.
      k: neighbors of each.
      seed: of the choice of test images, from all classes in turn.
      queries: number of test images, at most all.

    Returns:
      (int [Q], rows of `test`; int [Q, k], rows of `train`, nearest first; float [Q, k],
      similarities).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(test.labels))
    turn = np.empty(len(order), int)
    for label in np.unique(test.labels):
        (of_class,) = np.nonzero(test.labels[order] == label)
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn, kind="stable")][:queries]
    chosen = chosen[np.argsort(test.labels[chosen], kind="stable")]
    features = train.endpoints[endpoint]
    k = min(k, len(features))
    similarity, nearest_rows = nearest.nearest(
        features, np.arange(len(features)), test.endpoints[endpoint][chosen], k
    )
    return chosen, nearest_rows, similarity


def plot(
    train: Features, test: Features, endpoint: str, k: int, seed: int = 0, title: str = ""
) -> bytes:
    """A PNG's bytes: in each row a test image and its `k` nearest training images, framed green if
    of its class, red if not.

    Both `Features` need `images`; other arguments as for `find`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, near, similarity = find(train, test, endpoint, k, seed)
    queries, neighbors = pictures(test, rows), pictures(train, near.reshape(-1))
    k, wide = near.shape[1], near.shape[1] + 1
    figure = Figure(figsize=(0.95 * wide + 0.4, 1.12 * len(rows) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()  # one for all: a hundred take most of an evaluation's time
    axes.set(xlim=(-0.6, k + 0.6), ylim=(len(rows) - 0.4, -0.7), aspect=1.12)
    axes.axis("off")
    for q, row in enumerate(rows):
        _show(axes, 0, q, queries[q], _class(test, row), "black")
        for j in range(k):
            same = train.labels[near[q, j]] == test.labels[row]
            color = "#bbbbbb" if test.labels[row] < 0 else "#228833" if same else "#ee6677"
            _show(axes, j + 1, q, neighbors[q * k + j], f"{similarity[q, j]:.2f}", color)
    explained = "test images, and beside each the nearest training images with their cosine"
    figure.suptitle(f"{plain(title, 80)}: {explained}".lstrip(": "), fontsize=8, x=0.02, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def pictures(features: Features, rows: np.ndarray) -> np.ndarray:
    """The images behind rows [n] of `Features`, as the module's input, for people: uint8
    [n, S, S, 3]; gray of one channel, and of many channels the first three."""
    index = features.index[rows]
    unique = np.unique(index)
    images = features.images
    if images is None:
        raise UserError(f"{features.source}: no images behind these features to show")
    batches = pipeline.evaluation_crops(
        Subset(images.source, unique), images.size, images.resize, len(unique)
    )
    batch = next(iter(batches))
    position = np.searchsorted(batch["index"].numpy()[: len(unique)], index)
    found = batch["image"].numpy()[position]
    if found.dtype != np.uint8:
        found = np.rint(255 * found).astype(np.uint8)
    return found[..., :3] if found.shape[-1] > 2 else np.repeat(found[..., :1], 3, -1)


def _class(features: Features, row: int) -> str:
    label = int(features.labels[row])
    return "" if label < 0 else features.class_names[label] if features.class_names else str(label)


def _show(axes: "Axes", x: int, y: int, picture: np.ndarray, text: str, color: str) -> None:
    """One picture of the grid, framed, below its text."""
    left, right, top, bottom = x - 0.45, x + 0.45, y - 0.35, y + 0.45
    axes.imshow(picture, extent=(left, right, bottom, top), aspect="auto")
    axes.plot(
        [left, right, right, left, left], [top, top, bottom, bottom, top], color=color, linewidth=2
    )
    axes.text(x, top - 0.05, plain(text, 22), fontsize=6, ha="center", va="bottom")

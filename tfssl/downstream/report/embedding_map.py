"""A map of embeddings for report.html: a point for each test image, colored by class or cluster,
with the image beside the map while the pointer is on its point. No script: SVG and CSS."""

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Sequence

import numpy as np

from tfssl.downstream.features.extract import Features
from tfssl.downstream.pictures import colors
from tfssl.errors import UserError

KINDS = ("pca", "tsne", "umap")
POINTS, CLUSTERS, NAMED = 400, 10, 20  # images of a map; clusters without labels; classes named
_SIDE, _THUMB = 560, 160  # of the map, and of an image beside it, in CSS pixels
STYLE = f"""
.map {{ width: {_SIDE + _THUMB + 30}px; max-width: 100%; height: auto; }}
.map circle {{ stroke: var(--paper); stroke-width: .8; }}
.map .seen {{ visibility: hidden; pointer-events: none; }}
.map g:hover > .seen, .map g:focus > .seen {{ visibility: visible; }}
.map g:hover > circle, .map g:focus > circle {{ stroke: var(--ink); stroke-width: 2; }}
.map text {{ font-size: 12px; fill: var(--ink); }}
"""


@dataclasses.dataclass(frozen=True)
class Map:
    """A module's map.

    Attributes:
      endpoint: whose embeddings.
      kind: one of KINDS.
      rows: int [n], of the test features.
      points: float [n, 2], in [0, 1].
      group: int [n], of the class, or of the cluster without labels; -1: none.
      groups: names of the groups.
      names: of the images.
    """

    endpoint: str
    kind: str
    rows: np.ndarray
    points: np.ndarray
    group: np.ndarray
    groups: Sequence[str]
    names: Sequence[str]


def make(test: Features, endpoint: str, kind: str = "pca", seed: int = 0) -> Map:
    """The map of an endpoint's features of at most `POINTS` test images, evenly spaced.

    Args:
      test: `Features`.
      endpoint: name.
      kind: "pca": the two directions of most variance; "tsne": van der Maaten and Hinton 2008, by
        scikit-learn; "umap": McInnes et al. 2018, by the package umap-learn.
      seed: of t-SNE, UMAP and clusters.

    Raises:
      UserError: there is no such kind, the package is not there, or there are fewer than four
        images.
    """
    count = len(test.index)
    rows = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.int64))
    x = np.asarray(test.endpoints[endpoint][rows], np.float64)
    points = reduce(x, kind, seed)
    labels = test.labels[rows]
    if (labels >= 0).any():
        classes = int(labels.max()) + 1
        groups = list(test.class_names or [])[:classes] or [str(i) for i in range(classes)]
    else:
        from sklearn.cluster import KMeans

        clusters = min(CLUSTERS, len(rows))
        labels = KMeans(clusters, n_init=4, random_state=seed).fit_predict(x)
        groups = [f"cluster {i + 1}" for i in range(clusters)]
    source = test.images.source if test.images else None
    names = [source.name(int(i)) if source else str(i) for i in test.index[rows]]
    return Map(endpoint, kind, rows, points, labels, groups, names)


def reduce(x: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Float [n, D] -> [n, 2], each axis from 0 to 1; see `make`."""
    if len(x) < 4:
        raise UserError(f"a map of {len(x)} images shows nothing: --map=none")
    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]]
    ways = {"pca": _pca, "tsne": _tsne, "umap": _umap}
    if kind not in ways:
        raise UserError(f"map={kind!r}: there are {', '.join(ways)}")
    points = ways[kind](x, seed)
    low, high = points.min(0), points.max(0)
    return (points - low) / np.where(high > low, high - low, 1.0)


def _pca(x: np.ndarray, seed: int) -> np.ndarray:
    x = x - x.mean(0)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    sign = np.sign(v[np.arange(len(v)), np.abs(v).argmax(1)])  # one picture on every machine
    points = (u * s * np.where(sign, sign, 1.0))[:, :2]
    return np.pad(points, [(0, 0), (0, 2 - points.shape[1])])


def _tsne(x: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    return TSNE(
        perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=seed
    ).fit_transform(x)


def _umap(x: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise UserError(
            "--map=umap needs the package umap-learn: pip install umap-learn"
        ) from error
    return umap.UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed).fit_transform(x)


def thumbnails(images: np.ndarray, rows: np.ndarray) -> str:
    """Hidden SVG definitions of images uint8 [n, S, S, 3], one for each row of the test features:
    once for all maps."""
    from PIL import Image

    parts = []
    for row, image in zip(rows, images):
        buffer = io.BytesIO()
        small = Image.fromarray(image)
        small.thumbnail((64, 64))
        small.save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f'<image id="t{row}" width="{_THUMB}" height="{_THUMB}" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
    return f'<svg width="0" height="0" aria-hidden="true"><defs>{"".join(parts)}</defs></svg>'


def svg(of_module: Map, title: str) -> str:
    """A module's map as an SVG element; `thumbnails` has to stand in the same page."""
    palette, margin = colors(len(of_module.groups)), 8
    x = margin + (_SIDE - 2 * margin) * of_module.points[:, 0]
    y = margin + (_SIDE - 2 * margin) * (1 - of_module.points[:, 1])
    left = _SIDE + 20
    parts = []
    for i, row in enumerate(of_module.rows):
        group = int(of_module.group[i])
        name = of_module.groups[group] if group >= 0 else ""
        parts.append(
            f'<g tabindex="-1"><circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="4.5" '
            f'fill="{_hex(palette[group])}"><title>{_e(of_module.names[i])}</title></circle>'
            f'<g class="seen"><use href="#t{row}" x="{left}" y="8"/>'
            f'<text x="{left}" y="{_THUMB + 26}">{_e(name, 24)}</text></g></g>'
        )
    named = of_module.groups if len(of_module.groups) <= NAMED else ()
    for i, name in enumerate(named):
        top = _THUMB + 52 + 17 * i
        parts.append(
            f'<circle cx="{left + 5}" cy="{top - 4}" r="4.5" fill="{_hex(palette[i])}"/>'
            f'<text x="{left + 16}" y="{top}">{_e(name, 22)}</text>'
        )
    height = max(_SIDE, _THUMB + 60 + 17 * len(named))
    return (
        f'<svg class="map" role="img" aria-label="{_e(title)}" '
        f'viewBox="0 0 {_SIDE + _THUMB + 30} {height}">'
        f'<rect width="{_SIDE}" height="{_SIDE}" fill="none" stroke="var(--line)"/>'
        f"{''.join(parts)}</svg>"
    )


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in color)


def _e(text: str, most: int = 200) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return html.escape(text if len(text) <= most else text[: most - 1] + "\u2026")

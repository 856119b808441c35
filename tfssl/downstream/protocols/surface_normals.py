"""Surface normals: for each pixel the direction of the surface, by a head on each endpoint's map; angles between true and told.

As in Goyal et al. (arXiv 1905.01235; theirs on NYUv2) directions are told as a probability over `clusters` of those in the training images,
by k-means (40), from bilinearly enlarged logits; the answer is the probabilities' mean of the centres. Their head is a PSPNet's, on a
trunk whose last stage learns too; here it is segmentation's: linear, or dilated.
"""

from collections.abc import Sequence
from typing import Any, Literal, Optional

import numpy as np
import tensorflow as tf

from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream import pictures
from tfssl.downstream.features.maps import Maps
from tfssl.downstream.protocols.dense import HEADS, Answers, Dense, Example, Task, cross_entropy, head
from tfssl.errors import UserError, check_choice

ANGLES = (11.25, 22.5, 30.0)  # degrees
_SAMPLE = 50_000  # directions that are clustered


class SurfaceNormals(Dense):
    """Surface normals: the fraction of all known pixels within 11.25 degrees.

    "mean_angle" and "median_angle" are in degrees; "within": {"11.25": ..., "22.5": ..., "30": ...}.

    Args:
      head: Linear; or two 3x3 convolutions of dilation 6 before it (dilated), as MoCo's FCN has.
      clusters: Directions, by k-means, of which surface_normals predicts a probability (Goyal et al.: 40).
      mirrored: Learn from mirrored images too.
    """

    name, metric, needs = "surface_normals", "within 11.25\N{DEGREE SIGN}", ("normals",)
    flag_names = {"clusters": "normals_clusters"}
    expense = 8
    repeated = ("head", "clusters")

    def __init__(
        self, head: Literal["linear", "dilated"] = "linear", clusters: int = 40, mirrored: bool = False, **dense: Any
    ) -> None:
        super().__init__(**dense)
        check_choice("head", head, HEADS)
        self.head, self.clusters, self.mirrored = head, clusters, mirrored

    def task(self, size: tuple[int, int], seed: int) -> Task:
        return NormalsTask(self.head, self.clusters, size, seed, self.mirrored)


class NormalsTask(Task):
    """Directions of pixels, as probabilities of clusters."""

    def __init__(self, head: str, clusters: int, *common: Any) -> None:
        super().__init__(*common)
        self.kind, self.clusters = head, clusters

    def read(self, example: Example) -> tuple[tf.Tensor, Example]:
        normals = tf.image.resize(example["normals"], self.size, "nearest")
        return image.resize(example["image"], self.size), {"normals": tf.cast(normals, tf.float16)}

    def mirror(self, picture: tf.Tensor, answers: Example) -> tuple[tf.Tensor, Example]:
        normals = answers["normals"][:, ::-1] * tf.constant([-1, 1, 1], tf.float16)
        return picture[:, ::-1], {"normals": normals}

    def prepare(self, maps: Maps, source: Source) -> None:
        from sklearn.cluster import KMeans

        rng, each = np.random.default_rng(0), max(1, _SAMPLE // len(maps.answers))
        found = [known(answers["normals"])[0] for answers in maps.answers]
        sample = np.concatenate([its[rng.permutation(len(its))[:each]] for its in found])
        if len(np.unique(sample, axis=0)) < self.clusters:
            raise UserError(
                f"{source.spec} {source.split}: the images show fewer than {self.clusters} directions: set fewer clusters"
            )
        centres = KMeans(self.clusters, n_init=1, random_state=0).fit(sample).cluster_centers_
        self.centres = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)

    def targets(self, maps: Maps) -> dict[str, np.ndarray]:
        labels = np.full([len(maps.answers), *self.size], -1, np.int16)
        for i, answers in enumerate(maps.answers):
            normals, where = known(answers["normals"])
            labels[i][where] = np.argmax(normals @ self.centres.T, 1)
        return {"cluster": labels}

    def head(self) -> tf.keras.Model:
        return head(self.kind, self.clusters)

    def loss(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        return cross_entropy(outputs, batch["cluster"], self.size)

    def decode(self, outputs: tf.Tensor) -> Any:
        mean = tf.einsum("nhwc,cd->nhwd", tf.nn.softmax(tf.image.resize(outputs, self.size)), self.centres)
        return tf.math.l2_normalize(mean, -1)

    def tested(self, maps: Maps) -> bool:
        return any(known(answers["normals"])[1].any() for answers in maps.answers)

    def measure(self, answered: Answers, maps: Maps, images: Sequence[int]) -> dict[str, Any]:
        errors = []
        for guess, i in answered:
            normals, where = known(maps.answers[i * maps.views]["normals"])
            errors.append(angles(normals, guess[where]))
        return summary(np.concatenate(errors))

    def picture(self, answered: Answers, maps: Maps, images: Sequence[int]) -> Optional[bytes]:
        rows = []
        for guess, i in answered:
            truth = maps.answers[i * maps.views]["normals"].astype(np.float32)
            none = np.linalg.norm(truth, axis=-1, keepdims=True) < 0.5
            colored = [np.round((n + 1) * 127.5).astype(np.uint8) for n in (truth, guess)]
            rows.append((maps.shown[i], np.where(none, 0, colored[0]).astype(np.uint8), colored[1]))
        return pictures.grid(rows, ("image", "normals", "answered"))


def known(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [n, 3], those that are known, of length 1; bool [H, W], where they are)."""
    length = np.linalg.norm(normals.astype(np.float32), axis=-1)
    where = length > 0.5
    return normals[where].astype(np.float32) / length[where][:, None], where


def angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Degrees between directions [n, 3] of length 1, float64 [n]; exact near 0 and 180 too, where the cosine is not."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return np.degrees(2 * np.arctan2(np.linalg.norm(one - other, axis=1), np.linalg.norm(one + other, axis=1)))


def summary(errors: np.ndarray) -> dict[str, Any]:
    """What a result says of angles in degrees [n]."""
    within = {f"{angle:g}": float(np.mean(errors < angle)) for angle in ANGLES}
    return {
        "value": within[f"{ANGLES[0]:g}"],
        "mean_angle": float(errors.mean()),
        "median_angle": float(np.median(errors)),
        "within": within,
    }

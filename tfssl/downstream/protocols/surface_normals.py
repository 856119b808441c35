"""Surface normal estimation by a head on each endpoint's map; metrics are angles between predicted
and true normals.

As in Goyal et al. (arXiv 1905.01235, on NYUv2), normals are classified into `clusters` of those in
the training images, by k-means (40), from bilinearly resized logits; the prediction is the mean of
the cluster centers under the probabilities. Their head is a PSPNet's, on a backbone whose last
stage is fine-tuned; here it is segmentation's: linear, or dilated.
"""

from collections.abc import Sequence
from typing import Any, Literal, Optional

import numpy as np
import tensorflow as tf

from tfssl.data.ops import image
from tfssl.data.sources.base import Source
from tfssl.downstream import pictures
from tfssl.downstream.features.maps import Maps
from tfssl.downstream.protocols.dense import (
    HEADS,
    Dense,
    Example,
    Predictions,
    Task,
    cross_entropy,
    head,
    shaped_like,
)
from tfssl.errors import UserError, check_choice

ANGLES = (11.25, 22.5, 30.0)  # degrees
_SAMPLE = 50_000  # normals that are clustered


class SurfaceNormals(Dense):
    """Surface normals: the fraction of all known pixels within 11.25 degrees.

    "mean_angle" and "median_angle" are in degrees; "within": {"11.25": ..., "22.5": ..., "30":
    ...}.

    Args:
      head: Linear; or two 3x3 convolutions of dilation 6 before it (dilated), as MoCo's FCN has.
      clusters: Number of k-means clusters of normals that are classified (Goyal et al.: 40).
      mirrored: Train on horizontally flipped images too.
    """

    name, metric, needs = "surface_normals", "within 11.25\N{DEGREE SIGN}", ("normals",)
    flag_names = {"clusters": "normals_clusters"}
    expense = 8
    repeated = ("head", "clusters")

    def __init__(
        self,
        head: Literal["linear", "dilated"] = "linear",
        clusters: int = 40,
        mirrored: bool = False,
        **dense: Any,
    ) -> None:
        super().__init__(**dense)
        check_choice("head", head, HEADS)
        self.head, self.clusters, self.mirrored = head, clusters, mirrored

    def task(self, size: tuple[int, int], seed: int) -> Task:
        return NormalsTask(self.head, self.clusters, size, seed, self.mirrored)


class NormalsTask(Task):
    """Prediction of a normal for each pixel, by probabilities of clusters."""

    def __init__(self, head: str, clusters: int, *common: Any) -> None:
        super().__init__(*common)
        self.kind, self.clusters = head, clusters

    def read(self, example: Example) -> tuple[tf.Tensor, Example]:
        normals = shaped_like(example["normals"], example["image"])
        normals = tf.image.resize(normals, self.size, "nearest")
        return image.resize(example["image"], self.size), {"normals": tf.cast(normals, tf.float16)}

    def mirror(self, picture: tf.Tensor, annotations: Example) -> tuple[tf.Tensor, Example]:
        normals = annotations["normals"][:, ::-1] * tf.constant([-1, 1, 1], tf.float16)
        return picture[:, ::-1], {"normals": normals}

    def prepare(self, maps: Maps, source: Source) -> None:
        from sklearn.cluster import KMeans

        rng, each = np.random.default_rng(0), max(1, _SAMPLE // len(maps.annotations))
        normals = [known(annotations["normals"])[0] for annotations in maps.annotations]
        sample = np.concatenate(
            [of_image[rng.permutation(len(of_image))[:each]] for of_image in normals]
        )
        if len(np.unique(sample, axis=0)) < self.clusters:
            raise UserError(
                f"{source.spec} {source.split}: the images show fewer than {self.clusters} "
                "directions: set fewer clusters"
            )
        centers = KMeans(self.clusters, n_init=1, random_state=0).fit(sample).cluster_centers_
        self.centers = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)

    def targets(self, maps: Maps) -> dict[str, np.ndarray]:
        labels = np.full([len(maps.annotations), *self.size], -1, np.int16)
        for i, annotations in enumerate(maps.annotations):
            normals, is_known = known(annotations["normals"])
            labels[i][is_known] = np.argmax(normals @ self.centers.T, 1)
        return {"cluster": labels}

    def head(self) -> tf.keras.Model:
        return head(self.kind, self.clusters)

    def loss(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        return cross_entropy(outputs, batch["cluster"], self.size)

    def decode(self, outputs: tf.Tensor) -> Any:
        mean = tf.einsum(
            "nhwc,cd->nhwd", tf.nn.softmax(tf.image.resize(outputs, self.size)), self.centers
        )
        return tf.math.l2_normalize(mean, -1)

    def tested(self, maps: Maps) -> bool:
        return any(known(annotations["normals"])[1].any() for annotations in maps.annotations)

    def measure(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> dict[str, Any]:
        errors = []
        for prediction, i in predicted:
            normals, is_known = known(maps.annotations[i * maps.views]["normals"])
            errors.append(angles(normals, prediction[is_known]))
        return summary(np.concatenate(errors))

    def picture(self, predicted: Predictions, maps: Maps, images: Sequence[int]) -> Optional[bytes]:
        rows = []
        for prediction, i in predicted:
            truth = maps.annotations[i * maps.views]["normals"].astype(np.float32)
            none = np.linalg.norm(truth, axis=-1, keepdims=True) < 0.5
            colored = [np.round((n + 1) * 127.5).astype(np.uint8) for n in (truth, prediction)]
            rows.append((maps.shown[i], np.where(none, 0, colored[0]).astype(np.uint8), colored[1]))
        return pictures.grid(rows, ("image", "normals", "predicted"))


def known(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [n, 3], the known normals, L2-normalized; bool [H, W], where normals are known)."""
    length = np.linalg.norm(normals.astype(np.float32), axis=-1)
    is_known = length > 0.5
    return normals[is_known].astype(np.float32) / length[is_known][:, None], is_known


def angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angles in degrees between unit vectors [n, 3]: float64 [n]; exact near 0 and 180 too, where
    arccos is not."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return np.degrees(
        2 * np.arctan2(np.linalg.norm(one - other, axis=1), np.linalg.norm(one + other, axis=1))
    )


def summary(errors: np.ndarray) -> dict[str, Any]:
    """Fields of a result from angular errors in degrees [n]."""
    within = {f"{angle:g}": float(np.mean(errors < angle)) for angle in ANGLES}
    return {
        "value": within[f"{ANGLES[0]:g}"],
        "mean_angle": float(errors.mean()),
        "median_angle": float(np.median(errors)),
        "within": within,
    }

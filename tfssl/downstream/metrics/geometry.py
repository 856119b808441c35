"""How embeddings fill their space: measures without labels, on arrays.

    rank        RankMe (Garrido et al. 2023, arXiv 2210.02885, equations 1 and 2)
    alignment   how alike two views of an image are  } Wang and Isola 2020, arXiv 2005.10242; the
    uniformity  how evenly embeddings are spread     } former as a cosine
    normality   SIGReg of standardized embeddings (Balestriero and LeCun, arXiv 2511.08544)

None of them alone says which encoder is better: they compare encoders of one method and one
network, such as the checkpoints of a run.
"""

import numpy as np
import tensorflow as tf

from tfssl.losses.normality import EXPECTED, sigreg


def rank(x: np.ndarray, epsilon: float = 1e-7) -> float:
    """The effective rank: exp of the entropy of the singular values' shares of their sum, between 1
    and min(N, D).

    Args:
      x: [N, D], as they are: not centered, not normalized.
      epsilon: added to each share, the paper's 1e-7.

    Returns:
      the rank; NaN where a value is not finite.
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        return float("nan")
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    total = singular.sum()
    if not total:
        return 1.0
    share = singular / total + epsilon
    return float(np.exp(-np.sum(share * np.log(share))))


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Mean cosine of pairs, -1 to 1: [N, D] and [N, D], row by row; a row of zeros counts 0."""
    return float(np.mean(np.sum(_directions(x) * _directions(y), 1)))


def uniformity(x: np.ndarray) -> float:
    """log of the mean of exp(-2 d^2) over all pairs of rows of [N, D], d the distance of their
    directions: 0 where all are one, about -4 where they are spread over a sphere of many
    dimensions."""
    directions = _directions(x)
    cosine = directions @ directions.T
    rows, columns = np.triu_indices(len(x), 1)
    return float(np.log(np.mean(np.exp(-4.0 * (1.0 - cosine[rows, columns])))))


def normality(x: np.ndarray) -> float:
    """SIGReg of the standardized columns of [N, D], by its value for a standard normal: below 1
    where the projections look normal (standardization fits them a little), the greater the less
    they do. Columns that are constant count as 0.
    """
    x = np.asarray(x, np.float64)
    deviation = x.std(0)
    safe = np.where(deviation > 1e-6 * np.abs(x).max(initial=1e-30), deviation, np.inf)
    return float(sigreg(tf.constant((x - x.mean(0)) / safe))) / EXPECTED


def _directions(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)

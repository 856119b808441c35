"""Average precision of a ranking: area under the precision-recall curve, by one of three rules.

    area      by the best precision at this recall or a higher one (Pascal VOC since 2010; Goyal et
              al. 2019)
    11-point  the mean of that at the recalls 0, 0.1, ..., 1 (Pascal VOC 2007)
    raw       by the precision itself, each step of recall at the precision after it (scikit-learn)

Equal scores share one rank, whatever their order.
"""

import numpy as np

from tfssl.errors import UserError

RULES = ("area", "11-point", "raw")


def check(rule: str) -> None:
    """Raise UserError unless `rule` is one of RULES."""
    if rule not in RULES:
        raise UserError(f"ap={rule!r}: the rules of average precision are {', '.join(RULES)}")


def average_precision(
    relevant: np.ndarray, scores: np.ndarray, rule: str = "area", total: int = 0
) -> float:
    """Average precision of one class, in [0, 1]; NaN without positives.

    Args:
      relevant: bool [N].
      scores: float [N], highest first in the ranking.
      rule: one of RULES.
      total: Number of positives, some of which are not ranked, such as objects that no box
        found; 0: all are.
    """
    if not relevant.any():
        return 0.0 if total else float("nan")
    order = np.argsort(-scores, kind="stable")
    # the last of each run of equals
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positives = np.cumsum(relevant[order])[ends]
    precision, recall = positives / (ends + 1), positives / (total or positives[-1])
    if rule != "raw":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "11-point":
        # recall >= t, in whole numbers: 0.3 * 10 is a little more than 3
        most = total or positives[-1]
        reached = [np.searchsorted(10 * positives, t * most) for t in range(11)]
        return float(np.mean(np.append(precision, 0.0)[reached]))
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def each_class(targets: np.ndarray, scores: np.ndarray, rule: str = "area") -> np.ndarray:
    """Average precision of each class, float64 [C]; the difficult images of a class are left out of
    its ranking.

    Args:
      targets: int [N, C]: 1, -1, or 0 (difficult).
      scores: float [N, C].
    """
    ranked = [targets[:, c] != 0 for c in range(targets.shape[1])]
    return np.array(
        [
            average_precision(targets[use, c] > 0, scores[use, c], rule)
            for c, use in enumerate(ranked)
        ],
        float,
    )


def chance(targets: np.ndarray) -> float:
    """Expected value of a random ranking, approximately: the mean over the classes of the fraction
    of positives."""
    with np.errstate(invalid="ignore"):
        prior = (targets > 0).sum(0) / (targets != 0).sum(0)
    return float(np.mean(prior[prior > 0]))

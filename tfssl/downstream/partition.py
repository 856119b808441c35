"""Training and validation rows of features. NumPy only."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

import numpy as np

from tfssl.errors import UserError

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source
    from tfssl.downstream.features.extract import Features

Labels = Union[str, int]  # a number of labels: "all", a percentage such as "1%", or a number


@dataclasses.dataclass
class Split:
    """Row numbers: `rows` and `fit` into the training features, `val` into `held`."""

    rows: np.ndarray  # all labeled rows that may be used
    fit: np.ndarray  # training rows while settings are chosen: `rows` without the validation part
    # validation rows, by which settings, endpoint and epoch are chosen; may be empty
    val: np.ndarray
    held: "Features"  # the features of `val`: the training features, or a validation split

    @property
    def fits_all(self) -> bool:
        """Whether `fit` is all of `rows`, so that no final fit is needed."""
        return len(self.fit) == len(self.rows)


def split(
    train: "Features",
    test: "Features",
    train_labels: Labels = "all",
    val_fraction: float = 0.2,
    seed: int = 0,
    val: Optional["Features"] = None,
) -> Split:
    """Check the labels of all parts, and choose the rows. Arguments as in `balanced` and
    `stratified`; returns a Split.

    With `val`, `Features` of a validation split, nothing is held out of the training rows;
    validation images of classes that have no training row are dropped.
    """
    check_labels(train, test)
    count = label_count(train_labels, len(train.labels), len(np.unique(train.labels)))
    rows = balanced(train.labels, train.index, count, seed)
    check_classes(train.labels[rows], train)
    if val is not None:
        check_labels(train, val)
        held = np.flatnonzero(np.isin(val.labels, train.labels[rows]))
        if not len(held):
            raise UserError(
                f"{val.source}: no image is of a class that {train.source} shows: nothing to "
                "choose on"
            )
        return Split(rows, rows, held, val)
    units = train.index if train.sequences is None else train.sequences
    fit, held = stratified(train.labels[rows], units[rows], val_fraction, seed)
    return Split(rows, rows[fit], rows[held], train)


class Targets(NamedTuple):
    """Whether images show each class, int8 [N, C]: 1 positive, -1 negative, 0 difficult.

    Attributes:
      rows: int [n], the training rows to use.
      train, test, val: targets of all rows of each part; `val` None where there is no such part.
    """

    rows: np.ndarray
    train: np.ndarray
    test: np.ndarray
    val: Optional[np.ndarray]


def one_vs_rest(
    train: "Features",
    test: "Features",
    val: Optional["Features"] = None,
    train_labels: Labels = "all",
    seed: int = 0,
) -> Targets:
    """The `Targets` of one binary classifier for each class.

    They are `Features.targets`, with a random subset of rows; or they follow from labels, with a
    class-balanced subset. A smaller subset lies within a larger one.
    """
    parts = [part for part in (train, test, val) if part is not None]
    if all(part.targets is None for part in parts):
        for part in parts[1:]:
            check_labels(train, part)
        count = label_count(train_labels, len(train.labels), len(np.unique(train.labels)))
        classes = max(max(part.num_classes or 0, int(part.labels.max()) + 1) for part in parts)
        rows = balanced(train.labels, train.index, count, seed)
        check_classes(train.labels[rows], train)
        targets = [
            np.where(part.labels[:, None] == np.arange(classes), np.int8(1), np.int8(-1))
            for part in parts
        ]
    else:
        targets = [check_targets(train, part)[1] for part in parts]
        count = label_count(train_labels, len(train.labels))
        rows = np.sort(np.argsort(draws(train.index, seed, 0), kind="stable")[:count])
    return Targets(rows, targets[0], targets[1], targets[2] if val is not None else None)


def described(part: Union["Features", "Source"]) -> str:
    """Name of `Features` or a `Source`: data set and split."""
    return part.source if hasattr(part, "source") else f"{part.spec} {part.split}"


def nothing_to_choose_on(part: Split, val_fraction: float) -> None:
    """Raise UserError: `l2` cannot be selected."""
    if not val_fraction:
        raise UserError(
            "l2=select needs labels to choose on, and val_fraction=0 leaves none: give a number, "
            "or published"
        )
    raise UserError(
        f"l2=select needs two labels of some class to choose on: {len(part.rows)} labels are too "
        "few; give a number"
    )


def check_labels(train: "Features", test: "Features") -> None:
    """Raise UserError unless both parts have one label for each image, of the same classes."""
    for features in (train, test):
        if not len(features.labels):
            raise UserError(f"{features.source}: no image to evaluate on")
        if features.targets is not None:
            raise UserError(
                f"{features.source}: an image may show several classes, and this protocol needs "
                "one label for each; "
                "svm and low_shot take such data"
            )
        if (features.labels < 0).any():
            unlabeled = int((features.labels < 0).sum())
            raise UserError(
                f"{features.source}: {unlabeled} of {len(features.labels)} images have no label, "
                "and this protocol "
                "needs one for each; sort the images into a folder per class, or evaluate on "
                "another data set"
            )
    _check_class_names(train, test)


def check_classes(labels: np.ndarray, features: Union["Features", "Source"]) -> None:
    """Raise UserError unless the training labels int [n] are of two classes or more; `features` is
    named in the message."""
    if len(np.unique(labels)) < 2:
        label = int(labels[0])
        name = features.class_names[label] if features.class_names else label
        raise UserError(
            f"{described(features)}: all {len(labels)} images to learn from are of one class, "
            f"{name}: nothing to tell apart; files that "
            "hold class after class need shuffling"
        )


def check_targets(train: "Features", test: "Features") -> tuple[np.ndarray, np.ndarray]:
    """The targets of both parts; UserError unless both have them, for the same classes."""
    targets = []
    for features in (train, test):
        if not len(features.labels):
            raise UserError(f"{features.source}: no image to evaluate on")
        if features.targets is None:
            raise UserError(
                f"{features.source}: images have one label each, and in the other part several"
            )
        targets.append(features.targets)
    counts = [part.shape[1] for part in targets]
    if counts[0] != counts[1]:
        raise UserError(f"{train.source} has {counts[0]} classes, and {test.source} {counts[1]}")
    _check_class_names(train, test)
    return targets[0], targets[1]


def _check_class_names(train: "Features", test: "Features") -> None:
    if train.class_names and test.class_names and list(train.class_names) != list(test.class_names):
        odd = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise UserError(
            f"{train.source} and {test.source} have different classes: "
            f"{', '.join(odd) or 'in another order'}"
        )


def label_count(train_labels: Labels, available: int, num_classes: int = 1) -> int:
    """The number of labels that "all", "1%", "10%" or "200" means of `available` ones: at least one
    per class."""
    text = str(train_labels).strip()
    if text == "all":
        return available
    try:
        count = round(float(text[:-1]) / 100 * available) if text.endswith("%") else int(text)
    except ValueError:
        raise UserError(
            f"train_labels={text!r}: give all, a percentage such as 10%, or a number of images "
            "such as 200"
        ) from None
    if not 1 <= count <= available:
        raise UserError(
            f"train_labels={text}: that is {count} images, and the training split has {available}"
        )
    if count < num_classes:
        raise UserError(
            f"train_labels={text}: {count} labels are fewer than the {num_classes} classes of the "
            "training split"
        )
    return count


def balanced(labels: np.ndarray, index: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A class-balanced random subset; the one of a smaller `count` lies inside that of a larger
    one.

    Classes take turns (in a seeded order), so that their sizes differ by one at most, until the
    small classes are used up.

    Args:
      labels: int [N], in 0..C-1.
      index: int [N], the images' positions in the split: an image's draw does not depend on which
        others could be read.
      count: images to choose, at least the number of classes; N for all.
      seed: seed of the draw.

    Returns:
      int [count], rising row numbers.
    """
    if count == len(labels):
        return np.arange(count)
    turn = rank_within_class(labels, draws(index, seed, 0))
    order = np.random.default_rng([seed, 1]).permutation(int(labels.max()) + 1)[labels]
    return np.sort(np.lexsort((order, turn))[:count])


def stratified(
    labels: np.ndarray, units: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into (fit, val): `fraction` of each class, rounded, goes to val, or as many more
    rows as their last unit has; at least one unit of each class stays in fit. A fraction of 0
    leaves val empty.

    Args:
      labels: int [N], in 0..C-1.
      units: int [N], what goes to val whole: the position of the image, or the sequence of the
        frame.

    Returns:
      two int arrays of rising row numbers. A class of one unit has none in val.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"val_fraction={fraction}: give the part of the training labels that choices are made "
            "on, between 0 and 1"
        )
    if not fraction:
        return np.arange(len(labels)), np.array([], int)
    sizes = np.bincount(labels)
    held_out = np.maximum(np.round(sizes * fraction), 1)[labels]
    drawn = draws(units, seed, 2)
    order = np.lexsort((drawn, labels))
    parted = (np.diff(drawn[order]) != 0) | (np.diff(labels[order]) != 0)
    first = np.flatnonzero(np.concatenate([[True], parted]))  # of each unit of each class, in order
    counts = np.diff([*first, len(labels)])
    start = np.repeat(rank_within_class(labels, drawn)[order][first], counts)  # rows before a unit
    rank, last = np.empty(len(labels), int), np.empty(len(labels), bool)
    rank[order], last[order] = start, start + np.repeat(counts, counts) == sizes[labels[order]]
    val = (rank < held_out) & ~last
    return np.flatnonzero(~val), np.flatnonzero(val)


def draws(index: np.ndarray, seed: int, *stream: int) -> np.ndarray:
    """A random number for each image, float [N], a function of its position in the split, or of its
    sequence, and the seeds alone."""
    return np.random.default_rng([seed, *stream]).random(int(index.max()) + 1)[index]


def rank_within_class(labels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The rank of each row, 0 first, among the rows of its class in the order of their draws: int
    [N]."""
    order = np.lexsort((draws, labels))
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - starts
    return rank


def endpoints(
    parts: Sequence[Optional["Features"]], names: Optional[Sequence[str]] = None
) -> list[str]:
    """Names of the endpoints to evaluate, by default all of the first part's; UserError if one is
    missing in any part.

    Args:
      parts: list of `Features`; None is skipped.
      names: list of str.
    """
    given = [features for features in parts if features is not None]
    names = list(given[0].endpoints if names is None else names)
    for features in given:
        missing = [name for name in names if name not in features.endpoints]
        if missing:
            raise UserError(
                f"{features.source}: no features of endpoint {', '.join(missing)}; "
                f"there is: {', '.join(features.endpoints)}"
            )
    return names

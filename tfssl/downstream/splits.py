"""Which rows of the training features a protocol learns from, and on which it makes its choices. NumPy only."""

import dataclasses

import numpy as np

from tfssl.errors import UserError


@dataclasses.dataclass
class Split:
    """Row numbers into the training features: `rows` = `fit` and `val` together; `val` may be empty."""

    rows: np.ndarray  # all labelled rows that may be used
    fit: np.ndarray  # those that settings are fitted on
    val: np.ndarray  # those that settings, and the endpoint, are chosen on


def split(train, test, train_labels="all", val_fraction=0.2, seed=0):
    """Check the labels of both parts, and choose the rows. Arguments as in `balanced` and `stratified`; returns a
    Split."""
    check_labels(train, test)
    count = label_count(train_labels, len(train.labels), len(np.unique(train.labels)))
    rows = balanced(train.labels, train.index, count, seed)
    fit, val = stratified(train.labels[rows], train.index[rows], val_fraction, seed)
    return Split(rows, rows[fit], rows[val])


def check_labels(train, test):
    """Raise UserError unless both parts are labelled, by the same classes."""
    for features in (train, test):
        if not len(features.labels):
            raise UserError(f"{features.source}: no image to evaluate on")
        if (features.labels < 0).any():
            unlabelled = int((features.labels < 0).sum())
            raise UserError(
                f"{features.source}: {unlabelled} of {len(features.labels)} images have no label, and this protocol "
                "needs one for each; sort the images into a folder per class, or evaluate on another data set"
            )
    if train.class_names and test.class_names and list(train.class_names) != list(test.class_names):
        odd = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise UserError(
            f"{train.source} and {test.source} have different classes: {', '.join(odd) or 'in another order'}"
        )


def label_count(train_labels, available, num_classes=1):
    """How many labels "all", "1%", "10%" or "200" means of `available` ones: an int, at least one per class."""
    text = str(train_labels).strip()
    if text == "all":
        return available
    try:
        count = round(float(text[:-1]) / 100 * available) if text.endswith("%") else int(text)
    except ValueError:
        raise UserError(
            f"train_labels={text!r}: give all, a percentage such as 10%, or a number of images such as 200"
        ) from None
    if not 1 <= count <= available:
        raise UserError(f"train_labels={text}: that is {count} images, and the training split has {available}")
    if count < num_classes:
        raise UserError(
            f"train_labels={text}: {count} labels are fewer than the {num_classes} classes of the training split"
        )
    return count


def balanced(labels, index, count, seed):
    """A class-balanced random subset; the one of a smaller `count` lies inside that of a larger one.

    Classes take turns (in a seeded order), so that their sizes differ by one at most, until the small classes are used
    up.

    Args:
      labels: int [N], in 0..C-1.
      index: int [N], the images' places in the split: an image's draw does not depend on which others could be read.
      count: images to choose, at least the number of classes; N for all.
      seed: seed of the draw.

    Returns:
      int [count], rising row numbers.
    """
    if count == len(labels):
        return np.arange(count)
    turn = _place_within_class(labels, _draws(index, seed, 0))
    order = np.random.default_rng([seed, 1]).permutation(int(labels.max()) + 1)[labels]
    return np.sort(np.lexsort((order, turn))[:count])


def stratified(labels, index, fraction, seed):
    """Split rows into (fit, val): `fraction` of each class, rounded, goes to val; at least one image of each class
    stays in fit.

    Returns:
      two int arrays of rising row numbers. A class of one image has none in val.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"val_fraction={fraction}: give the part of the training labels that choices are made on, between 0 and 1"
        )
    sizes = np.bincount(labels)
    wanted = np.minimum(np.maximum(np.round(sizes * fraction), 1), sizes - 1)
    val = _place_within_class(labels, _draws(index, seed, 2)) < wanted[labels]
    return np.flatnonzero(~val), np.flatnonzero(val)


def _draws(index, seed, stream):
    return np.random.default_rng([seed, stream]).random(int(index.max()) + 1)[index]


def _place_within_class(labels, draws):
    """For each row its place, 0 first, among the rows of its class ordered by their draws."""
    order = np.lexsort((draws, labels))
    starts = np.searchsorted(labels[order], labels[order])
    place = np.empty(len(labels), int)
    place[order] = np.arange(len(labels)) - starts
    return place


def endpoints(train, test, names=None):
    """Names of the endpoints to evaluate, by default all of `train`'s; UserError if one is missing in either part."""
    names = list(train.endpoints) if names is None else list(names)
    for features in (train, test):
        missing = [name for name in names if name not in features.endpoints]
        if missing:
            raise UserError(
                f"{features.source}: no features of endpoint {', '.join(missing)}; "
                f"there is: {', '.join(features.endpoints)}"
            )
    return names

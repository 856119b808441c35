"""The check for users' sources: what keeps the promises passes, and sources with one fault each do
not."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.subset import LabelledAt, Ordered, Subset, nested
from tfssl.testing import check_source


class Squares(IndexedSource):
    """Twelve gray images, of which each has a box and the label of its place."""

    provides = ("boxes",)

    def __init__(self):
        super().__init__("squares", "train", 12, 3, ["a", "b", "c"])

    def fetch(self, record):
        index = record["index"]
        image = tf.fill([4, 4, 3], tf.cast(index, tf.uint8))
        boxes, classes = tf.constant([[0.0, 0.25, 0.5, 1.0]]), tf.constant([2], tf.int64)
        return {
            "image": image,
            "label": index % 3,
            "index": index,
            "boxes": boxes,
            "classes": classes,
        }

    def name_in_graph(self, record):
        return tf.strings.as_string(record["index"])

    def name(self, index):
        return str(index)


@pytest.fixture(scope="module")
def glyphs():
    return tfssl.open_source("glyphs:12")


def block(seed):
    return tf.random.stateless_uniform([5], seed, 0, 12, tf.int64)


@pytest.mark.parametrize(
    "derived",
    [
        lambda source: Subset(LabelledAt(nested(source, 10), [1]), np.arange(6), renumber=True),
        lambda source: Ordered(nested(source, 12), block, 5),
    ],
)
def test_what_is_made_of_sources_keeps_the_contract(derived, glyphs):
    check_source(derived(glyphs))


class AnotherOrder(Squares):
    def _epoch(self, seed, epoch, skip, rows):
        return super()._epoch(
            None if seed is None else int(np.random.default_rng().integers(1 << 30)),
            epoch,
            skip,
            rows,
        )


class NoSeed(Squares):
    def _epoch(self, seed, epoch, skip, rows):
        return super()._epoch(0 if seed else seed, epoch, skip, rows)


class StartsAnew(Squares):
    """Within an epoch it cannot start."""

    def _epoch(self, seed, epoch, skip, rows):
        return super()._epoch(seed, epoch, 0, rows)


class KeepsAllRows(Squares):
    def _epoch(self, seed, epoch, skip, rows):
        return super()._epoch(seed, epoch, skip, None)


class NoShuffle(Squares):
    def _epoch(self, seed, epoch, skip, rows):
        return super()._epoch(None, epoch, skip, rows)


class Changed(Squares):
    """An example with something else in it."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def fetch(self, record):
        example = {**super().fetch(record), **self.changes}
        return {key: value for key, value in example.items() if value is not None}


class Unstable(Squares):
    def fetch(self, record):
        return {
            **super().fetch(record),
            "image": tf.cast(tf.random.uniform([4, 4, 3], 0, 256, tf.int32), tf.uint8),
        }


class OneName(Squares):
    def name(self, index):
        return "square"


class TwoNames(Squares):
    def name_in_graph(self, record):
        return tf.strings.join(["square ", super().name_in_graph(record)])


class Silent(Squares):
    provides = ()


class Short(Squares):
    """It tells the sequence of some images."""

    provides = ("boxes", "frames")

    def sequences(self):
        return np.zeros([11], np.int64)


class FewNames(Squares):
    def __init__(self):
        super().__init__()
        self.class_names = ["a", "b"]


@pytest.mark.parametrize(
    "source, promise",
    [
        (StartsAnew(), "to start at 1 is not to skip as many"),
        (KeepsAllRows(), "rows 0 and 1 to 3 of each 4 are not one pass"),
        (AnotherOrder(), "the same seed gives another order|to start at example"),
        (NoSeed(), "the order does not depend on the seed"),
        (NoShuffle(), "epochs are not shuffled anew"),
        (Changed(label=tf.constant(3, tf.int64)), "label 3 of 3 classes"),
        (Changed(label=tf.constant(0)), "label and index are int64"),
        (Changed(index=tf.constant(4, tf.int64)), "examples with the same index"),
        (Changed(image=tf.constant(b"nothing")), "its image cannot be decoded"),
        (Changed(boxes=None), "provides 'boxes', and there is no 'boxes'"),
        (Changed(classes=tf.constant([2])), "'classes' is int32 .1,., not int64"),
        (Changed(boxes=tf.constant([[0.0, 0.25, 0.5, 1.5]])), "boxes "),
        (Changed(mask=tf.zeros([4, 4], tf.uint8)), "there is 'mask', which the source does not say"),
        (Unstable(), "its image is another"),
        (Silent(), "there is 'boxes', which the source does not say"),
        (OneName(), "all images have one name"),
        (TwoNames(), "is called 'square 0' and '0'"),
        (Short(), "sequences.. is int64 .images., and not int64 .11,"),
        (FewNames(), "3 classes, 2 names"),
    ],
)  # fmt: skip
def test_each_broken_promise_is_named(source, promise):
    with pytest.raises(AssertionError, match=promise):
        check_source(source)


def test_the_source_without_a_fault_passes():
    check_source(Squares())

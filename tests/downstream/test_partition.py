import numpy as np
import pytest

from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.partition import balanced, label_count, split, stratified
from tfssl.downstream.protocol import Data
from tfssl.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [400, 300, 200, 100]))
INDEX = np.arange(1000)


def features(labels, **kwargs):
    return Features(
        {"x": np.zeros([len(labels), 2], np.float32)},
        np.array(labels),
        np.arange(len(labels)),
        **kwargs,
    )


@pytest.mark.parametrize(
    "text, count", [("all", 1000), ("1%", 10), ("2.5%", 25), ("100%", 1000), ("200", 200), (7, 7)]
)
def test_label_count(text, count):
    assert label_count(text, 1000) == count


@pytest.mark.parametrize("text", ["", "few", "10 %%", "0", "0%", "-5", "1001", "101%", "1.5"])
def test_label_count_refuses(text):
    with pytest.raises(UserError, match="train_labels"):
        label_count(text, 1000)


def test_balanced_subsets_are_balanced_and_nested():
    inner = set()
    for count in (4, 10, 11, 40, 399, 400, 401, 700, 1000):
        rows = balanced(LABELS, INDEX, count, seed=3)
        assert len(set(rows)) == count and inner <= set(rows)
        inner = set(rows)
        sizes = np.bincount(LABELS[rows], minlength=4)
        if count <= 400:  # the smallest class has 100
            assert sizes.max() - sizes.min() <= 1
    assert list(np.bincount(LABELS[balanced(LABELS, INDEX, 550, 0)])) == [150, 150, 150, 100]


def test_subsets_depend_on_the_seed_alone():
    first = balanced(LABELS, INDEX, 40, seed=0)
    assert np.array_equal(first, balanced(LABELS, INDEX, 40, seed=0))
    assert len(set(first) & set(balanced(LABELS, INDEX, 40, seed=1))) < 20
    # An image that could not be read does not change the lot of the others.
    lost = int(np.setdiff1d(INDEX, first)[0])
    kept = np.delete(INDEX, lost)
    assert np.array_equal(kept[balanced(LABELS[kept], kept, 40, seed=0)], first)


def test_fewer_labels_than_classes():
    with pytest.raises(UserError, match="3 labels.*4 classes"):
        split(features(LABELS), features(LABELS), train_labels=3)


def test_stratified_parts():
    fit, val = stratified(LABELS, INDEX, 0.2, seed=0)
    assert sorted([*fit, *val]) == list(range(1000))
    assert list(np.bincount(LABELS[val])) == [80, 60, 40, 20]


def test_each_class_stays_in_the_fitted_part():
    labels = np.array([0, 1, 1, 2, 2, 2])
    fit, val = stratified(labels, np.arange(6), 0.9, seed=0)
    assert set(labels[fit]) == {0, 1, 2}
    assert sorted(labels[val]) == [1, 2, 2]
    fit, val = stratified(labels, np.arange(6), 0.01, seed=0)
    assert sorted(labels[val]) == [1, 2]  # at least one of a class of two or more


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.9])
def test_sequences_are_held_out_whole(fraction):
    """Of each class as many as make up the fraction, and one is left; class 3 has but one."""
    rng = np.random.default_rng(0)
    lengths, classes = rng.integers(1, 30, 60), np.append(np.arange(59) % 3, 3)
    sequences = np.repeat(np.arange(60), lengths)
    order = rng.permutation(len(sequences))
    sequences, labels = sequences[order], np.repeat(classes, lengths)[order]
    fit, val = stratified(labels, sequences, fraction, seed=3)
    assert sorted([*fit, *val]) == list(range(len(labels)))
    assert not set(sequences[fit]) & set(sequences[val]) and not (labels[val] == 3).any()
    assert set(labels[fit]) == {0, 1, 2, 3} and set(labels[val]) == {0, 1, 2}
    for label in range(3):
        size, held = (labels == label).sum(), (labels[val] == label).sum()
        wanted = max(round(size * fraction), 1)
        left = set(sequences[fit][labels[fit] == label])
        assert held < wanted + 29 and (held >= wanted or len(left) == 1)
    train = features(labels)
    train.sequences = sequences
    part = split(train, train, val_fraction=fraction, seed=3)
    np.testing.assert_array_equal(part.val, val)


def test_split_stays_within_the_labels_used():
    train = features(LABELS)
    part = split(train, train, train_labels=100, val_fraction=0.2, seed=1)
    assert sorted([*part.fit, *part.val]) == list(part.rows)
    assert len(part.rows) == 100 and len(part.val) == 20
    assert list(np.bincount(LABELS[part.val])) == [5, 5, 5, 5]


def test_nothing_is_held_out():
    part = split(features(LABELS), features(LABELS), val_fraction=0)
    assert (
        part.fits_all
        and list(part.fit) == list(part.rows) == list(range(1000))
        and not len(part.val)
    )


def test_a_validation_split_of_its_own():
    train, val = features(LABELS), features([0, 3, 7, 1], source="folder:x val")
    part = split(train, train, train_labels=40, seed=0, val=val)
    assert part.fits_all and list(part.fit) == list(balanced(LABELS, INDEX, 40, 0))
    assert part.held is val and list(part.val) == [0, 1, 3]  # nobody can learn class 7
    assert Data(train, train, val).chosen_on == "folder:x val"
    assert Data(train, train, val_fraction=0.25).chosen_on == "val_fraction 0.25 of these features"
    with pytest.raises(UserError, match="folder:x val: 1 of 2 images have no label"):
        split(train, train, val=features([0, -1], source="folder:x val"))


def test_unlabelled_and_unlike_sources_are_refused():
    train = features([0, 1, 0, 1], source="folder:photos train")
    with pytest.raises(UserError, match="folder:mine test: 1 of 3 images have no label"):
        split(train, features([0, -1, 1], source="folder:mine test"))
    named = [features([0, 1], class_names=names) for names in (["cat", "dog"], ["cat", "owl"])]
    with pytest.raises(UserError, match="dog, owl"):
        split(*named)
    with pytest.raises(UserError, match="val_fraction"):
        split(train, train, val_fraction=1.0)


def test_one_class_is_nothing_to_tell_apart():
    one, two, third = features([0, 0, 0, 0]), features([0, 1, 0, 1]), features([2, 2, 2, 2])
    for divide in (partition.split, partition.one_vs_rest):
        with pytest.raises(
            UserError, match="all 4 images to learn from are of one class, 0: nothing to tell apart"
        ):
            divide(one, two)
    with pytest.raises(UserError, match="no image is of a class"):
        partition.split(two, two, val=third)

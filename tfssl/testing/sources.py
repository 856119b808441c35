"""The check of a source."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.ops import image
from tfssl.data.sources import identity
from tfssl.data.sources.base import ANNOTATIONS, Source
from tfssl.data.sources.subset import Ordered

_SEED = 7


def check_source(source: Source, limit: int = 32) -> None:
    """Check that a source keeps the promises of `Source`.

    - Facts: at least one image, as many class names as classes, all different.
    - Order: without a seed one pass in split order; with one, endless epochs, each with every image
      once, in orders that differ and come back with their seed. To start at an example is to skip
      those before it; the rows of several pipelines are those of one, shared out; machines that
      share an epoch get each image once.
    - Examples: images that can be decoded; labels in range, or -1; `index` as in the split; what
      the source says that it `provides`, and no more of it; the same of the same image, in a graph
      and out of it, in every epoch, and where it is found by its index.
    - Sequences, where it provides "frames": each image has the number of its own.
    - Names: what `name` and `name_in_graph` call an image is one thing; identities repeat, and can
    be kept as JSON.

    Args:
      source: an opened source, better of ten images or more than of one; all of its records are
        read many times.
      limit: of so many images all is looked at.

    Raises:
      AssertionError: a promise is broken.
    """
    what = f"{source.spec} {source.split}"
    _check_facts(source, what)
    examples = _check_examples(source, what, limit)
    _check_ways(source, what, examples)
    indices = _check_pass(source, what)
    _check_epochs(source, what, set(indices))
    if not isinstance(source, Ordered):
        _check_share(source, what, set(indices))
    one, other = (identity.of(source, sample=True) for _ in range(2))
    assert one == other and json.loads(json.dumps(one)) == one, (
        f"{what}: its identity is another each time, or no JSON"
    )


def _check_facts(source: Source, what: str) -> None:
    assert source.num_examples > 0, f"{what}: num_examples={source.num_examples!r}"
    assert source.num_classes is None or source.num_classes > 0, (
        f"{what}: num_classes={source.num_classes}"
    )
    names = source.class_names
    if names is not None:
        assert len(set(names)) == len(names), f"{what}: class names that are not all different"
        assert source.num_classes in (None, len(names)), (
            f"{what}: {source.num_classes} classes, {len(names)} names"
        )
    if "frames" in source.provides and source.places == source.num_examples:
        numbers = source.sequences()
        assert source.random_access, f"{what}: it provides 'frames', and has no random access"
        assert numbers.dtype == np.int64 and numbers.shape == (source.num_examples,), (
            f"{what}: sequences() is int64 [images], and not {numbers.dtype.name} {numbers.shape}"
        )
    targets = source.targets()
    if targets is not None:
        assert names and targets.shape == (source.num_examples, len(names)), (
            f"{what}: targets are not [images, class names]"
        )
        assert set(np.unique(targets)) <= {-1, 0, 1}, f"{what}: targets are 1, -1 and 0"


def _order(source: Source, count: int | None = None, **arguments: Any) -> list[tuple[int, int]]:
    """[(number, index)] of the first records."""
    records = source.records(**arguments)
    records = records if count is None else records.take(count)
    return [(int(r["number"]), int(r["index"])) for r in records.as_numpy_iterator()]


def _check_pass(source: Source, what: str) -> list[int]:
    """The indices of its records."""
    n, whole = source.num_examples, _order(source)
    assert [number for number, _ in whole] == list(range(n)), (
        f"{what}: a pass without a seed is not numbered 0 to {n - 1}"
    )
    indices = [index for _, index in whole]
    assert all(a < b for a, b in zip(indices, indices[1:])), (
        f"{what}: a pass without a seed is not in split order"
    )
    for start in {1, n}:
        assert _order(source, start=start) == whole[start:], (
            f"{what}: to start at {start} is not to skip as many"
        )
    parts = [_order(source, rows=(4, low, high)) for low, high in ((0, 1), (1, 4))]
    assert sorted(sum(parts, [])) == whole, f"{what}: rows 0 and 1 to 3 of each 4 are not one pass"
    first = [(int(r["number"]), int(r["index"])) for r in source.first_records(3)]
    assert first == whole[:3], f"{what}: first_records() are not those of records()"
    return indices


def _check_epochs(source: Source, what: str, every: set[int]) -> None:
    n = source.num_examples
    count = 2 * n + min(n, 5)
    whole = _order(source, count, seed=_SEED)
    assert [number for number, _ in whole] == list(range(count)), (
        f"{what}: epochs are not numbered on"
    )
    epochs = [[index for _, index in whole[e * n : (e + 1) * n]] for e in range(2)]
    if isinstance(source, Ordered):
        assert {index for _, index in whole} <= every, f"{what}: an order of other images"
    else:
        assert all(len(epoch) == n and set(epoch) == every for epoch in epochs), (
            f"{what}: an epoch is not every image once"
        )
        if n > 9:  # of fewer, two random orders may be the same
            assert epochs[0] != epochs[1], f"{what}: epochs are not shuffled anew"
    if n > 9:
        assert _order(source, n, seed=_SEED + 1) != whole[:n], (
            f"{what}: the order does not depend on the seed"
        )
    assert _order(source, count, seed=_SEED) == whole, f"{what}: the same seed gives another order"
    for start in sorted({1, n, count - 2}):
        started = _order(source, count - start, seed=_SEED, start=start)
        assert started == whole[start:], (
            f"{what}: to start at example {start} is not to skip as many"
        )
    for low, high in ((0, 1), (1, 4)):
        mine = [(number, index) for number, index in whole if low <= number % 4 < high]
        found = _order(source, len(mine), seed=_SEED, rows=(4, low, high))
        assert found == mine, (
            f"{what}: rows {low} to {high - 1} of each 4 are not those of the whole"
        )


def _check_share(source: Source, what: str, every: set[int]) -> None:
    n = source.num_examples
    shared = source.shardable_epoch(_SEED, tf.constant(1, tf.int64)).as_numpy_iterator()
    pairs = sorted((int(r["number"]), int(r["index"])) for r in shared)
    assert [number for number, _ in pairs] == list(range(n, 2 * n)), (
        f"{what}: an epoch that is shared has other numbers"
    )
    assert {index for _, index in pairs} == every, (
        f"{what}: an epoch that is shared has other images"
    )


def _check_examples(source: Source, what: str, limit: int) -> dict[int, dict[str, Any]]:
    """{index: example} of the first `limit` images."""
    examples = {
        int(e["index"]): e
        for e in source.records().take(limit).map(source.fetch).as_numpy_iterator()
    }
    assert len(examples) == min(limit, source.num_examples), f"{what}: examples with the same index"
    if source.places == source.num_examples:
        assert list(examples) == list(range(len(examples))), (
            f"{what}: index does not count the images of the split from 0"
        )
    for index, example in examples.items():
        one = f"{what}, image {index}"
        assert example["label"].dtype == example["index"].dtype == np.int64, (
            f"{one}: label and index are int64"
        )
        top = source.num_classes or 0
        assert example["label"].shape == () and -1 <= example["label"] < top, (
            f"{one}: label {example['label']} of {source.num_classes} classes; -1 is none"
        )
        try:
            pixels = image.decode(tf.constant(example["image"])).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise AssertionError(f"{one}: its image cannot be decoded: {error}") from error
        _check_provided(source, one, example, pixels.shape[:2])
    return examples


def _check_provided(
    source: Source, one: str, example: dict[str, Any], size: tuple[int, ...]
) -> None:
    for name in source.provides:
        for key, spec in ANNOTATIONS.get(name, {name: None}).items():
            assert key in example, f"{one}: the source provides {name!r}, and there is no {key!r}"
            if spec is not None:
                value = np.asarray(example[key])
                assert value.dtype == spec.dtype.as_numpy_dtype and spec.shape.is_compatible_with(
                    value.shape
                ), (
                    f"{one}: {key!r} is {value.dtype.name} {value.shape}, not {spec.dtype.name} "
                    f"{spec.shape}"
                )
    for name in ANNOTATIONS.keys() - set(source.provides):
        assert name not in example, (
            f"{one}: there is {name!r}, which the source does not say that it provides"
        )
    if "mask" in example:
        assert example["mask"].shape == size, (
            f"{one}: a mask of {example['mask'].shape} for an image of {size}"
        )
    if "normals" in example:
        length = np.linalg.norm(example["normals"], axis=-1)
        assert np.all(np.minimum(abs(length), abs(length - 1)) < 1e-3), (
            f"{one}: normals whose length is not 1, nor 0"
        )
    if "boxes" in example:
        boxes, classes = example["boxes"], example["classes"]
        assert np.all((boxes >= 0) & (boxes <= 1)) and np.all(boxes[:, :2] < boxes[:, 2:]), (
            f"{one}: boxes {boxes.tolist()}"
        )
        known = len(source.class_names or ())
        assert len(classes) == len(boxes) and np.all((classes >= 0) & (classes < known)), (
            f"{one}: classes {classes.tolist()}"
        )


def _check_ways(source: Source, what: str, examples: dict[int, dict[str, Any]]) -> None:
    """The same image is the same out of a graph, in an epoch, by its index, and by its name."""
    some = list(examples)[:4]
    records = {
        int(source.fetch(record)["index"]): record for record in source.first_records(len(some))
    }
    ways = {"out of a graph": [source.fetch(record) for record in records.values()]}
    ways["read again"] = [source.fetch(source.read_again(record)) for record in records.values()]
    ways["in an epoch"] = list(
        source.records(seed=_SEED).take(len(examples)).map(source.fetch, tf.data.AUTOTUNE)
    )
    if source.random_access:
        found = source.at(tf.constant(some[::-1], tf.int64))
        by_index = [
            source.fetch({key: value[i] for key, value in found.items()}) for i in range(len(some))
        ]
        assert [int(e["index"]) for e in by_index] == some[::-1], f"{what}: at() finds other images"
        ways["by its index"] = by_index
    for way, others in ways.items():
        for other in others:
            index = int(other["index"])
            for key, value in examples[index].items() if index in examples else ():
                assert np.array_equal(np.asarray(other[key]), value), (
                    f"{what}, image {index}: {way} its {key} is another"
                )
    names = [source.name(index) for index in examples]
    assert all(isinstance(name, str) for name in names), f"{what}: names are no strings"
    assert len(names) == 1 or len(set(names)) > 1, f"{what}: all images have one name: {names[0]!r}"
    for index, record in records.items():
        name = source.name_in_graph(record).numpy().decode()
        assert name == source.name(index), (
            f"{what}, image {index} is called {name!r} and {source.name(index)!r}"
        )

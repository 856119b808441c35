"""The check of a protocol."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result, mark_chosen
from tfssl.errors import UserError

# Details of results that are measured on test, or are times: a choice may not depend on the first,
# nothing can repeat the second.
OF_TEST = (
    "accuracy", "std", "min", "max", "interval", "per_class", "curve", "coco_ap", "ap75", "voc_ap",
    "mean_angle", "median_angle", "within", "unreadable",
)  # fmt: skip
OF_TIME = ("seconds", "images_per_second")


def check_protocol(
    protocol: type[Protocol],
    data: Optional[Data] = None,
    refused: Sequence[Mapping[str, Any]] = (),
    of_test: Sequence[str] = OF_TEST,
    **settings: Any,
) -> list[Result]:
    """Check that a class of protocols keeps the promises of `Protocol`.

    - The constructor keeps each argument under its name, takes what it has kept, and refuses each
    of `refused`.
    - There are results of all endpoints, complete: names, a value in [0, 1], what it was chosen and
      reported on; JSON can hold them, and reading that gives them back.
    - Equal seeds give equal results, whether an endpoint is measured alone or with others; and the
    data are left as they were.
    - No choice is made on test: with other test images `val_value`, the chosen endpoint and all
    details but those `of_test` are the same.
    - Of features: float16 will do; and where the class says `order_independent`, another order of
      the training rows changes no value by more than rounding does, 0.02.

    Args:
      protocol: the class.
      data: to run it on; by default features of three overlapping clouds of points, in two
        endpoints. Of protocols that read maps: sources with what they need, and a module.
      refused: settings that the constructor is to refuse with a `UserError`, such as [{"k": 0}].
      of_test: names of the details that are measured on test.
      **settings: of the protocol, small ones, so that it takes seconds.

    Returns:
      the results.

    Raises:
      AssertionError: a promise is broken.
    """
    name = getattr(protocol, "name", None)
    assert isinstance(name, str) and name, f"{protocol.__qualname__} has no name"
    made = protocol(**settings)
    assert protocol(**made.settings).settings == made.settings, (
        f"{name}: the constructor does not take what it keeps"
    )
    for bad in refused:
        _assert_refused(protocol, {**settings, **bad})

    data = _clouds() if data is None else data
    of_features = made.reads == "features"
    made.check(data)
    before = [_copied(part) for part in data.parts] if of_features else []
    results = made.measure(data)
    for part, (endpoints, labels) in zip(data.parts, before):
        same = all(np.array_equal(part.endpoints[e], endpoints[e]) for e in endpoints)
        assert same and np.array_equal(part.labels, labels), (
            f"{name}: changes the features that it reads"
        )
    _assert_complete(made, data, results)

    alone = made.measure(data, [results[-1].endpoint])
    last = [r for r in results if r.endpoint == results[-1].endpoint]
    _assert_equal(f"{name}: the same twice, alone and with other endpoints", alone, last, ())

    others = made.measure(data.replace(test=_other_test(data.test, of_features)))
    _assert_equal(
        f"{name}: a choice depends on test",
        others,
        results,
        ("value", "chance", "reported_on", *of_test),
    )
    chosen = [[r.chosen for r in mark_chosen(each)] for each in (others, results)]
    assert chosen[0] == chosen[1], f"{name}: the chosen endpoint depends on test"

    if of_features:
        half = made.measure(
            data.replace(**{part: _half(getattr(data, part)) for part in ("train", "test")})
        )
        assert all(math.isfinite(r.value) for r in half), f"{name}: float16 features give no number"
    if isinstance(data.train, Features) and made.order_independent:
        moved = made.measure(data.replace(train=_reordered(data.train, np.s_[::-1])))
        for one, other in zip(results, moved):
            assert abs(one.value - other.value) <= 0.02, (
                f"{name} {one.endpoint}: {one.value:.3f}, and {other.value:.3f} with the training "
                "rows in another order; set "
                "order_independent = False if it has to be so"
            )
    return results


def _assert_refused(protocol: type[Protocol], settings: Mapping[str, Any]) -> None:
    try:
        protocol(**settings)
    except UserError as error:
        assert "\n" not in str(error), f"{protocol.name}: an error of more than one line: {error}"
    else:
        raise AssertionError(f"{protocol.name}: the constructor takes {settings}")


def _assert_complete(made: Protocol, data: Data, results: Sequence[Any]) -> None:
    endpoints = made.endpoints(data)
    assert list(dict.fromkeys(r.endpoint for r in results)) == list(endpoints), (
        f"{made.name}: not a result of each endpoint, in order"
    )
    cells = [(r.endpoint, r.column) for r in results]
    assert len(set(cells)) == len(cells), f"{made.name}: two results in one place of the table"
    for r in results:
        what = f"{made.name} {r.endpoint}"
        assert (r.protocol, r.metric) == (made.name, made.metric), (
            f"{what}: protocol and metric are {r.protocol}, {r.metric}"
        )
        assert isinstance(r.value, float) and 0 <= r.value <= 1, (
            f"{what}: value={r.value!r} is no float in [0, 1]"
        )
        known = r.val_value is None or (isinstance(r.val_value, float) and 0 <= r.val_value <= 1)
        assert known, f"{what}: val_value={r.val_value!r} is neither None nor a float in [0, 1]"
        assert r.reported_on, f"{what}: reported_on is not known"
        assert r.chosen_on or r.val_value is None, f"{what}: chosen_on is not known"
        assert r.train_labels > 0 and r.seconds >= 0, (
            f"{what}: train_labels={r.train_labels}, seconds={r.seconds}"
        )
        try:
            record = json.loads(json.dumps(dict(r)))
        except TypeError as error:
            raise AssertionError(f"{what}: results.json cannot hold it: {error}") from error
        assert dict(Result.of(record)) == record, (
            f"{what}: the record of results.json does not read back"
        )


def _assert_equal(
    message: str, some: Sequence[Result], others: Sequence[Result], left_out: Sequence[str]
) -> None:
    """Two lists of results say the same, but for some keys of their records."""
    assert [r.column for r in some] == [r.column for r in others], f"{message}: other columns"
    for one, other in zip(some, others):
        for key in {*one, *other} - {*left_out, *OF_TIME}:
            same = json.dumps(one.get(key)) == json.dumps(other.get(key))
            assert same, (
                f"{message}: {key} of {one.endpoint} is {one.get(key)} and {other.get(key)}"
            )


def _clouds() -> Data:
    def part(seed: int, count: int) -> Features:
        rng, labels = np.random.default_rng(seed), np.arange(count) % 3
        points = rng.normal(size=[count, 6]) + 2 * np.eye(3, 6)[labels]
        endpoints = {"a": points[:, 1:].astype(np.float32), "b": points.astype(np.float32)}
        return Features(endpoints, labels, np.arange(count), num_classes=3, source=f"cloud {seed}")

    return Data(part(0, 90), part(1, 60))


def _copied(part: Features) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {name: np.array(values) for name, values in part.endpoints.items()}, np.array(
        part.labels
    )


def _reordered(part: Features, order: slice) -> Features:
    """`Features` whose rows are in another order, each with its number in the split."""
    endpoints = {name: values[order] for name, values in part.endpoints.items()}
    targets = None if part.targets is None else part.targets[order]
    return dataclasses.replace(
        part,
        endpoints=endpoints,
        labels=part.labels[order],
        index=part.index[order],
        targets=targets,
    )


def _other_test(test: Any, of_features: bool) -> Any:
    """Test images with other answers: labels of other rows; of a source half of its images."""
    if not of_features:
        return evenly_spaced(test, max(1, test.num_examples // 2), renumber=True)
    order = np.random.default_rng(0).permutation(len(test.labels))
    targets = None if test.targets is None else test.targets[order]
    return dataclasses.replace(test, labels=test.labels[order], targets=targets)


def _half(part: Features) -> Features:
    endpoints = {name: values.astype(np.float16) for name, values in part.endpoints.items()}
    return dataclasses.replace(part, endpoints=endpoints)

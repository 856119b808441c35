"""Time budget of an evaluation: estimates each protocol's run time by short trials, and shortens or
skips protocols.

A trial runs the protocol itself on one endpoint of a few images. Three trials (few passes; more
passes; more images) give three prices: the fixed time of an endpoint, the time of a row, and that
of each pass (epoch, value of C, episode) over a row.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream import partition
from tfssl.downstream.features import maps
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol, has_features
from tfssl.downstream.results import PIXELS
from tfssl.errors import UserError

# size of the smaller sample, at most: rows of features; images of a dense protocol
_ROWS, _IMAGES = 500, 4
_EACH = 20  # rows of each class of the smaller sample, at least


class Price(NamedTuple):
    """Seconds: `once` for each endpoint, `row` for a unit of `work`, `each` for a pass over one."""

    once: float
    row: float
    each: float


# (runs a protocol on a sample, the sample's `work`)
Trial = tuple[Callable[[Protocol], object], float]


@dataclasses.dataclass(frozen=True)
class Extent:
    """How a protocol is run.

    Attributes:
      protocol: with the settings of the run.
      labels: the largest number of training labels, or images (but at least five of each class);
        None: all.
      quick: {setting: value} of the settings that replace the requested ones.
    """

    protocol: Protocol
    labels: Optional[int] = None
    quick: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def quickly(cls, protocol: Protocol) -> "Extent":
        """The extent of a protocol's quick settings."""
        settings = dict(protocol.quick)
        labels = settings.pop("train_labels", None)
        quick = protocol.replace(**settings)
        changed = {
            name: settings[name]
            for name in settings
            if quick.settings[name] != protocol.settings[name]
        }
        return cls(
            quick, labels, {**({} if labels is None else {"train_labels": labels}), **changed}
        )

    def limited(self, count: int, train: Features) -> int:
        """The number of training labels, where `count` are requested."""
        return (
            count
            if self.labels is None
            else min(count, max(self.labels, 5 * len(np.unique(train.labels))))
        )


def measured(protocol: Protocol, trials: Iterable[Trial]) -> Price:
    """The `Price` of a protocol, measured by trials.

    Args:
      protocol: the protocol to estimate.
      trials: of a smaller and a larger sample.
    """
    (small, few), (large, many) = trials
    short, long = (protocol.replace(**trial) for trial in protocol.trials)

    def took(run: Callable[[Protocol], object], protocol: Protocol) -> float:
        begun = time.perf_counter()
        run(protocol)
        return time.perf_counter() - begun

    if protocol.reads == "features":  # dense protocols are traced each time
        took(small, short)  # what is traced once in a process
    base, more_passes, more_rows = took(small, short), 0.0, took(large, short)
    p, q = short.passes(), long.passes()
    each = 0.0
    if q > p:
        more_passes = took(small, long)
        each = max(more_passes - base, 0.0) / ((q - p) * few)
    base, more_rows = base - each * p * few, more_rows - each * p * many
    row = max(more_rows - base, 0.0) / (many - few) if many > few else 0.0
    return Price(max(base - row * few, 0.0), row, each)


def sample(
    features: Features,
    endpoint: str,
    count: int,
    classes: Optional[np.ndarray] = None,
    seed: int = 0,
) -> Features:
    """`Features` of at most `count` images, of all classes in turn, or of some, and of one
    endpoint."""
    among = np.arange(len(features.labels))
    if classes is not None:
        among = among[np.isin(features.labels, classes)]
    count = min(count, len(among))
    if features.targets is None and features.labels[among].min(initial=0) >= 0:
        chosen = partition.balanced(features.labels[among], features.index[among], count, seed)
    else:
        chosen = np.linspace(0, len(among) - 1, count).round().astype(int)
    rows = among[chosen]
    targets = None if features.targets is None else features.targets[rows]
    return dataclasses.replace(
        features,
        endpoints={endpoint: np.asarray(features.endpoints[endpoint][rows])},
        labels=features.labels[rows],
        index=features.index[rows],
        targets=targets,
    )


class Budget:
    """Decides which protocols fit into a time budget, cheapest first, for all modules alike.

    A protocol runs with its own settings where these take at most an equal fraction of the
    remaining time; with quick settings where these fit at all; and is skipped otherwise. The
    decision on the first module holds for all others, whose results share the columns.

    Args:
      minutes: for the protocols of all modules together. Feature extraction is not counted.
      modules: number of modules.
      protocols: those that may be shortened or skipped, cheapest first by `expense`. Others always
        run in full.
      kept: names of protocols whose settings the user gave: they run unchanged, or not at all.
      tell: receives a line with each estimate; note: a line on each protocol that is shortened or
        skipped.
    """

    def __init__(
        self,
        minutes: float,
        modules: int,
        protocols: Sequence[Protocol],
        kept: Sequence[str] = (),
        tell: Callable[[str], None] = print,
        note: Callable[[str], None] = print,
    ) -> None:
        self.minutes, self.modules, self.kept, self.tell, self.note = (
            minutes,
            modules,
            set(kept),
            tell,
            note,
        )
        self.waiting = {protocol.name for protocol in protocols}
        self.left = 60.0 * minutes
        self.decided: dict[str, Optional[Extent]] = {}
        self._running: Optional[float] = None

    def permit(
        self,
        protocol: Protocol,
        data: Data,
        endpoints: Sequence[str],
        train_labels: Sequence[partition.Labels] = ("all",),
    ) -> Optional[Extent]:
        """The extent of a protocol on all modules; None: it is skipped. Arguments as of
        `runner.measure`."""
        self.finished()
        name = protocol.name
        if name in self.decided:
            return self.decided[name]
        if name not in self.waiting:
            return Extent(protocol)
        begun = time.perf_counter()
        if self.left <= 0:
            self.waiting.remove(name)
            self.decided[name] = None
            self.note(
                f"left out for lack of time: {name}: nothing of --budget_minutes={self.minutes:g} "
                f"is left; --protocol={name} or "
                "--budget_minutes=0 measures it"
            )
            return None
        estimate = self.estimate(protocol, data, endpoints, train_labels)
        chosen: Optional[Extent] = Extent(protocol)
        seconds = estimate(Extent(protocol))
        fair, how = self.left / len(self.waiting), "full settings"
        first = not self.decided
        self.waiting.remove(name)
        remedy = f"--protocol={name} or --budget_minutes=0 measures it in full"
        if seconds > fair:
            quick = (
                Extent(protocol)
                if name in self.kept or not protocol.quick
                else Extent.quickly(protocol)
            )
            quickly = estimate(quick)
            lasts = f"about {_clock(seconds)} in full" + (
                f", {_clock(quickly)} with quick settings" if quick.quick else ""
            )
            of = f"{_clock(max(self.left, 0))} of --budget_minutes={self.minutes:g} are left"
            if quickly > self.left and not first:
                self.note(f"left out for lack of time: {name}: {lasts}; {of}; {remedy}")
                chosen = None
            elif quick.quick and quickly < seconds:
                chosen, how = quick, "quick settings"
                shown = ", ".join(f"{key}={_shown(value)}" for key, value in protocol.quick.items())
                self.note(f"quick settings: {name}: {shown}: {lasts}; {of}; {remedy}")
                seconds = quickly
        self.left -= time.perf_counter() - begun
        self.decided[name] = chosen
        if chosen is not None:
            self.tell(f"{name}: {_clock(seconds)} estimated ({how})")
            self._running = time.perf_counter()
        return chosen

    def estimate(
        self,
        protocol: Protocol,
        data: Data,
        endpoints: Sequence[str],
        train_labels: Sequence[partition.Labels],
    ) -> Callable[[Extent], float]:
        """A function extent -> estimated seconds on all endpoints of all modules, for all numbers
        of labels."""
        of_features = has_features(data)
        trials = (
            _of_features(protocol, data, endpoints, train_labels)
            if of_features
            else _of_maps(protocol, data, endpoints)
        )
        try:
            price = measured(protocol, trials.runs)
        except UserError:
            try:
                protocol.check(data)
            except UserError:  # raised again by the run itself, which then takes no time
                return lambda extent: 0.0
            return lambda extent: 0.0 if extent.quick else math.inf  # the sample alone is too small

        def seconds(extent: Extent) -> float:
            passes, total = extent.protocol.passes(), 0.0
            for count in trials.amounts(extent):
                for name in endpoints:
                    dims, tests_each = trials.dims[name], trials.tests if of_features else 0
                    rows = price.row * protocol.work(count, trials.tests, dims)
                    each = price.each * passes * protocol.work(count, tests_each, dims)
                    modules = 1 if name == PIXELS else self.modules  # pixels are the same for all
                    total += (price.once + rows + each) * modules
            return total * (trials.classes if protocol.per_class else 1.0)

        return seconds

    def finished(self) -> None:
        """Books the time of the protocol that has ended, for all modules."""
        if self._running is not None:
            self.left -= (time.perf_counter() - self._running) * self.modules
            self._running = None


class Trials(NamedTuple):
    """Trials on the largest endpoint, and what an estimate needs beside their times.

    Attributes:
      runs: as `measured` takes them.
      amounts: extent -> numbers of labels, or of images.
      tests: test images.
      dims: {endpoint: values of an image}.
      classes: those of all images over those of the trials.
    """

    runs: list[Trial]
    amounts: Callable[[Extent], Iterable[int]]
    tests: int
    dims: dict[str, int]
    classes: float = 1.0


def _of_features(
    protocol: Protocol,
    data: Data[Features],
    endpoints: Sequence[str],
    train_labels: Sequence[partition.Labels],
) -> Trials:
    train, test = data.train, data.test
    dims = {name: train.endpoints[name].shape[1] for name in endpoints}
    largest = max(endpoints, key=lambda name: dims[name])
    runs: list[Trial] = []
    few = min(_ROWS, len(train.labels) // 2)
    kept = _classes(train, few)
    for rows in (few, 2 * few):
        parts = [sample(part, largest, rows, kept) for part in (train, test)]
        val = sample(data.val, largest, rows // 2, kept) if data.val else None
        of = data.replace(train=parts[0], test=parts[1], val=val, publish=None)
        work = protocol.work(len(parts[0].labels), len(parts[1].labels), dims[largest])
        runs.append((functools.partial(_measure, data=of), work))
    counts = [partition.label_count(amount, len(train.labels)) for amount in train_labels]

    def amounts(extent: Extent) -> Iterable[int]:
        return dict.fromkeys(extent.limited(count, train) for count in counts)

    classes = 1.0 if kept is None else len(np.unique(train.labels)) / len(kept)
    return Trials(runs, amounts, len(test.labels), dims, classes)


def _classes(train: Features, rows: int) -> Optional[np.ndarray]:
    """The labels of a sample of so many rows, those of the most images, where there are more than
    it can show; None: all."""
    if train.targets is not None or train.labels.min() < 0:
        return None
    labels, counts = np.unique(train.labels, return_counts=True)
    most = max(2, rows // _EACH)
    return labels[np.argsort(-counts, kind="stable")[:most]] if len(labels) > most else None


def _of_maps(protocol: Protocol, data: Data[Source], endpoints: Sequence[str]) -> Trials:
    """The same for a dense protocol, whose sources have no label subsets."""
    size = maps.image_sides(data.train, protocol.settings.get("size", (0, 0)))
    shapes = {**data.required_module.shapes(size), PIXELS: (*size, 3)}
    dims = {
        name: sum(math.prod(shapes[level]) for level in np.atleast_1d(protocol.levels(name)))
        for name in endpoints
    }
    largest = max(endpoints, key=lambda name: dims[name])
    runs: list[Trial] = []
    few = min(_IMAGES, data.train.num_examples // 2)
    for images in (few, 2 * few):
        parts = [evenly_spaced(source, images, renumber=True) for source in (data.train, data.test)]
        of = data.replace(train=parts[0], test=parts[1], val=None, publish=None)
        work = protocol.work(parts[0].num_examples, parts[1].num_examples, dims[largest])
        runs.append((functools.partial(_measure, data=of, endpoints=[largest]), work))
    count = data.train.num_examples
    return Trials(
        runs, lambda extent: [min(count, extent.labels or count)], data.test.num_examples, dims
    )


def _measure(protocol: Protocol, data: Data, endpoints: Optional[Sequence[str]] = None) -> None:
    protocol.measure(data, endpoints)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _clock(seconds: float) -> str:
    return (
        "an unknown time"
        if seconds == math.inf
        else f"{seconds / 60:.1f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
        if seconds >= 1
        else "less than 1 s"
    )

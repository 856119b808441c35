"""Several protocols on one module, result by result."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream import budget as times
from tfssl.downstream import partition
from tfssl.downstream.features import extract as features
from tfssl.downstream.protocol import Data, Part, Protocol, has_features, lacks
from tfssl.downstream.results import PIXELS, Result
from tfssl.errors import UserError
from tfssl.hub.load import Module

Tell = Callable[[str], None]  # prints a line


def endpoints(
    opened: Mapping[str, Module],
    names: Optional[Sequence[str]] = None,
    image_size: Optional[int] = None,
    resize: Optional[int] = None,
) -> dict[str, list[str]]:
    """The endpoints to extract of each module; pixels, the same for all modules, of the first one
    only.

    Args:
      opened: {name: loaded `Module`}.
      names: of endpoints; None: all of each module's, and pixels.
      image_size, resize: see `features.extract`.

    Returns:
      {name of the module: names of endpoints}, without modules that have none.
    """
    endpoints_of: dict[str, list[str]] = {}
    for name, module in opened.items():
        size, _ = module.sizes(image_size, resize)
        of_module = features.check_endpoints(module, size, names) + (
            [PIXELS] if names is None else []
        )
        of_module = [
            endpoint for endpoint in of_module if not (endpoints_of and endpoint == PIXELS)
        ]
        if of_module:
            endpoints_of[name] = of_module
    return endpoints_of


def permitted(
    protocols: Sequence[Protocol],
    sources: Iterable[Source],
    optional: Sequence[str] = (),
    left_out: Tell = print,
) -> list[Protocol]:
    """The protocols whose requirements the images meet.

    Args:
      sources: of all splits.
      optional: names of protocols that may be skipped.
      left_out: receives a line on each protocol that is skipped.

    Raises:
      UserError: the images do not meet the requirements of a protocol that is not optional, or of
        any.
    """
    refused: dict[str, str] = {}
    for source in sources:
        reasons = {
            need: lacks(need, source)
            for need in dict.fromkeys(n for p in protocols for n in p.needs)
        }
        for protocol in protocols:
            reason = next((reasons[need] for need in protocol.needs if reasons[need]), None)
            if reason:
                refused.setdefault(protocol.name, reason)
    for name, reason in refused.items():
        if name not in optional:
            raise UserError(f"--protocol={name}: {reason}")
    kept = [protocol for protocol in protocols if protocol.name not in refused]
    reasons = dict.fromkeys(refused.values())
    if protocols and not kept:
        raise UserError(f"--protocol=all: {'; '.join(reasons)}")
    for reason in reasons:
        names = [name for name in refused if refused[name] == reason]
        left_out(f"left out: {', '.join(names)}: {reason}")
    return kept


def check_labels(
    protocols: Sequence[Protocol],
    sources: Mapping[str, Source],
    train_labels: Sequence[partition.Labels] = ("all",),
    **data_settings: Any,
) -> None:
    """Raise UserError where a protocol would reject the labels: too few images of a class, a single
    class.

    Only sources whose labels are known without reading images are checked.

    Args:
      protocols: protocols that read features.
      sources: {"train", "test", perhaps "val": source}.
      train_labels: numbers of labels, such as ["1%", "all"].
      **of_data: other settings of `Data`.
    """
    if not protocols or not all(source.random_access for source in sources.values()):
        return
    parts = {}
    for part, source in sources.items():
        rows, targets = features.read_labels(source), source.targets()
        parts[part] = features.Features(
            {},
            rows["labels"],
            rows["index"],
            source.num_classes,
            source.class_names,
            partition.described(source),
            targets=None if targets is None else targets[rows["index"]],
            sequences=features.sequences(source, rows["index"]),
        )
    data = Data(parts["train"], parts["test"], parts.get("val"), **data_settings)
    for protocol in protocols:
        for amount in train_labels:
            count = partition.label_count(amount, len(parts["train"].labels))
            try:
                protocol.check(data.replace(train_labels=count))
            except UserError as error:
                raise UserError(f"--protocol={protocol.name}: {error}") from error


def measure(
    protocols: Sequence[Protocol[Part]],
    data: Data[Part],
    endpoints: Optional[Sequence[str]] = None,
    train_labels: Sequence[partition.Labels] = ("all",),
    pixels_of: Sequence[str] = (),
    optional: Sequence[str] = (),
    left_out: Tell = print,
    refused: Optional[Callable[[UserError, str], None]] = None,
    budget: Optional[times.Budget] = None,
) -> Iterator[Result]:
    """Yield the results of protocols that read the same kind of data: by protocol, number of labels
    and endpoint.

    Args:
      data: of all protocols.
      endpoints: names; None: all.
      train_labels: numbers of labels, such as ["1%", "all"]; for protocols that read features.
      pixels_of: names of protocols with a result of pixels, which is the same for every module.
      optional: names of protocols that are skipped, wholly or for too large a k, where they raise a
        UserError.
      left_out: receives a line on whatever is skipped.
      refused: receives the UserError of each part of a protocol that is not optional; other parts
        go on. None: it is raised.
      budget: may shorten or skip protocols; None: all run in full.
    """
    for protocol in protocols:
        try:
            names = protocol.endpoints(data, endpoints, pixels=protocol.name not in pixels_of)
            extent = (
                budget.permit(protocol, data, names, train_labels)
                if budget
                else times.Extent(protocol)
            )
            if extent is None or not names:
                continue
            parts = [
                (part, group)
                for part in _amounts(extent, data, train_labels)
                for group in _groups(protocol, names)
            ]
        except UserError as error:
            _refuse(error, protocol.name, protocol.name in optional, left_out, refused)
            continue
        for part, group in parts:
            try:
                if protocol.name in optional:
                    results = _as_far_as_it_goes(extent.protocol, part, group, left_out)
                else:
                    results = extent.protocol.measure(part, group)
            except UserError as error:
                _refuse(error, protocol.name, protocol.name in optional, left_out, refused)
                continue
            yield from (result.replace(quick=extent.quick) for result in results)
    if budget:
        budget.finished()


def _refuse(
    error: UserError,
    name: str,
    optional: bool,
    left_out: Tell,
    refused: Optional[Callable[[UserError, str], None]],
) -> None:
    if optional:
        left_out(f"left out: {name}: {error}")
    elif refused:
        refused(error, name)
    else:
        raise error


def _groups(protocol: Protocol, names: list[str]) -> list[list[str]]:
    return [names] if protocol.one_pass else [[name] for name in names]


def _amounts(
    extent: times.Extent, data: Data, train_labels: Sequence[partition.Labels]
) -> list[Data]:
    """The `Data` of each number of labels."""
    if has_features(data):
        counts = [partition.label_count(amount, len(data.train.labels)) for amount in train_labels]
        limited = dict.fromkeys(extent.limited(count, data.train) for count in counts)
        return [data.replace(train_labels=count) for count in limited]
    if extent.labels is None:
        return [data]
    return [data.replace(train=evenly_spaced(data.train, extent.labels, renumber=True))]


def _as_far_as_it_goes(
    protocol: Protocol, data: Data, names: list[str], left_out: Tell
) -> list[Result]:
    """The results of a protocol; where it raises a UserError, those of fewer "shots", or none."""
    what = (
        protocol.name
        if protocol.reads == "maps"
        else f"{protocol.name} on {data.train_labels} labels"
    )
    shots: list[int] = list(protocol.settings.get("shots", ()))
    dropped: list[int] = []
    reason = ""
    while True:
        try:
            results = (protocol.replace(shots=shots) if dropped else protocol).measure(data, names)
            break
        except UserError as error:
            if len(shots) < 2:
                left_out(f"left out: {what}: {error}")
                return []
            shots, dropped, reason = shots[:-1], [shots[-1], *dropped], str(error)
    if dropped:
        left_out(f"left out: {what}, k={','.join(map(str, dropped))}: {reason}")
    return results

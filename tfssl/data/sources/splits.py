"""The one split grammar: TFDS's, for every kind of source.

`train`, `train[:90%]`, `train[100:200]`, `train[-10%:]`, `train[3shard:]`, `train+test`, `all`; see
https://www.tensorflow.org/datasets/splits. Percentages are rounded to the nearest example, as TFDS
does. Shards are the record files of a split: the 2019 study's own validation split of ImageNet, its
last 40 of 1024 training shards, is `train[984shard:]`, and what it trains on `train[:984shard]`.

A name that there is not stands for the one split that is written so in another case, or plays the
same role: `train` for Training, and `validation` for valid (see `tfssl.data.listing.roles`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfssl.data.listing import roles
from tfssl.errors import UserError

Range = tuple[str, int, int]  # (name of a split, start, stop)


def resolve(
    split: str,
    sizes: Mapping[str, Sequence[int]],
    where: str,
    shards: bool = False,
    beside: str = "",
    unit: str = "examples",
) -> list[Range]:
    """Absolute ranges of a split.

    Args:
      split: str in TFDS's grammar.
      sizes: dict of split name -> list of examples per file (a single number where files do not
        matter).
      where: what is being split, for the message ("folder:photos").
      shards: whether the numbers of `sizes` are those of record files, so that the unit `shard`
        means something.
      beside: what else there is, for the message of a name that is unknown.
      unit: what is counted, for messages.

    Returns:
      list of (name, start, stop) with 0 <= start < stop <= sum(sizes[name]), in the order that was
      asked for.

    Raises:
      UserError: for a name that is unknown, or could be one of several; for what TFDS cannot parse;
        for a bound beyond the split; for shards of what has none; and for no examples.
    """
    totals = {name: sum(lengths) for name, lengths in sizes.items()}
    exist = _count(totals, unit)
    if split in totals:  # also a name that the grammar has no place for, such as "my.data"
        ranges = [(split, 0, totals[split])]
    else:
        parts = []
        for part in str(split).split("+"):
            name, bracket, bounds = part.strip().partition("[")
            parts.append((_find(name, totals, where, beside, unit), bracket + bounds))
        if not shards and any("shard" in bounds for _, bounds in parts):
            raise UserError(
                f"cannot use the split {split!r} of {where}: shards are the record files of "
                "tfrecord: and tfds: data; "
                "write a percentage or numbers of images, such as train[:90%] or train[100:200]"
            )
        for name, bounds in parts:
            asked = max(map(int, re.findall(r"(?<![.\d])(\d+)shard", bounds)), default=0)
            if name in sizes and asked > len(sizes[name]):  # TFDS would take all there is
                raise UserError(
                    f"the split {split!r} of {where}: {name} has {len(sizes[name])} shards, not "
                    f"{asked}"
                )
        ranges = _absolute(parts, sizes, split, where, unit)
    ranges = [(name, start, stop) for name, start, stop in ranges if start < stop]
    if not ranges:
        raise UserError(f"the split {split!r} of {where} is empty; it has {exist}")
    return ranges


def _count(totals: Mapping[str, int], unit: str) -> str:
    return ", ".join(f"{name} ({total} {unit})" for name, total in totals.items())


def _find(name: str, totals: Mapping[str, int], where: str, beside: str, unit: str) -> str:
    """The split that a name means."""
    if name in totals or name == "all":
        return name
    role, rest = (None, ()) if "]" in name else roles.read(name)
    same_role = [
        known
        for known in totals
        if role and not rest and roles.read(known.rpartition("/")[2])[0] == role
    ]
    for likely in (
        [known for known in totals if known.lower() == name.lower()],
        same_role,
    ):
        if len(likely) == 1:
            return likely[0]
        if likely:
            either = " or ".join(_count({known: totals[known]}, unit) for known in likely)
            raise UserError(
                f"the split {name!r} of {where} could be {either}: name one, or join them: "
                f"{'+'.join(likely)}"
            )
    hint = ""
    if len(totals) == 1 and roles.read(*totals)[0] not in roles.MEASURED:
        hint = f": hold a part of it out with a slice, such as '{next(iter(totals))}[90%:]'"
    elif all(known.startswith("fold") for known in totals):
        hint = f": join the folds to train on, such as {'+'.join(list(totals)[1:])}"
    raise UserError(f"{where} has no split {name!r}; it has {_count(totals, unit)}{hint}{beside}")


_BOUNDS = re.compile(r"(?:\[([^]]*)\])?")
_BOUND = re.compile(r"(?:(-?[\d_.]+)(%|shard)?)?")


def _absolute(
    parts: Sequence[tuple[str, str]],
    sizes: Mapping[str, Sequence[int]],
    split: str,
    where: str,
    unit: str = "examples",
) -> list[Range]:
    """The ranges of (name that exists, "" or "[bounds]") by TFDS's rules, without its import, which
    takes seconds."""
    try:
        ranges = []
        for name, bounds in parts:
            match = _BOUNDS.fullmatch(bounds)
            if not match:
                raise ValueError("unrecognized format")
            if name != "all":
                ranges.append((name, *_range(match[1], sizes[name], unit)))
            elif not bounds:
                ranges += [(each, 0, sum(lengths)) for each, lengths in sizes.items()]
            else:
                raise ValueError("'all' cannot be sliced")
        return ranges
    except ValueError as error:
        raise UserError(
            f"cannot use the split {split!r} of {where}: {error}; write for example train, "
            "train[:90%], train[100:200] or train+test"
        ) from error


def _range(bounds: str | None, lengths: Sequence[int], counted: str) -> tuple[int, int]:
    """(start, stop) of what stands between the brackets, None where there are none, in files of
    `lengths` examples."""
    total = sum(lengths)
    if bounds is None:
        return 0, total
    ends = [end for end in map(_BOUND.fullmatch, bounds.split(":")) if end]
    if len(ends) <= bounds.count(":") or len(ends) > 2 or not any(end[0] for end in ends):
        raise ValueError(f"unrecognized slice [{bounds}]")
    unit = ends[0][2] or ends[-1][2]
    try:
        numbers: list[Any] = [end[1] and (float if unit == "%" else int)(end[1]) for end in ends]
    except ValueError:
        raise ValueError(
            f"[{bounds}] takes whole numbers of {counted}, or percentages such as 50%"
        ) from None
    if len(ends) == 1:
        if unit != "shard":
            raise ValueError(
                f"[{bounds}] is one number, and a slice has two, one of which may be left out"
            )
        numbers.append(numbers[0] + 1)
    start, stop = numbers
    if unit == "%":
        if any(abs(number or 0) > 100 for number in numbers):
            raise ValueError(f"percentages go from -100 to 100, not [{bounds}]")
        start, stop = (number and round(number * total / 100) for number in numbers)
    elif unit == "shard":
        start = start and sum(lengths[:start])
        stop = stop if stop is None else sum(lengths[: stop if stop > 0 else len(lengths) + stop])
    start, stop = start or 0, total if stop is None else stop
    if abs(start) > total or abs(stop) > total:
        raise ValueError(f"the slice [{bounds}] reaches beyond its {total} {counted}")
    return start + total if start < 0 else start, stop + total if stop < 0 else stop


def cut(lengths: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    """The parts [start, stop) of files that hold `lengths` examples: list of (file number, skip,
    take), none empty."""
    parts, begin = [], 0
    for number, length in enumerate(lengths):
        skip, end = max(start - begin, 0), min(stop - begin, length)
        if skip < end:
            parts.append((number, skip, end - skip))
        begin += length
    return parts

"""Whether splits of one data set share images: what was learned from must not be measured on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from tfssl.data.sources.base import Source
from tfssl.errors import UserError


def check(sources: Mapping[str, Source]) -> None:
    """Raise UserError where two of {part: source} share images."""
    remedy = "take parts such as train[:90%] and train[90%:] where there is no other split"
    for one, other in itertools.combinations(sources, 2):
        if overlap(sources[one], sources[other]):
            splits = sources[one].split, sources[other].split
            what = (
                f"are both {splits[0]}"
                if splits[0] == splits[1]
                else f"share images ({splits[0]}, {splits[1]})"
            )
            raise UserError(
                f"--{one}_split and --{other}_split {what}: what was seen before would be "
                f"measured; {remedy}"
            )


def overlap(one: Source, other: Source) -> bool:
    """Whether two sources of one data set have images in common."""
    if one.split == other.split:
        return True
    if not one.splits_overlap and one.ranges and other.ranges:
        pairs = itertools.product(one.ranges, other.ranges)
        return any(a == b and max(i, k) < min(j, m) for (a, i, j), (b, k, m) in pairs)
    few, many = sorted((one, other), key=lambda source: source.num_examples)
    names = {few.name(i) for i in range(few.num_examples)}
    return any(many.name(i) in names for i in range(many.num_examples))

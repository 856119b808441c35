"""Whether splits of one data set share images: what was learned from must not be measured on."""

import itertools

from tfssl.data.source import open_source
from tfssl.data.splits import resolve
from tfssl.errors import UserError


def check(sources, data_dir=None):
    """Raise UserError where two of {part: source} share images; other arguments as for `overlap`."""
    remedy = "take parts such as train[:90%] and train[90%:] where there is no other split"
    for one, other in itertools.combinations(sources, 2):
        if overlap(sources[one], sources[other], data_dir):
            splits = sources[one].split, sources[other].split
            what = f"are both {splits[0]}" if splits[0] == splits[1] else f"share images ({splits[0]}, {splits[1]})"
            raise UserError(
                f"--{one}_split and --{other}_split {what}: what was seen before would be measured; {remedy}"
            )


def overlap(one, other, data_dir=None):
    """Whether two sources of one data set have images in common.

    Args:
      one, other: `Source`s of the same spec.
      data_dir: where they were opened from; see `open_source`.
    """
    names = [{part.strip().split("[")[0] for part in source.split.split("+")} for source in (one, other)]
    if "all" in names[0] | names[1] or one.split == other.split:
        return True
    if not names[0] & names[1] and not one.splits_overlap:
        return False
    if one.random_access and not one.splits_overlap:  # such have no files of records: a split is a range of numbers
        sizes = {name: [open_source(one.spec, name, data_dir).num_examples] for name in names[0] | names[1]}
        parts = itertools.product(*(resolve(source.split, sizes, source.spec) for source in (one, other)))
        return any(a == b and max(i, k) < min(j, m) for (a, i, j), (b, k, m) in parts)
    few, many = sorted((one, other), key=lambda source: source.num_examples)
    few = {few.name(i) for i in range(few.num_examples)}
    return any(many.name(i) in few for i in range(many.num_examples))

"""The one split grammar: TFDS's, for every kind of source.

`train`, `train[:90%]`, `train[100:200]`, `train[-10%:]`, `train[3shard:]`, `train+test`, `all`; see
https://www.tensorflow.org/datasets/splits. Percentages are rounded to the nearest example, as TFDS does. Shards are the
record files of a split: the 2019 study's own validation split of ImageNet, its last 40 of 1024 training shards, is
`train[984shard:]`, and what it trains on `train[:984shard]`.
"""

import re

from tfssl.errors import UserError


def resolve(split, sizes, where, shards=False):
    """Absolute ranges of a split.

    Args:
      split: str in TFDS's grammar.
      sizes: dict of split name -> list of examples per file (a single number where files do not matter).
      where: what is being split, for the message ("folder:photos").
      shards: whether the numbers of `sizes` are those of record files, so that the unit `shard` means something.

    Returns:
      list of (name, start, stop) with 0 <= start < stop <= sum(sizes[name]), in the order that was asked for.

    Raises:
      UserError: for an unknown name, for what TFDS cannot parse, for a bound beyond the split, for shards of what has none, and
        for no examples.
    """
    totals = {name: sum(lengths) for name, lengths in sizes.items()}
    exist = ", ".join(f"{name} ({total} examples)" for name, total in totals.items())
    if split in totals:  # also a name that the grammar has no place for, such as "my.data"
        ranges = [(split, 0, totals[split])]
    else:
        for part in str(split).split("+"):
            name = part.strip().split("[")[0]
            if name not in totals and name != "all":
                hint = (
                    f": hold a part of it out with a slice, such as '{exist.split()[0]}[90%:]'"
                    if len(totals) == 1
                    else ""
                )
                raise UserError(f"{where} has no split {name!r}; it has {exist}{hint}")
        if not shards and re.search(r"\[[^]]*shard", str(split)):
            raise UserError(
                f"cannot use the split {split!r} of {where}: shards are the record files of tfrecord: and tfds: data; "
                "write a percentage or numbers of images, such as train[:90%] or train[100:200]"
            )
        for name, bounds in re.findall(r"(\w+)\[([^]]*)\]", str(split)):
            asked = max(map(int, re.findall(r"(?<![.\d])(\d+)shard", bounds)), default=0)
            if name in sizes and asked > len(sizes[name]):  # TFDS would take all there is
                raise UserError(f"the split {split!r} of {where}: {name} has {len(sizes[name])} shards, not {asked}")
        ranges = _absolute(split, sizes, where)
    ranges = [(name, start, stop) for name, start, stop in ranges if start < stop]
    if not ranges:
        raise UserError(f"the split {split!r} of {where} is empty; it has {exist}")
    return ranges


def _absolute(split, sizes, where):
    import tensorflow_datasets as tfds  # slow to import, and a plain split name does without

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=0)
        for name, lengths in sizes.items()
    }
    try:
        instructions = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[-1].split(" See format")[0]
        raise UserError(
            f"cannot use the split {split!r} of {where}: {reason.rstrip('.')}; "
            "write for example train, train[:90%], train[100:200] or train+test"
        ) from error
    totals = {name: sum(lengths) for name, lengths in sizes.items()}
    return [(i.splitname, i.from_ or 0, totals[i.splitname] if i.to is None else i.to) for i in instructions]


def cut(lengths, start, stop):
    """The parts [start, stop) of files that hold `lengths` examples: list of (file number, skip, take), none empty."""
    parts, begin = [], 0
    for number, length in enumerate(lengths):
        skip, end = max(start - begin, 0), min(stop - begin, length)
        if skip < end:
            parts.append((number, skip, end - skip))
        begin += length
    return parts

"""The one split grammar: TFDS's, for every kind of source.

`train`, `train[:90%]`, `train[100:200]`, `train[-10%:]`, `train[3shard:]`, `train+test`, `all`; see
https://www.tensorflow.org/datasets/splits. Percentages are rounded to the nearest example, as TFDS does. Shards are the
record files of a split: the 2019 study's own validation split of ImageNet, its last 40 of 1024 training shards, is
`train[984shard:]`, and what it trains on `train[:984shard]`.

A name that there is not stands for the one split that is written so in another case, or plays the same role: `train` for Training, and
`validation` for valid (see `tfssl.data.roles`).
"""

import re

from tfssl.data import roles
from tfssl.errors import UserError


def resolve(split, sizes, where, shards=False, beside=""):
    """Absolute ranges of a split.

    Args:
      split: str in TFDS's grammar.
      sizes: dict of split name -> list of examples per file (a single number where files do not matter).
      where: what is being split, for the message ("folder:photos").
      shards: whether the numbers of `sizes` are those of record files, so that the unit `shard` means something.
      beside: what else there is, for the message of a name that is unknown.

    Returns:
      list of (name, start, stop) with 0 <= start < stop <= sum(sizes[name]), in the order that was asked for.

    Raises:
      UserError: for a name that is unknown, or could be one of several; for what TFDS cannot parse; for a bound beyond the split; for
        shards of what has none; and for no examples.
    """
    totals = {name: sum(lengths) for name, lengths in sizes.items()}
    exist = _count(totals)
    if split in totals:  # also a name that the grammar has no place for, such as "my.data"
        ranges = [(split, 0, totals[split])]
    else:
        parts = []
        for part in str(split).split("+"):
            name, bracket, bounds = part.strip().partition("[")
            parts.append((_find(name, totals, where, beside), bracket + bounds))
        if not shards and any("shard" in bounds for _, bounds in parts):
            raise UserError(
                f"cannot use the split {split!r} of {where}: shards are the record files of tfrecord: and tfds: data; "
                "write a percentage or numbers of images, such as train[:90%] or train[100:200]"
            )
        for name, bounds in parts:
            asked = max(map(int, re.findall(r"(?<![.\d])(\d+)shard", bounds)), default=0)
            if name in sizes and asked > len(sizes[name]):  # TFDS would take all there is
                raise UserError(f"the split {split!r} of {where}: {name} has {len(sizes[name])} shards, not {asked}")
        plain = all(name in totals and not bounds for name, bounds in parts)
        ranges = [(name, 0, totals[name]) for name, _ in parts] if plain else _absolute(parts, sizes, split, where)
    ranges = [(name, start, stop) for name, start, stop in ranges if start < stop]
    if not ranges:
        raise UserError(f"the split {split!r} of {where} is empty; it has {exist}")
    return ranges


def _count(totals):
    return ", ".join(f"{name} ({total} examples)" for name, total in totals.items())


def _find(name, totals, where, beside):
    """The split that a name means."""
    if name in totals or name == "all":
        return name
    role, rest = (None, ()) if "]" in name else roles.read(name)
    same_role = [known for known in totals if role and not rest and roles.read(known.rpartition("/")[2])[0] == role]
    for likely in (
        [known for known in totals if known.lower() == name.lower()],
        same_role,
    ):
        if len(likely) == 1:
            return likely[0]
        if likely:
            either = " or ".join(_count({known: totals[known]}) for known in likely)
            raise UserError(
                f"the split {name!r} of {where} could be {either}: name one, or join them: {'+'.join(likely)}"
            )
    hint = ""
    if len(totals) == 1 and roles.read(*totals)[0] not in roles.MEASURED:
        hint = f": hold a part of it out with a slice, such as '{next(iter(totals))}[90%:]'"
    elif all(known.startswith("fold") for known in totals):
        hint = f": join the folds to train on, such as {'+'.join(list(totals)[1:])}"
    raise UserError(f"{where} has no split {name!r}; it has {_count(totals)}{hint}{beside}")


def _absolute(parts, sizes, split, where):
    """The ranges of (name, "" or "[bounds]") by TFDS, which knows names of letters and digits only."""
    import tensorflow_datasets as tfds  # slow to import, and a plain split name does without

    known = {name if re.fullmatch(r"[A-Za-z]\w*", name) else f"split{i}": name for i, name in enumerate(sizes)}
    alias = {name: plain for plain, name in known.items()}
    infos = {
        alias[name]: tfds.core.SplitInfo(name=alias[name], shard_lengths=list(lengths), num_bytes=0)
        for name, lengths in sizes.items()
    }
    try:
        spec = "+".join(alias.get(name, name) + bounds for name, bounds in parts)
        instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[-1].split(" See format")[0]
        raise UserError(
            f"cannot use the split {split!r} of {where}: {reason.rstrip('.')}; "
            "write for example train, train[:90%], train[100:200] or train+test"
        ) from error
    totals = {name: sum(lengths) for name, lengths in sizes.items()}
    absolute = [(known[i.splitname], i.from_ or 0, i.to) for i in instructions]
    return [(name, start, totals[name] if stop is None else stop) for name, start, stop in absolute]


def cut(lengths, start, stop):
    """The parts [start, stop) of files that hold `lengths` examples: list of (file number, skip, take), none empty."""
    parts, begin = [], 0
    for number, length in enumerate(lengths):
        skip, end = max(start - begin, 0), min(stop - begin, length)
        if skip < end:
            parts.append((number, skip, end - skip))
        begin += length
    return parts

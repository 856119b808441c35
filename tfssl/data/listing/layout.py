"""Which folders are splits, and which are classes: decided from the names of the files alone.

Splits are the folders of the highest level on which a name tells that it is one (`roles`): Training
and Testing, images/train and images/val, seg_train. A folder with another name beside them is
passed over, as are pictures of annotations (masks/ beside images/). A name counts as a split's
where it tells nothing but its role (train.v1), where it differs from a neighbor's in the role alone
(flowers_train, flowers_test), or where such a split lies beside it.

If all that count tell one role, and other folders lie beside them, the structure decides whether
they are classes (a railway's `train`). They are if they hold nothing but images; if all there hold
mostly images; or if all there hold mostly folders, and the others are two or more, or the only
other one holds the same single folder.

Splits may lie within each class (cats/train, dogs/train), or within a split (train/train,
train/val). A lone folder that is no class elsewhere is stepped through, at the top and in each
split: train/train/cat, train/images/cat. The classes of a split are the folders that it holds then.
Images beside the class folders of a split take its labels away, unless they are few (one in
eleven): those are left out.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tfssl.data.listing import roles

_FEW = 10  # images in class folders for each that lies beside them, and is left out


@dataclasses.dataclass
class Layout:
    """What `arrange` found.

    Attributes:
      splits: dict of split -> list of `Part`s.
      passed: dict of folder that is no split, or of annotations -> how many images it holds.
      beside_splits: images that lie beside split folders.
      stray: images that lie beside class folders, and belong to no split.
      loose: dict of split -> images beside its class folders that took its labels away.
      taken: folders with a split's name that are classes.
    """

    splits: dict[str, list[Part]] = dataclasses.field(default_factory=dict)
    passed: dict[str, int] = dataclasses.field(default_factory=dict)
    beside_splits: list[str] = dataclasses.field(default_factory=list)
    stray: list[str] = dataclasses.field(default_factory=list)
    loose: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    taken: list[str] = dataclasses.field(default_factory=list)


class Part(NamedTuple):
    """Images of one folder, which are a part of a split: `names` are paths within it.

    folder + name is the path from the root, key + name the path within the split (which the order
    of the images depends on), and head + name begins with the class, if `labeled`.
    """

    folder: str
    key: str
    head: str
    names: list[str]
    labeled: bool = True

    def classes(self) -> list[str | None]:
        """The class of each image, None without: list."""
        return [
            (self.head + name).partition("/")[0] if self.labeled else None for name in self.names
        ]


def arrange(images: list[str]) -> Layout:
    """The `Layout` of images: paths from their root, separated by "/"."""
    layout = _find(images, "")
    if not layout.splits:
        layout.splits = {"train": [Part("", "", "", images)]}
        top = _step(layout.splits["train"][0], (), layout)
        layout.splits["train"] = [
            top._replace(key="")
        ]  # the order does not depend on folders around everything
    _find_classes(layout)
    return layout


def _level(names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({folder: paths within it}, images that lie here)."""
    folders: dict[str, list[str]] = {}
    here = []
    for name in names:
        top, slash, rest = name.partition("/")
        if slash:
            folders.setdefault(top, []).append(rest)
        else:
            here.append(name)
    return folders, here


def _annotations(folders: Mapping[str, list[str]]) -> list[str]:
    """The names of folders of annotations beside one folder of pictures."""
    others = [name for name in folders if not roles.are_pictures(name)]
    return (
        others
        if len(others) == len(folders) - 1 and all(map(roles.are_annotations, others))
        else []
    )


def _pass_over(
    layout: Layout, top: str, folders: Mapping[str, list[str]], names: Iterable[str]
) -> None:
    layout.passed.update({f"{top}{name}/": len(folders[name]) for name in names})


def _find(names: list[str], top: str) -> Layout:
    """The `Layout` of the splits below a folder, without classes; without splits where there are
    none."""
    folders, here = _level(names)
    inner = {name: _find(below, f"{top}{name}/") for name, below in folders.items()}
    deep = [
        name
        for name, found in inner.items()
        if len({roles.read(split)[0] for split in found.splits}) > 1
    ]
    aside = _annotations(folders)
    plain = [name for name in folders if name not in aside]
    layout = Layout()
    told = _splits({name: folders[name] for name in plain}, deep, layout)
    if told:
        _collect(folders, inner, deep, told, top, layout)
        layout.beside_splits += [top + image for image in here]
    elif (
        len(plain) > 1
        and not here
        and all(_holds_only_splits(folders[name], inner[name]) for name in plain)
    ):
        _merge(layout, {name: inner[name] for name in plain})
    elif not here and (len(plain) == 1 or len(deep) == 1):
        (way,) = plain if len(plain) == 1 else deep
        if inner[way].splits:
            layout = inner[way]
            _pass_over(layout, top, folders, [name for name in folders if name != way])
        else:
            layout.taken = inner[way].taken
    return layout


def _splits(folders: Mapping[str, list[str]], deep: list[str], layout: Layout) -> dict[str, str]:
    """{folder: role} of those that are splits; `deep` hold several themselves."""
    told = {name: roles.read(name) for name in folders if not roles.are_annotations(name)}
    beside: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for role, rest in told.values():
        beside[rest] |= {role} if role and roles.is_primary(role) else set()
    sure = {
        name: role
        for name, (role, rest) in told.items()
        if role and (not rest or len(beside[rest]) > 1)
    }
    primary = {role for role in sure.values() if roles.is_primary(role)}
    if not primary or len(primary) == 1 and min(primary).startswith("fold"):
        return {}
    if len(primary) == 1:
        mine = [name for name, role in sure.items() if role in primary]
        likely = [
            n
            for n, (role, _) in told.items()
            if n not in sure and roles.is_primary(role) and role not in primary
        ]
        others = [n for n in told if n not in sure and n not in likely and n not in deep]
        if (
            len(others) > len(likely)
            and not set(mine) & set(deep)
            and _are_classes(folders, mine, others)
        ):
            layout.taken = mine
            return {}
    return {name: role for name, (role, _) in told.items() if role}


def _are_classes(folders: Mapping[str, list[str]], mine: list[str], others: list[str]) -> bool:
    """Whether the folders `mine`, which have a split's name, are classes like the `others`."""
    below = {
        n: {path.partition("/")[0] for path in folders[n] if "/" in path} for n in mine + others
    }
    images = {
        n: 2 * sum("/" not in path for path in folders[n]) >= len(folders[n]) for n in mine + others
    }
    if not any(below[n] for n in mine) or all(images.values()):
        return True
    if any(images.values()):
        return False
    first, *rest = below.values()
    return len(others) > 1 or (len(first) == 1 and all(one == first for one in rest))


def _collect(
    folders: Mapping[str, list[str]],
    inner: Mapping[str, Layout],
    deep: list[str],
    told: Mapping[str, str],
    top: str,
    layout: Layout,
) -> None:
    """Make splits of the folders `told`, or of those within them."""
    found = collections.defaultdict(list)
    for name, below in folders.items():
        present = {role for other, role in told.items() if other != name}
        if name in deep and (
            name in told or not present & {roles.read(split)[0] for split in inner[name].splits}
        ):
            layout.passed.update(inner[name].passed)
            layout.beside_splits += inner[name].beside_splits
            for split, parts in inner[name].splits.items():
                found[split].append((f"{name}/{split}", parts))
        elif name in told:
            found[name].append((name, [Part(f"{top}{name}/", "", "", below)]))
        else:
            _pass_over(layout, top, folders, [name])
    for split, places in found.items():
        layout.splits.update({split: places[0][1]} if len(places) == 1 else dict(places))


def _holds_only_splits(names: list[str], layout: Layout) -> bool:
    """Whether a folder holds nothing but folders that are splits, and some of them."""
    parts = [part for split in layout.splits.values() for part in split]
    return (
        bool(parts)
        and len(parts) == len(_level(names)[0])
        and len(names) == sum(len(part.names) for part in parts)
    )


def _merge(layout: Layout, classes: Mapping[str, Layout]) -> None:
    """The splits of all classes: cats/train and dogs/train are the parts of train. None where they
    have but one, or are folds."""
    found: dict[str, list[Part]] = collections.defaultdict(list)
    name_of: dict[str | None, str] = {}
    for name, of_class in classes.items():
        for split, parts in of_class.splits.items():
            split = name_of.setdefault(roles.read(split)[0], split)
            found[split] += [part._replace(key=f"{name}/", head=f"{name}/") for part in parts]
    if len(found) > 1:
        layout.splits = dict(found)


def _step(part: Part, classes: Iterable[str], layout: Layout) -> Part:
    """The part after stepping through lone folders that are none of `classes`."""
    while not part.head:
        folders, here = _level(part.names)
        aside = _annotations(folders)
        lone = [name for name in folders if name not in aside]
        if here or len(lone) != 1 or lone[0] in classes:
            break
        _pass_over(layout, part.folder, folders, aside)
        part = Part(f"{part.folder}{lone[0]}/", f"{part.key}{lone[0]}/", "", folders[lone[0]])
    return part


def _find_classes(layout: Layout) -> None:
    """Step into lone folders, leave few loose images out, and say which parts have labels."""

    def classes(split: str) -> tuple[set[str], int, int]:
        """(folders, images beside them), of all parts of a split."""
        names = [part.head + name for part in layout.splits[split] for name in part.names]
        folders, here = _level(names)
        return set(folders) - set(_annotations(folders)), len(here), len(names)

    def several(split: str) -> set[str]:
        folders, loose, images = classes(split)
        few = (_FEW + 1) * loose <= images
        return (
            folders if len(folders) > 1 and few and roles.read(split)[0] != "unlabeled" else set()
        )

    known = set().union(*map(several, layout.splits))
    for split, parts in layout.splits.items():
        layout.splits[split] = [_step(part, known, layout) for part in parts]
    known = set().union(
        *(
            several(split)
            for split in layout.splits
            if roles.read(split)[0] not in ("extra", "predict")
        )
    )
    for split, parts in layout.splits.items():
        folders, loose, _ = classes(split)
        labeled = bool(folders) and folders <= known and (several(split) or not loose)
        if loose and several(split):
            layout.stray += [
                part.folder + name
                for part in parts
                for name in part.names
                if "/" not in part.head + name
            ]
            parts = [
                part._replace(names=[n for n in part.names if "/" in part.head + n])
                for part in parts
            ]
        elif loose and folders:
            layout.loose[split] = [
                part.folder + name for part in parts for name in part.names if "/" not in name
            ]
        layout.splits[split] = [part._replace(labeled=bool(labeled)) for part in parts]

"""Training, validation and test images of a fine-tuning run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

from tfssl import data
from tfssl.classifiers.labels import choose
from tfssl.config import schema
from tfssl.data import overlap
from tfssl.data.listing import checks
from tfssl.data.sources import subset
from tfssl.data.sources.base import Source
from tfssl.downstream import partition
from tfssl.downstream.features import extract as features
from tfssl.errors import UserError


@dataclasses.dataclass
class LabeledData:
    """The sources of a run, and the number of labels of `train` in use.

    `validation` and `test` may be None. Classes
    are those of the first source that has any."""

    train: Source
    validation: Optional[Source]
    test: Optional[Source]
    labels: int

    def __post_init__(self) -> None:
        labeled = [
            source
            for source in (self.train, self.validation, self.test)
            if source and source.num_classes
        ]
        self.num_classes = labeled[0].num_classes if labeled else None
        self.class_names = labeled[0].class_names if labeled else None


def open_images(
    images: schema.Data,
    labels: schema.Labels,
    distillation: schema.Distillation,
    seed: int,
    pixels: Optional[Mapping[str, Any]] = None,
) -> LabeledData:
    """The images of a run.

    Args:
      images, labels, distillation: sections of the configuration.
      pixels: of the encoder's images, `Module.pixels`; a range of values in `images` goes first.
      seed: of the choice of the labeled images.

    Raises:
      UserError: images that need labels have none, or splits overlap.
    """
    parts = {"train": images.train_split, "val": images.val_split, "test": labels.test_split}
    where = {**(pixels or {}), **{k: v for k, v in images.where().items() if v != ""}}
    sources = {
        part: data.open_source(images.dataset, split, **where)
        for part, split in parts.items()
        if split
    }
    overlap.check(sources)
    for part in ("val", "test"):
        missing = checks.unlabelled(sources[part]) if part in sources else None
        if missing:
            raise UserError(missing)
        if part in sources:
            sources[part].check_readable()  # unreadable images are rejected before training
    source = sources["train"]
    others = sources.get("val"), sources.get("test")
    if checks.unlabelled(source):
        given = [
            n
            for n, default in vars(schema.Labels()).items()
            if n != "test_split" and getattr(labels, n) != default
        ]
        if not distillation.teacher or distillation.distill_weight < 1 or given:
            because = "--distill_weight below 1" if distillation.teacher else "fine-tuning"
            because = f"--{given[0]}" if given else because
            raise UserError(
                f"--dataset={source.spec} ({source.split}) has no labels, and {because} needs "
                f"them: {source.unlabelled_because}, or "
                "learn from a classifier alone (--teacher, --distill_weight=1)"
            )
        return LabeledData(source, *others, labels=0)
    # records have to be read for their labels
    if source.random_access and not distillation.teacher:
        known = features.read_labels(source)["labels"]
        partition.check_classes(known[known >= 0], source)
    chosen = choose(source, labels.train_labels, labels.train_list, seed)
    if chosen is None:
        return LabeledData(source, *others, labels=source.num_examples)
    some = (
        subset.LabelledAt(source, chosen) if distillation.teacher else subset.Subset(source, chosen)
    )
    return LabeledData(some, *others, labels=len(chosen))

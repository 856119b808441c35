"""What tfssl itself writes is no data, though it may lie among images: it is known by its name and
by what lies beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from tfssl.storage import files

# in the workdir of an evaluation, and a folder of drawn boxes; a training's has flags.flags
MARK = ".tfssl"
_TEXT = (
    "tfssl writes into this folder. Where the folder lies among images, what tfssl wrote is passed "
    "over.\n"
)
_PICTURES = re.compile(r"results\.png|results_curve\.png|.+_neighbors\.png|\d{6}_.*_boxes\.jpg")
_FOLDERS = {"checkpoints", "classifier", "features", "heads", "module", "untrained"}
_OF_MODULES = {"assets", "assets.extra", "variables"}


def mark(workdir: str) -> None:
    """Mark a folder as one that tfssl writes into."""
    path = os.path.join(workdir, MARK)
    if MARK not in files.listdir(workdir):
        files.write_file(path, _TEXT)


def own(names: Iterable[str]) -> set[str]:
    """Of all the names in one folder, those of tfssl's own pictures, and of folders that hold
    nothing but what it wrote: a set."""
    names = set(names)
    found = names & {"dry_run.png"}
    if "saved_model.pb" in names:
        found |= names & _OF_MODULES
    if names & {MARK, "flags.flags"} or names >= {"results.json", "results.png"}:
        found |= names & _FOLDERS | {name for name in names if _PICTURES.fullmatch(name)}
    return found

"""What a run is trained on, written down once: WORKDIR/provenance.json, by which a later start
knows its data again.

{"format": 1, "starts": [{"step": 0, "date": ..., "dataset": ..., "split": ..., "data": ...,
"machine": ...}]}

"data" is the identity of the training images (`tfssl.data.sources.identity`), "machine" what the
bits of the results depend on beside them, "modules" {flag: identity of the module that it names},
of those that are computed with. There is one entry, and another for each time that changed data
were accepted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypedDict

import tensorflow as tf

from tfssl.data.ops.image import DECODING
from tfssl.data.sources import identity
from tfssl.data.sources.base import Source
from tfssl.errors import UserError, one_line
from tfssl.hub import facts, folders, value_range
from tfssl.runtime import processor
from tfssl.storage import files

NAME = "provenance.json"


class Entry(TypedDict):
    """A start of a run on data of its own: an entry of the file."""

    step: int
    date: str
    dataset: str
    split: str
    data: identity.Identity
    machine: Mapping[str, Any]
    modules: Mapping[str, str]


class Provenance:
    """The data of one start of a run, and what is on record of those before.

    Args:
      workdir: of the run.
      source: the training images.
      modules: {flag: handle of a module that training computes with}.

    Attributes:
      data: the identity of the training images, as of now.
      machine: see `machine`.
      modules: {flag: the module's identity, as of now}.
      recorded: the newest entry of the file; None where there is none.
    """

    def __init__(
        self, workdir: str, source: Source, modules: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.path = os.path.join(workdir, NAME)
        self.dataset, self.split = source.spec, source.split
        self.data, self.machine = identity.of(source, sample=True), machine()
        self.modules = {
            flag: facts.identity(folders.resolve(value_range.parted(handle)[0]))
            for flag, handle in modules.items()
        }
        self._starts = read(self.path)
        self.recorded = self._starts[-1] if self._starts else None

    def check(
        self,
        accept: bool = False,
        deterministic: bool = False,
        say: Callable[[str], object] = print,
    ) -> None:
        """Refuse other data than the run's own, by name.

        Args:
          accept: go on with them; what that means is said.
          deterministic: the run is to have the same bits everywhere: where this machine may give
            others, that is said.

        Raises:
          UserError: the data, or a module, are others.
        """
        if not self.recorded:
            return
        then, now = self.recorded, f"{self.dataset} ({self.split})"
        changed = identity.differences(then["data"], self.data)
        if changed and not accept:
            raise UserError(
                f"{os.path.dirname(self.path)!r} holds a run on other data than {now}: "
                f"{'; '.join(changed)}. Give it the data that it "
                f"began with ({then['dataset']}), use another --workdir, or go on with these by "
                "--accept_changed_data"
            )
        if changed:
            say(
                f"WARNING: the data are not those that the run began with: {'; '.join(changed)}; "
                f"accepted, and noted in {self.path}"
            )
            for number, before, after in identity.renumbered(then["data"], self.data):
                say(f"WARNING: label {number} was {before} and is {after}")
        for flag in self._other_modules():
            text = f"the module behind --{flag} is not the one that the run began with"
            if not accept:
                raise UserError(
                    f"{os.path.dirname(self.path)!r}: {text}: put that one back, use another "
                    "--workdir, or go on with this one by --accept_changed_data"
                )
            say(f"WARNING: {text}; accepted, and noted in {self.path}")
        if then["machine"].get("decoding") != self.machine["decoding"]:
            say(
                "images are decoded as not when the run began: those with an EXIF orientation are "
                "turned upright now"
            )
        if not changed and identity.same_place_other_times(then["data"], self.data):
            say(
                f"{now}: files bear other times than when the run began (written again, or "
                "touched); their names and sizes are the same, "
                f"and the contents of those that were compared ({identity.SAMPLE} at most)"
            )
        others = differences(then["machine"], self.machine)
        if deterministic and others:
            say(
                "--deterministic: the bits may differ from those of one machine's run, for here: "
                f"{'; '.join(others)}"
            )

    def write(self, step: int) -> None:
        """Note the data down, unless they are already: of a new run, of one from before there was
        such a file, and of changed ones."""
        if (
            self.recorded
            and not identity.differences(self.recorded["data"], self.data)
            and not self._other_modules()
        ):
            return
        entry: Entry = {
            "step": step,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "dataset": self.dataset,
            "split": self.split,
            "data": self.data,
            "machine": self.machine,
            "modules": self.modules,
        }
        files.write_file(
            self.path, json.dumps({"format": 1, "starts": [*self._starts, entry]}, indent=1) + "\n"
        )
        self._starts, self.recorded = [*self._starts, entry], entry

    def digests(self) -> dict[str, str]:
        """What all hosts of a run have to have in common: {what: text}."""
        versions = ", ".join(f"{name} {self.machine[name]}" for name in ("tfssl", "tensorflow"))
        modules = {f"the module behind --{flag}": text for flag, text in self.modules.items()}
        return {"versions": versions, "data": identity.text(self.data), **modules}

    def _other_modules(self) -> list[str]:
        """Flags whose modules are not those on record."""
        known = self.recorded.get("modules") or {} if self.recorded else {}
        return [flag for flag, text in self.modules.items() if known.get(flag, text) != text]


def read(path: str) -> list[Entry]:
    """The entries of a file; none where there is none.

    Raises:
      UserError: it is there, and is none of ours or cannot be read.
    """
    try:
        with tf.io.gfile.GFile(path) as f:
            content = json.load(f)
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}")
        for entry in content["starts"]:
            identity.differences(entry["data"], entry["data"])
            entry["machine"], entry["dataset"]
        return content["starts"]
    except tf.errors.NotFoundError:
        return []
    except (tf.errors.OpError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): it says which data the run began with; "
            "remove it if you know that they are these"
        ) from error


def known(workdir: str) -> bool:
    """Whether a workdir says which data its run is on."""
    return tf.io.gfile.exists(os.path.join(workdir, NAME))


def machine() -> dict[str, Any]:
    """What the bits of a result depend on beside data and flags: versions, processor features,
    threads, oneDNN and accelerators."""
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    gpus = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        **identity.versions(),
        "decoding": DECODING,
        "threads": threads or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or len(here),
        "onednn": processor.onednn_is_on(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "processor": sorted(processor.features()),
        "accelerators": [details.get("device_name", "GPU") for details in gpus],
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two machines differ, in words: list of str."""
    found = []
    for name, label in (
        ("tfssl", "tfssl"),
        ("tensorflow", "TensorFlow"),
        ("threads", "threads"),
        ("onednn", "oneDNN"),
        ("onednn_max_cpu_isa", "ONEDNN_MAX_CPU_ISA"),
        ("accelerators", "accelerators"),
    ):
        if then.get(name) != now[name]:
            found.append(f"{label} {_short(now[name])}, not {_short(then.get(name))}")
    before, here = set(then.get("processor", ())), set(now["processor"])
    lost, new = sorted(before - here), sorted(here - before)
    if lost or new:
        parts = [
            f"{word} {', '.join(some[:3])}"
            for word, some in (("without", lost), ("with", new))
            if some
        ]
        found.append(f"another processor ({'; '.join(parts)})")
    return found


def _short(value: bool | int | str | list[str] | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value or "unset")

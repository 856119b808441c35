"""Where images come from, one file for each kind of source; `open_source` opens any of them by
name.

`SOURCES` knows where each class is. A constructor takes (spec, path, split), where `path` is what
stands behind the kind's colon, and the kind's own settings by keyword. docs/add_a_source.md adds
one.
"""

from __future__ import annotations

import inspect
import os
import re
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tfssl.config import signatures
from tfssl.errors import UserError
from tfssl.registry import Registry

if TYPE_CHECKING:
    from tfssl.data.sources.base import Source

SOURCES = Registry(
    "source",
    {
        "tfds": "tfssl.data.sources.records:TFDSSource",
        "folder": "tfssl.data.sources.folder:FolderSource",
        "masks": "tfssl.data.sources.masks:MaskSource",
        "boxes": "tfssl.data.sources.boxes:BoxSource",
        "normals": "tfssl.data.sources.normals:NormalSource",
        "frames": "tfssl.data.sources.frames:FrameSource",
        "voc": "tfssl.data.sources.voc:VOCSource",
        "webdataset": "tfssl.data.sources.webdataset:WebDatasetSource",
        "tfrecord": "tfssl.data.sources.records:TFRecordSource",
        "glyphs": "tfssl.data.sources.glyphs:GlyphSource",
    },
)
# mypackage.mysource:MySource, or that and :PATH, and ?SETTING=VALUE&SETTING=VALUE
_OWN = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::([^?]*))?(?:\?(.*))?", re.DOTALL)


def open_source(
    spec: str,
    split: str = "train",
    data_dir: str | None = None,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    label_offset: int | None = None,
    download: bool | None = None,
    image_size: int | None = None,
    shuffle_buffer: int | None = None,
    skip_damaged_shards: bool | None = None,
    channels: int = 3,
    value_range: str = "",
    **own: Any,
) -> Source:
    """Opens one split of a data set.

    Each kind of source takes those settings that it has; None, or none given, is its own default.

    Args:
      spec: one of
        - "folder:PATH": images by split and class, by class, or unlabeled; or an archive of them
          (.tar, .tgz, .zip);
        - "masks:PATH": images with a class for each pixel (tfssl/data/sources/masks.py);
        - "boxes:PATH": images with objects in boxes, in Pascal VOC's layout
          (tfssl/data/sources/boxes.py);
        - "normals:PATH": images with surface normals, or depth (tfssl/data/sources/normals.py);
        - "frames:PATH": sequences, a folder of frames for each (tfssl/data/sources/frames.py);
        - "tfrecord:GLOB": files of tf.train.Example, or their folder; the split is in their name
          (train-00000-of-01024);
        - "webdataset:GLOB": tar shards of images with labels, or their folder
          (tfssl/data/sources/webdataset.py);
        - "tfds:NAME[/CONFIG]": a data set that tensorflow-datasets has prepared;
        - "voc:PATH": Pascal VOC's layout, such as VOCdevkit/VOC2007: several classes in an image
          (see Source.targets);
        - "glyphs" or "glyphs:N": letters over photographs, rendered on first use: N (6,000) to
          train on, 2,000 to test;
        - "mypackage.mysource:MySource" or "mypackage.mysource:MySource:PATH": a class of your own
          (docs/add_a_source.md); its settings may follow: "...:PATH?SETTING=VALUE&SETTING=VALUE".
      split: TFDS's grammar, for every kind: train, train[:90%], train[100:200], train+test.
      data_dir: where TFDS's data are (its own default if None). For archives and glyphs, the folder
        to cache them in, by default TFSSL_CACHE of the environment or ~/.cache/tfssl.
      image_key, label_key: tfrecord's features: the encoded image, and the label (int64), which may
        be absent.
      label_offset: tfrecord's smallest label, subtracted from all: 1 for ImageNet, whose records
        count from 1.
      download: tfds may download and prepare what is missing.
      image_size: side of a glyph image, in pixels.
      shuffle_buffer: how many undecoded records tfds and tfrecord hold to shuffle; folder and
        glyphs shuffle all.
      skip_damaged_shards: tfds and tfrecord: a file that ends early, or is damaged from some record
        on, does not end a pass. In training its readable records take the places of the others, and
        whatever else is read keeps its number; evaluation leaves them out.
      channels: of the images; 3: RGB.
      value_range: "": 8 bits where there are 3 channels; "full", or "LOW,HIGH", for images in full
        depth: see `tfssl.data.ops.pixels`.
      **own: settings of a class of your own.

    Raises:
      UserError: if there is no such thing, or setting, in one line that says what was expected.
    """
    kind, path, query = _kind(str(spec))
    try:
        cls: Any = SOURCES.find(kind)
    except UserError as error:
        raise UserError(f"{_unknown(spec)} ({error})") from error
    takes = inspect.signature(cls).parameters
    if not path and list(takes.values())[1].default is inspect.Parameter.empty:
        raise UserError(
            _unknown(spec)
            if kind in SOURCES.names
            else f"--dataset={spec} takes a path: {spec}:PATH"
        )
    own = {**_parsed(spec, kind, query), **own}
    if not own.keys() <= takes.keys():
        raise UserError(f"source {kind!r} has no setting {', '.join(own.keys() - takes.keys())}")
    ours = {
        "data_dir": data_dir,
        "image_key": image_key,
        "label_key": label_key,
        "label_offset": label_offset,
        "download": download,
        "image_size": image_size,
        "shuffle_buffer": shuffle_buffer,
        "skip_damaged_shards": skip_damaged_shards,
    }
    settings = {name: value for name, value in ours.items() if value is not None and name in takes}
    from tfssl.data.ops.pixels import Pixels

    source: Source = cls(spec, path, split, **settings, **own)
    source.pixels = Pixels(channels, value_range)
    return source


def _kind(spec: str) -> tuple[str, str, str]:
    """(name or import path of the class, what stands behind its colon, settings behind a question
    mark) of a spec.

    Raises:
      UserError: it is neither.
    """
    name, _, path = spec.partition(":")
    if name in SOURCES.names:
        return name, path, ""
    own = _OWN.fullmatch(spec)
    if not own:
        raise UserError(_unknown(spec))
    return own[1], own[2] or "", own[3] or ""


def _parsed(spec: str, kind: str, query: str) -> dict[str, Any]:
    """{setting: value} of SETTING=VALUE&SETTING=VALUE, of the types that the constructor has.

    Raises:
      UserError: there is no such setting, or it does not take this value.
    """
    try:
        given = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(f"--dataset={spec}: give settings as ?SETTING=VALUE&...") from error
    known = signatures.read(*SOURCES.source(kind)) if given else {}
    settings: dict[str, Any] = {}
    for name, text in given:
        if name not in known or name == "split":
            others = ", ".join(other for other in known if other != "split") or "none"
            raise UserError(f"--dataset={spec}: no setting {name!r}: there are {others}")
        setting = known[name]
        try:
            items = text.split(",") if setting.many else [text]
            values = [_value(setting.kind, item) for item in items]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--dataset={spec}: {name} takes {setting.kind.__name__}, not {text!r}"
            ) from error
        settings[name] = tuple(values) if setting.many else values[0]
    return settings


def _value(kind: type[Any], text: str) -> Any:
    return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)


def _classes() -> list[Any]:
    return [SOURCES.find(name) for name in SOURCES.names]


def _unknown(spec: str) -> str:
    bare = ":" not in spec and os.path.exists(os.path.expanduser(spec))
    hint = f" (did you mean 'folder:{spec}'?)" if bare else ""
    forms = ", ".join(cls.form for cls in _classes())
    return (
        f"unknown data set {spec!r}{hint}: expected {forms}, or a class of your own, "
        "mypackage.mysource:MySource[:PATH][?SETTING=VALUE]"
    )


def require(source: Source, needs: Iterable[str], who: str) -> None:
    """Refuse a source that does not provide what somebody needs.

    Args:
      source: a `Source`.
      needs: "label", or what sources `provide`: "mask", "boxes", "normals" ...
      who: for the message: "task 'supervised'".

    Raises:
      UserError: it names what is missing, and who has it.
    """
    for need in needs:
        if need == "label":
            if not source.num_classes:
                raise UserError(
                    f"{who} needs labels, and {source.spec} ({source.split}) has none: "
                    f"{source.unlabelled_because}"
                )
        elif need == "color":
            if not source.pixels.plain:
                told = source.pixels.channels, source.pixels.value_range
                raise UserError(
                    f"{who} needs color: RGB of 8 bits, and not images by --channels={told[0]} "
                    f"--value_range={told[1]}: take another task, or leave these out"
                )
        elif need not in source.provides:
            having = [cls.form for cls in _classes() if need in cls.provides]
            raise UserError(
                f"{who} needs {need!r} of each image, and {source.spec} has none: take "
                f"{' or '.join(having) or 'a source of your own'}"
            )

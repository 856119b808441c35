"""`tfrecord:GLOB` and `tfds:NAME`: streams of TFRecord files."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfssl.data.listing import roles
from tfssl.data.listing.counts import broken, count_records
from tfssl.data.ops import formats, orientation
from tfssl.data.sources.base import StreamSource
from tfssl.data.sources.splits import Range, cut, resolve
from tfssl.errors import UserError, one_line
from tfssl.storage.files import PATTERN, errors, matching

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

SHUFFLE_BUFFER = 10_000  # undecoded records: a gigabyte of ImageNet's
_SPLITS = ("train", "val", "validation", "valid", "test", "dev", "trainval")
_THREADS = 16  # files that are looked for at once: in a bucket each is a request
_SHARD = re.compile(r"^(.*?)[-_.]?\d{5,}-of-\d{5,}")
_ENDING = re.compile(r"\.(tfrecords?|tfrec|records?)$", re.IGNORECASE)
_IMAGES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"BM",
    b"RIFF",
    *formats.MAGIC,
)  # what encoded images begin with
_OF_CLASSES = re.compile(
    r"label|class|target|categor|^y$", re.IGNORECASE
)  # what people call labels


def split_of(file: str) -> str:
    """The split that a file's name tells.

    train-00000-of-01024 -> train; cifar10-test.tfrecord-00000-of-00001 -> test (TFDS);
    flowers_train_00000-of-00005.tfrecord -> train (slim); validation.tfrecord -> validation;
    training.tfrecord -> training; test00-687.tfrec -> test (Kaggle); anything else without
    "-NNNNN-of-NNNNN" -> train.
    """
    name = os.path.basename(file)
    shard = _SHARD.match(name)
    prefix = shard[1] if shard else name
    stem = _ENDING.sub("", prefix)
    last = re.split(r"[-_.]", stem)[-1]
    if last.lower() in _SPLITS:
        return last
    if not shard:
        telling = [
            word for word in re.findall(r"[^\W\d_]+", stem) if roles.is_primary(roles.read(word)[0])
        ]
        return telling[-1] if telling and roles.read(stem)[0] else "train"
    if stem != prefix and "-" in stem:
        return stem.split("-", 1)[1]
    return stem or "train"


class TFRecordSource(StreamSource):
    """TFRecord files of tf.train.Example, each with an encoded image and perhaps a label.

    The files are opened in the order of their names. Their records are counted once (see
    counts.py). There are as many classes as the largest label of any split asks for.
    """

    form = "tfrecord:GLOB"

    def __init__(
        self,
        spec: str,
        pattern: str,
        split: str = "train",
        image_key: str = "image/encoded",
        label_key: str = "image/class/label",
        label_offset: int = 0,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        skip_damaged_shards: bool = False,
    ) -> None:
        files = _find(os.path.expanduser(pattern) if "://" not in pattern else pattern, spec)
        likely = _look_inside(files[0], image_key, label_key)
        counts = count_records(files, label_key, skip_damaged_shards)
        splits: dict[str, list[tuple[str, int]]] = {}
        for file, count in zip(files, counts):
            splits.setdefault(split_of(file), []).append((file, count["records"]))
        low, high = min(count["low"] for count in counts), max(count["high"] for count in counts)
        if high >= 0 and low < label_offset:
            raise UserError(
                f"{spec}: {label_key!r} begins at {low}, so label_offset cannot be {label_offset}"
            )
        shards, ranges = _shards(split, splits, spec)
        classes = high - label_offset + 1 if high >= 0 else None
        super().__init__(
            spec, split, shards, shuffle_buffer, classes, skip_damaged=skip_damaged_shards
        )
        self.ranges = ranges
        if high < 0:
            keys = f": give --label_key={likely[0]}" if likely else ""
            self.unlabelled_because = f"no record has one under label_key {label_key!r}{keys}"
            self.remarks += (
                [f"no label under label_key {label_key!r}{keys}, if that is one"] if likely else []
            )
        self.foreign = _is_foreign(files[0], image_key)
        self._image_key, self._label_key, self._offset = image_key, label_key, label_offset
        self.reading = {
            "image_key": image_key,
            "label_key": label_key,
            "label_offset": label_offset,
        }

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        features = {
            self._image_key: tf.io.FixedLenFeature([], tf.string),
            self._label_key: tf.io.FixedLenFeature([], tf.int64, default_value=-1),
        }
        parsed = tf.io.parse_single_example(record["serialized"], features)
        label = parsed[self._label_key]
        label = tf.where(label < 0, tf.constant(-1, tf.int64), label - self._offset)
        image = self.read(parsed[self._image_key])
        return {"image": image, "label": label, "index": record["index"]}


def _is_foreign(file: str, image_key: str) -> bool:
    """Whether the first image of a file is in a format that TensorFlow does not decode."""
    feature = {image_key: tf.io.FixedLenFeature([], tf.string, b"")}
    records = tf.data.TFRecordDataset(file).take(1)
    parsed = (tf.io.parse_single_example(record, feature) for record in records)
    return any(bool(formats.is_one(example[image_key])) for example in parsed)


def _shards(
    split: str, splits: Mapping[str, list[tuple[str, int]]], spec: str
) -> tuple[list[tuple[str, int, int]], list[Range]]:
    """[(file, skip, take)] of a split of {name: [(file, records)]}, and its ranges as of
    `splits.resolve`."""
    sizes = {name: [records for _, records in files] for name, files in splits.items()}
    ranges = resolve(split, sizes, spec, shards=True)
    parts = [(name, *part) for name, *bounds in ranges for part in cut(sizes[name], *bounds)]
    return [(splits[name][i][0], skip, take) for name, i, skip, take in parts], ranges


def _find(pattern: str, spec: str) -> list[str]:
    """The files by name; of a folder, the files that look like TFRecords. What exists is a name,
    whatever its characters; only what does not is a pattern."""
    above, name = os.path.split(pattern)
    try:
        folder = tf.io.gfile.isdir(pattern)
        if folder:
            found = matching(pattern.rstrip("/") or "/", ".*")
        elif tf.io.gfile.exists(pattern):
            found = [pattern]
        elif PATTERN.search(above) and tf.io.gfile.isdir(above):
            found = matching(above, fnmatch.translate(name))
        else:
            found = sorted(tf.io.gfile.glob(pattern))
    except errors() as error:
        raise UserError(f"{spec}: {one_line(error)}") from error
    found = [f for f in found if not os.path.basename(f).startswith(".") and not f.endswith("/")]
    if folder:
        found = [f for f in found if _SHARD.match(os.path.basename(f)) or _ENDING.search(f)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        files = [
            file for file, inner in zip(found, pool.map(tf.io.gfile.isdir, found)) if not inner
        ]
    if not files:
        raise UserError(
            f"{spec}: no TFRecord files; expected a pattern such as 'tfrecord:/data/train-*', or a "
            "folder"
        )
    return files


def _look_inside(file: str, image_key: str, label_key: str) -> list[str]:
    """The keys under which the first record of a file may have a label.

    Raises:
      UserError: it lacks the features that are asked for.
    """
    try:
        serialized = [record.numpy() for record in tf.data.TFRecordDataset(file).take(1)]
        records = [tf.train.Example.FromString(record).features.feature for record in serialized]
    except tf.errors.OpError as error:
        raise UserError(broken(file, error)) from error
    except Exception as error:  # protobuf's DecodeError, from one of its three implementations
        raise UserError(
            f"{file!r} holds something else than tf.train.Example records: {error}"
        ) from error
    if not records:
        return []
    (features,) = records
    kinds = {key: value.WhichOneof("kind") for key, value in sorted(features.items())}
    bytes_ = {
        key: features[key].bytes_list.value[:1]
        for key, kind in kinds.items()
        if kind == "bytes_list"
    }
    images = [key for key, values in bytes_.items() if values and values[0].startswith(_IMAGES)]
    numbers = [
        key
        for key, kind in kinds.items()
        if kind == "int64_list" and len(features[key].int64_list.value) == 1
    ]
    labels = [key for key in numbers if _OF_CLASSES.search(key)] or (
        numbers if len(numbers) == 1 else []
    )
    if image_key not in bytes_:
        have = ", ".join(f"{key} ({kind})" for key, kind in kinds.items()) or "none"
        remedy = f"give --image_key={images[0]}" if images else "none of them is an encoded image"
        if images and labels and label_key not in kinds:
            remedy += f" --label_key={labels[0]}"
        raise UserError(
            f"{file!r} has no encoded image under image_key {image_key!r}; its features: {have}: "
            f"{remedy}"
        )
    if label_key in kinds and label_key not in numbers:
        remedy = f"; it has {', '.join(labels)}" if labels else ""
        raise UserError(
            f"{file!r}: label_key {label_key!r} is {kinds[label_key]}, not one int64{remedy}"
        )
    return labels


class TFDSSource(StreamSource):
    """A data set that tensorflow-datasets has prepared, read from its own files."""

    form = "tfds:NAME[/CONFIG]"
    provides: tuple[str, ...] = ("boxes",)  # where it has "objects" with boxes and labels

    def __init__(
        self,
        spec: str,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        download: bool = False,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        skip_damaged_shards: bool = False,
    ) -> None:
        builder = _builder(name, data_dir, download)
        info = builder.info
        if info.file_format is None or info.file_format.value != "tfrecord":
            kind = info.file_format.value if info.file_format else "unknown"
            raise UserError(f"{spec} is stored as {kind}: prepare it with file_format='tfrecord'")
        splits = {}
        for part, of_part in info.splits.items():
            try:
                splits[part] = [
                    (i.filename, i.examples_in_shard) for i in of_part.file_instructions
                ]
            except (ValueError, AttributeError) as error:
                raise UserError(
                    f"{spec} has no record files ({error}): use folder:PATH for folders of images"
                ) from error
        shards, ranges = _shards(split, splits, spec)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for (file, _, _), exists in zip(
                shards, pool.map(tf.io.gfile.exists, [file for file, _, _ in shards])
            ):
                if not exists:
                    raise UserError(f"{spec}: {file!r} is missing: prepare the data set again")
        import tensorflow_datasets as tfds

        image, label = _features(info.features, tfds.features, spec)
        classes = info.features[label].num_classes if label else None
        lists = [] if label else _lists_of_labels(info.features, tfds.features)
        objects = [] if label else _parts_of_objects(info.features, tfds.features)
        named = (
            info.features[label] if label else info.features[lists[0]].feature if lists else None
        )
        named = info.features["objects"].feature["label"] if objects and not named else named
        names = list(named.names) if named else None
        super().__init__(spec, split, shards, shuffle_buffer, classes, names, skip_damaged_shards)
        self._lists, self.ranges = lists, ranges
        self._targets: np.ndarray | None = None
        self._list_features = tfds.decode.PartialDecoding(
            dict.fromkeys(lists, True)
        ).extract_features(info.features)
        wanted: dict[str, bool | set[str]] = {key: True for key in (image, label) if key}
        self.provides = ("boxes",) if objects else ()
        if objects:
            wanted["objects"] = set(objects)
        partial = tfds.decode.PartialDecoding(wanted, {image: tfds.decode.SkipDecoding()})
        self._image, self._label, self._decoders = image, label, partial.decoders
        self.reading = {"image": image, "label": label}
        self._features = partial.extract_features(info.features)

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = self._features.deserialize_example(record["serialized"], decoders=self._decoders)
        label = example[self._label] if self._label else -1
        found = {
            "image": example[self._image],
            "label": tf.cast(label, tf.int64),
            "index": record["index"],
        }
        if "objects" in example:
            objects, none = example["objects"], tf.zeros_like(example["objects"]["label"], tf.bool)
            found["image"] = orientation.as_stored(found["image"])
            found |= {
                "boxes": objects["bbox"],
                "classes": tf.cast(objects["label"], tf.int64),
                "difficult": objects.get("is_difficult", none),
                "crowd": objects.get("is_crowd", none),
            }
            area = tf.reduce_all(found["boxes"][:, 2:] > found["boxes"][:, :2], 1)
            of_objects = "boxes", "classes", "difficult", "crowd"
            found |= {key: tf.boolean_mask(found[key], area) for key in of_objects}
        found["image"] = self.read(found["image"])
        return found

    def targets(self) -> np.ndarray | None:
        if self._lists and self._targets is None:  # a pass over the files; images are not decoded
            targets = np.full((self.num_examples, len(self.class_names or ())), -1, np.int8)
            difficult = "labels_no_difficult" in self._lists
            for record in self.records().as_numpy_iterator():
                example = self._list_features.deserialize_example_np(record["serialized"])
                targets[record["index"], example["labels"]] = 0 if difficult else 1
                if difficult:
                    targets[record["index"], example["labels_no_difficult"]] = 1
            self._targets = targets
        return self._targets


def _builder(name: str, data_dir: str | None, download: bool) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, from its files alone: no code, no network (unless
    `download`)."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    if download:
        try:
            builder = tfds.builder(name, data_dir=data_dir)
            builder.download_and_prepare()
            return builder
        except Exception as error:  # whatever a data set's own code raises
            raise UserError(
                f"tfds:{name} cannot be prepared: {str(error).strip().splitlines()[0]}"
            ) from error
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        remedy = f"run tfds.load({name!r}, data_dir={where!r}) once, or allow the download"
        raise UserError(f"tfds:{name} is not prepared in {where!r}: {remedy}") from error


def _lists_of_labels(features: tfds.features.FeaturesDict, kinds: ModuleType) -> list[str]:
    """The keys of an image's classes where it may show several: "labels", and those that are not
    difficult (VOC)."""
    keys = [key for key in ("labels", "labels_no_difficult") if key in features]
    keys = [
        key for key in keys if isinstance(getattr(features[key], "feature", None), kinds.ClassLabel)
    ]
    return keys if "labels" in keys else []


def _parts_of_objects(features: tfds.features.FeaturesDict, kinds: ModuleType) -> list[str]:
    """The keys of "objects" where they are boxes with a class (VOC, COCO), those that tell of
    difficult ones among them."""
    parts = getattr(features["objects"], "feature", None) if "objects" in features else None
    if not isinstance(parts, kinds.FeaturesDict) or "bbox" not in parts or "label" not in parts:
        return []
    if not isinstance(parts["bbox"], kinds.BBoxFeature) or not isinstance(
        parts["label"], kinds.ClassLabel
    ):
        return []
    return [key for key in ("bbox", "label", "is_difficult", "is_crowd") if key in parts]


def _features(
    features: tfds.features.FeaturesDict, kinds: ModuleType, spec: str
) -> tuple[str, str | None]:
    """(key of the image, key of the label or None): "image" and "label", or the only ones of their
    kind."""

    def only(kind: type[tfds.features.FeatureConnector], preferred: str) -> str | None:
        of_kind = [key for key, feature in features.items() if isinstance(feature, kind)]
        return preferred if preferred in of_kind else of_kind[0] if len(of_kind) == 1 else None

    image = only(kinds.Image, "image")
    if image is None or tf.as_dtype(features[image].dtype) != tf.uint8:
        have = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise UserError(
            f"{spec} has no uint8 image under 'image', nor one elsewhere; its features: {have}"
        )
    return image, only(kinds.ClassLabel, "label")

import errno
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfssl
from tfssl.data.listing.checks import unlabelled
from tfssl.data.sources.records import split_of
from tfssl.errors import UserError
from tfssl.testing import check_source

IMAGENET = {
    "train-00000-of-00002": [1, 2, 3],
    "train-00001-of-00002": [4, 5],
    "validation-00000-of-00001": [3, 1],
}


def examples(source, **arguments):
    data = source.records(**arguments).map(source.fetch)
    return [(int(e["index"]), int(e["label"]), e["image"]) for e in data.as_numpy_iterator()]


def test_imagenet(write_records, encode):
    root = write_records(IMAGENET)
    source = tfssl.open_source(f"tfrecord:{root}/*", label_offset=1)
    assert (source.num_examples, source.num_classes, source.class_names) == (5, 5, None)
    assert examples(source) == [(i, i, encode(i)) for i in range(5)]
    assert [source.name(i) for i in (0, 4)] == [
        f"record 0 of {root}/train-00000-of-00002",
        f"record 1 of {root}/train-00001-of-00002",
    ]
    validation = tfssl.open_source(f"tfrecord:{root}", "validation", label_offset=1)
    assert examples(validation) == [(0, 2, encode(5)), (1, 0, encode(6))]
    assert validation.num_classes == 5  # as of all splits together


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train[1:4]", [1, 2, 3]),
        ("train[2:3]", [2]),
        ("train[60%:]", [3, 4]),
        ("train[1shard:]", [3, 4]),  # the last files as a validation split, as the 2019 study does
        ("validation+train[:1]", [5, 6, 0]),
        ("train[4:]+train[:2]", [4, 0, 1]),
    ],
)
def test_slices_cut_through_files(write_records, encode, order, split, expected):
    root = write_records(IMAGENET)
    source = tfssl.open_source("tfrecord:" + root, split)
    assert [image for _, _, image in examples(source)] == [encode(number) for number in expected]
    assert [index for index, _, _ in examples(source)] == list(range(len(expected)))
    assert sorted(index for _, index in order(source, len(expected), seed=0)) == list(
        range(len(expected))
    )
    names = [
        name.decode() for name in source.records().map(source.name_in_graph).as_numpy_iterator()
    ]
    assert names == [source.name(i) for i in range(len(expected))]
    records = [
        f"record {i} of {file}" for file, labels in IMAGENET.items() for i in range(len(labels))
    ]
    assert [name.replace(root + "/", "") for name in names] == [
        records[number] for number in expected
    ]


def test_own_validation_split_by_files(write_records, encode, monkeypatch):
    files = {f"train-{i:05}-of-00008": list(range(1, 2 + i % 3)) for i in range(8)}
    root = write_records(files)
    train, val = (
        tfssl.open_source(f"tfrecord:{root}", split)
        for split in ("train[:6shard]", "train[6shard:]")
    )
    lengths = [len(labels) for labels in files.values()]
    assert (train.num_examples, val.num_examples) == (sum(lengths[:6]), sum(lengths[6:]))
    images = [image for source in (train, val) for _, _, image in examples(source)]
    assert images == [encode(number) for number in range(sum(lengths))]
    assert val.name(0) == f"record 0 of {root}/train-00006-of-00008"
    monkeypatch.setattr(
        "tfssl.data.listing.counts._counter", None
    )  # the counts are known: nothing is read again
    assert tfssl.open_source(f"tfrecord:{root}", "train[-2shard:]").num_examples == val.num_examples


def test_folders_have_no_shards(write_images):
    root = write_images([f"{name}/{i}.png" for name in "ab" for i in range(3)])
    for spec in (f"folder:{root}", "glyphs:50"):
        with pytest.raises(UserError, match="shards are the record files"):
            tfssl.open_source(spec, "train[:1shard]")


def test_labels_are_optional(write_records):
    source = tfssl.open_source(
        "tfrecord:" + write_records({"train-00000-of-00001": [None, None]}), label_offset=1
    )
    assert [label for _, label, _ in examples(source)] == [-1, -1] and source.num_classes is None
    source = tfssl.open_source(
        "tfrecord:" + write_records({"train-00000-of-00001": [None, 2, -1]}, root="b"),
        label_offset=1,
    )
    assert [label for _, label, _ in examples(source)] == [-1, 1, -1] and source.num_classes == 2


def test_keys_of_tutorials_are_told(write_records):
    root = write_records({"train.tfrecord": [0, 1]}, image_key="image", label_key="label")
    with pytest.raises(
        UserError,
        match=r"image \(bytes_list\), label \(int64_list\): give --image_key=image --label_key=label",
    ):
        tfssl.open_source("tfrecord:" + root)
    source = tfssl.open_source("tfrecord:" + root, image_key="image")
    assert source.num_classes is None and "give --label_key=label" in source.notes()[0]
    assert (
        "no record has one under label_key 'image/class/label': give --label_key=label"
        in unlabelled(source)
    )
    source = tfssl.open_source("tfrecord:" + root, image_key="image", label_key="label")
    assert source.num_classes == 2 and not source.notes()


def test_other_peoples_names_of_splits(write_records):
    root = write_records({"training.tfrecord": [0, 1], "testing.tfrecord": [1]})
    assert [
        tfssl.open_source("tfrecord:" + root, split).num_examples for split in ("train", "test")
    ] == [2, 1]
    root = write_records(
        {"train00-2182.tfrec": [0], "train01-2071.tfrec": [1], "test00-687.tfrec": [1]},
        root="kaggle",
    )
    assert [
        tfssl.open_source("tfrecord:" + root, split).num_examples for split in ("train", "test")
    ] == [2, 1]


def test_keys(write_records, encode):
    root = write_records({"x.tfrecord": [0, 1]}, image_key="jpeg", label_key="cls")
    source = tfssl.open_source(f"tfrecord:{root}/x.tfrecord", image_key="jpeg", label_key="cls")
    assert examples(source) == [(0, 0, encode(0)), (1, 1, encode(1))]
    with pytest.raises(
        UserError,
        match=r"no encoded image under image_key 'image/encoded'.*cls \(int64_list\), jpeg \(bytes_list\)",
    ):
        tfssl.open_source(f"tfrecord:{root}/x.tfrecord")
    with pytest.raises(UserError, match="label_key 'jpeg' is bytes_list, not one int64"):
        tfssl.open_source(f"tfrecord:{root}/x.tfrecord", image_key="jpeg", label_key="jpeg")


@pytest.mark.parametrize(
    "name, split",
    [
        ("train-00000-of-01024", "train"),
        ("validation-00127-of-00128", "validation"),
        ("cifar10-test.tfrecord-00000-of-00001", "test"),
        ("my_set-unlabelled.tfrecord-00000-of-00001", "unlabelled"),
        ("flowers_train_00000-of-00005.tfrecord", "train"),
        ("imagenet2012-val-00000-of-00010.tfrecord", "val"),
        ("photos-00000-of-00010", "photos"),
        ("photos.tfrecord", "train"),
        ("part-1-of-3.tfrecord", "train"),
        ("/data/test/photos.tfrecords", "train"),
        ("/data/test.tfrecord", "test"),
    ],
)
def test_split_names(name, split):
    assert split_of(name) == split


def test_counts_are_kept_beside_the_files(write_records, cache, monkeypatch):
    root = write_records(IMAGENET)
    source = tfssl.open_source("tfrecord:" + root)
    assert ".tfssl_counts.json" in os.listdir(root) and not cache.exists()

    def no_reading(label_key):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr("tfssl.data.listing.counts._counter", no_reading)
        again = tfssl.open_source("tfrecord:" + root)
        assert (
            (again.num_examples, again.num_classes)
            == (source.num_examples, source.num_classes)
            == (5, 6)
        )
    write_records({"train-00001-of-00002": [8]})  # a changed file is counted again
    assert (
        tfssl.open_source("tfrecord:" + root).num_examples,
        tfssl.open_source("tfrecord:" + root).num_classes,
    ) == (
        4,
        9,
    )
    with open(f"{root}/.tfssl_counts.json", "w") as file:
        file.write('{"format": 1, "files": ')
    assert tfssl.open_source("tfrecord:" + root).num_examples == 4


def with_count(count, crc="as it was"):
    """A change of the file of counts: another one of each file, the checksum as it was or none."""

    def change(content):
        files = {key: {**entry, "count": count} for key, entry in content["files"].items()}
        return {"format": 1, "files": files, **({"crc": content["crc"]} if crc else {})}

    return change


ODD = {
    "a list": lambda content: [1],
    "files as a list": lambda content: {"format": 1, "files": [1]},
    "entries as lists": lambda content: {"format": 1, "files": dict.fromkeys(content["files"], [])},
    "a count as text": with_count({"records": "x", "low": 0, "high": 1}, crc=None),
    "a count that is another": with_count({"records": 60, "low": 0, "high": 1}),
    "a count below zero": with_count({"records": -1, "low": 0, "high": 1}, crc=None),
    "no count": with_count(None, crc=None),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_counts_are_counted_again(write_records, odd):
    root = write_records({"train-0": [0, 1, 1]})
    tfssl.open_source(f"tfrecord:{root}/train-0")
    path = f"{root}/.tfssl_counts.json"
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump(ODD[odd](content), file)
    assert tfssl.open_source(f"tfrecord:{root}/train-0").num_examples == 3


def test_counts_of_older_versions_stay_valid(write_records, monkeypatch):
    """They have no checksum, and two numbers of each file."""
    root = write_records({"train-0": [0, 1, 1]})
    tfssl.open_source(f"tfrecord:{root}/train-0")
    path = f"{root}/.tfssl_counts.json"
    with open(path) as file:
        content = json.load(file)
    for entry in content["files"].values():
        entry["stamp"] = entry["stamp"][:2]
    with open(path, "w") as file:
        json.dump({"format": 1, "files": content["files"]}, file)
    monkeypatch.setattr("tfssl.data.listing.counts._counter", None)
    assert tfssl.open_source(f"tfrecord:{root}/train-0").num_examples == 3


def test_counts_of_read_only_data_go_to_the_cache(write_records, cache, monkeypatch):
    root = write_records(IMAGENET)

    def read_only(path, mode="r"):
        if str(path).startswith(root):
            raise PermissionError(errno.EROFS, "read-only")
        return open(path, mode)

    monkeypatch.setattr("tfssl.storage.files.open", read_only, raising=False)
    tfssl.open_source("tfrecord:" + root)
    assert sorted(os.listdir(root)) == sorted(IMAGENET) and len(os.listdir(cache / "counts")) == 1
    monkeypatch.setattr("tfssl.data.listing.counts._counter", None)
    assert tfssl.open_source("tfrecord:" + root).num_examples == 5


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
@pytest.mark.parametrize("name", ["train-00000-of-00002", "train-00001-of-00002"])
def test_a_damaged_file_is_named(write_records, damage, name):
    root = write_records(IMAGENET)
    with open(f"{root}/{name}", "rb") as file:
        content = bytearray(file.read())
    if damage == "flip":
        content[-20] ^= 255
    content = {"cut": content[:-7], "flip": content, "text": b"this is no TFRecord file"}[damage]
    with open(f"{root}/{name}", "wb") as file:
        file.write(content)
    with pytest.raises(
        UserError, match=f"'{root}/{name}' is not a whole, uncompressed TFRecord file"
    ) as error:
        tfssl.open_source("tfrecord:" + root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train-00000-of-00002", "train-00001-of-00002"])
def test_records_that_are_no_examples(write_records, name):
    root = write_records(IMAGENET)
    with tf.io.TFRecordWriter(f"{root}/{name}") as writer:
        writer.write(b"\xff\xff\xff no protocol buffer")
    with pytest.raises(UserError, match=f"{name}.*tf.train.Example"):
        tfssl.open_source("tfrecord:" + root)


def test_user_errors(write_records, tmp_path):
    root = write_records(IMAGENET)
    with pytest.raises(UserError, match="begins at 1, so label_offset cannot be 2"):
        tfssl.open_source("tfrecord:" + root, label_offset=2)
    with pytest.raises(
        UserError, match=r"no split 'test'; it has train \(5 examples\), validation \(2 examples\)"
    ):
        tfssl.open_source("tfrecord:" + root, "test")
    with pytest.raises(UserError, match=r"train\[:0\]' .* is empty"):
        tfssl.open_source("tfrecord:" + root, "train[:0]")
    for pattern in (f"{root}/nothing-*", f"{tmp_path}/nowhere/*", str(tmp_path)):
        with pytest.raises(UserError, match="no TFRecord files; expected a pattern"):
            tfssl.open_source("tfrecord:" + pattern)
    with pytest.raises(UserError, match="tfrecord:nofs://x/y-.: .*nofs"):
        tfssl.open_source("tfrecord:nofs://x/y-*")
    write_records({"train-00000-of-00001": []}, root="empty")
    with pytest.raises(UserError, match="is empty"):
        tfssl.open_source(f"tfrecord:{tmp_path}/empty")


class TfsslTiny(tfds.core.GeneratorBasedBuilder):
    """Twelve images to train on and four to test on: labeled, plain, or none at all."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("labelled", "plain", "none")]

    def _features(self):
        text, image = tfds.features.Text(), tfds.features.Image()
        label, mask = (
            tfds.features.ClassLabel(names=["warm", "cold"]),
            tfds.features.Image(shape=(None, None, 1)),
        )
        return {
            "labelled": {"id": text, "image": image, "label": label, "mask": mask},
            "plain": {"id": text, "picture": image},
            "none": {"id": text},
        }[self.builder_config.name]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._features())
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 16)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            image, mask = np.full((4, 5, 3), i, np.uint8), np.zeros((4, 5, 1), np.uint8)
            example = {
                "id": str(i),
                "image": image,
                "picture": image,
                "label": ["warm", "cold"][i % 2],
                "mask": mask,
            }
            yield i, {key: example[key] for key in self._features()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS folder with the tiny data set, written without any network."""
    tfds.disable_progress_bar()
    folder = str(tmp_path_factory.mktemp("tfds"))
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    for config in ("labelled", "plain", "none"):
        TfsslTiny(data_dir=folder, config=config).download_and_prepare(download_config=offline)
    return folder


def test_tfds(prepared):
    source = tfssl.open_source("tfds:tfssl_tiny/labelled", data_dir=prepared)
    assert (source.num_examples, source.num_classes, source.class_names) == (
        12,
        2,
        ["warm", "cold"],
    )
    got = [
        (label, tf.io.decode_image(image).numpy()[0, 0, 0]) for _, label, image in examples(source)
    ]
    reference = tfds.load(
        "tfssl_tiny/labelled", split="train", data_dir=prepared, shuffle_files=False
    )
    assert got == [(int(e["label"]), e["image"].numpy()[0, 0, 0]) for e in reference]
    assert sorted(value for _, value in got) == list(range(12))
    check_source(source)


@pytest.mark.parametrize("split", ["train[25%:75%]", "test+train[:3]", "all", "train[-2:]"])
def test_tfds_splits_are_those_of_tfds(prepared, order, split):
    source = tfssl.open_source("tfds:tfssl_tiny/labelled", split, data_dir=prepared)
    reference = tfds.load(
        "tfssl_tiny/labelled", split=split, data_dir=prepared, shuffle_files=False
    )
    expected = [e["image"].numpy()[0, 0, 0] for e in reference]
    assert [
        tf.io.decode_image(image).numpy()[0, 0, 0] for _, _, image in examples(source)
    ] == expected
    assert sorted(index for _, index in order(source, len(expected), seed=1)) == list(
        range(len(expected))
    )


def test_tfds_shards(tmp_path):
    offline = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=4)
    TfsslTiny(data_dir=str(tmp_path), config="labelled").download_and_prepare(
        download_config=offline
    )
    left, right = (
        tfssl.open_source("tfds:tfssl_tiny/labelled", split, data_dir=str(tmp_path))
        for split in ("train[:3shard]", "train[3shard:]")
    )
    assert left.num_examples + right.num_examples == 12
    images = [
        tf.io.decode_image(image).numpy()[0, 0, 0]
        for source in (left, right)
        for _, _, image in examples(source)
    ]
    assert sorted(images) == list(range(12))
    assert {right.name(i).split(" of ")[1] for i in range(right.num_examples)} == {
        f"{tmp_path}/tfssl_tiny/labelled/1.0.0/tfssl_tiny-train.tfrecord-00003-of-00004"
    }


def test_tfds_without_labels(prepared):
    source = tfssl.open_source("tfds:tfssl_tiny/plain:1.0.0", "test", data_dir=prepared)
    assert (source.num_examples, source.num_classes, source.class_names) == (4, None, None)
    assert {label for _, label, _ in examples(source)} == {-1}
    source.check_readable()


@pytest.mark.parametrize(
    "name", ["no_such_set", "tfssl_tiny/other", "tfssl_tiny/plain:9.9.9", "Not A Name!"]
)
def test_tfds_that_is_not_prepared(prepared, name):
    with pytest.raises(
        UserError, match="is not prepared in .*tfds.load.*or allow the download"
    ) as error:
        tfssl.open_source("tfds:" + name, data_dir=prepared)
    assert "\n" not in str(error.value)


def test_tfds_user_errors(prepared):
    with pytest.raises(
        UserError, match=r"no split 'validation'; it has train \(12 examples\), test \(4 examples\)"
    ):
        tfssl.open_source("tfds:tfssl_tiny/plain", "validation", data_dir=prepared)
    with pytest.raises(UserError, match=r"no uint8 image under 'image'.*id \(Text\)"):
        tfssl.open_source("tfds:tfssl_tiny/none", data_dir=prepared)


def test_tfds_can_be_prepared_on_request(tmp_path):
    source = tfssl.open_source("tfds:tfssl_tiny/plain", data_dir=str(tmp_path), download=True)
    assert source.num_examples == 12
    with pytest.raises(UserError, match="cannot be prepared"):
        tfssl.open_source("tfds:no_such_set", data_dir=str(tmp_path), download=True)


@pytest.mark.parametrize(
    "change, message", [("array_record", "stored as array_record"), ("missing", "is missing")]
)
def test_tfds_files_that_cannot_be_read(tmp_path, change, message):
    TfsslTiny(data_dir=str(tmp_path), config="plain").download_and_prepare()
    folder = tmp_path / "tfssl_tiny" / "plain" / "1.0.0"
    if change == "missing":
        (folder / "tfssl_tiny-train.tfrecord-00000-of-00001").unlink()
    else:
        info = folder / "dataset_info.json"
        info.write_text(
            info.read_text().replace('"fileFormat": "tfrecord"', f'"fileFormat": "{change}"')
        )
    with pytest.raises(UserError, match=message):
        tfssl.open_source("tfds:tfssl_tiny/plain", data_dir=str(tmp_path))

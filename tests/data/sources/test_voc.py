import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfssl
from tfssl import downstream
from tfssl.errors import UserError
from tfssl.testing import check_source

# What VOC's files say of eight images: 1 shown, -1 not, 0 difficult.
MARKS = {
    "cat": {
        "000004": 1,
        "000001": -1,
        "000002": 0,
        "000003": -1,
        "000005": 1,
        "000009": -1,
        "000010": 0,
        "000007": -1,
    },
    "dog": {
        "000001": 1,
        "000002": 1,
        "000003": -1,
        "000004": 1,
        "000005": -1,
        "000007": 0,
        "000009": 1,
        "000010": -1,
    },
    "boat": {
        "000001": -1,
        "000002": -1,
        "000003": 0,
        "000004": -1,
        "000005": 1,
        "000007": 1,
        "000009": 1,
        "000010": -1,
    },
}
SPLITS = {
    "train": ["000004", "000001", "000002"],
    "val": ["000003", "000005"],
    "test": ["000007", "000009", "000010"],
}
SPLITS["trainval"] = SPLITS["train"] + SPLITS["val"]


@pytest.fixture
def voc(tmp_path, encode):
    """Folder VOCdevkit/VOC2007 with these images and lists, and what else lies in such folders."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    lists = root / "ImageSets" / "Main"
    for folder in (
        root / "JPEGImages",
        lists,
        root / "Annotations",
        root / "ImageSets" / "Segmentation",
    ):
        folder.mkdir(parents=True)
    for name in MARKS["cat"]:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode(int(name), ".jpg"))
    for split, images in SPLITS.items():
        (lists / f"{split}.txt").write_text("\n".join(images))
        for of_class, marks in MARKS.items():
            (lists / f"{of_class}_{split}.txt").write_text(
                "".join(f"{i} {marks[i]:2}\n" for i in images)
            )
    return root


@pytest.mark.parametrize(
    "split, images",
    [
        ("train", ["000001", "000002", "000004"]),
        ("test", ["000007", "000009", "000010"]),
        ("train+val", ["000001", "000002", "000004", "000003", "000005"]),
        ("trainval[1:3]", ["000002", "000003"]),
    ],
)
def test_images_and_targets(voc, encode, split, images):
    source = tfssl.open_source(f"voc:{voc}", split)
    assert (source.num_examples, source.num_classes) == (len(images), None)
    assert source.class_names == ["boat", "cat", "dog"]
    targets = source.targets()
    assert targets.dtype == np.int8
    assert targets.tolist() == [[MARKS[c][i] for c in ("boat", "cat", "dog")] for i in images]
    if split == "train+val":
        check_source(source)
    for i, record in enumerate(source.records().map(source.fetch).as_numpy_iterator()):
        assert (record["index"], record["label"], record["image"]) == (
            i,
            -1,
            encode(int(images[i]), ".jpg"),
        )
        assert source.name(i) == f"{voc}/JPEGImages/{images[i]}.jpg"


def test_the_folder_around_it(voc):
    assert tfssl.open_source(f"voc:{voc.parent}", "test").targets().shape == (3, 3)
    (voc.parent / "VOC2012" / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(UserError, match="give one of .*VOC2007, .*VOC2012"):
        tfssl.open_source(f"voc:{voc.parent}", "test")


def test_what_a_list_does_not_name_is_not_shown(voc):
    (voc / "ImageSets" / "Main" / "dog_test.txt").write_text("000009 1\n")
    assert tfssl.open_source(f"voc:{voc}", "test").targets()[:, 2].tolist() == [-1, 1, -1]


def test_lists_in_other_encodings(voc):
    path = voc / "ImageSets" / "Main" / "dog_test.txt"
    path.write_text("000009 1\r\n", encoding="utf-8-sig")
    assert tfssl.open_source(f"voc:{voc}", "test").targets()[:, 2].tolist() == [-1, 1, -1]
    path.write_text("000009 1\n", encoding="utf-16")
    with pytest.raises(UserError, match="dog_test.txt' is not text in UTF-8: save it as such$"):
        tfssl.open_source(f"voc:{voc}", "test")


def test_user_errors(voc, tmp_path):
    with pytest.raises(UserError, match="voc:.*no folder ImageSets/Main in .*VOCdevkit/VOC2007"):
        tfssl.open_source(f"voc:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="no split 'tset'; it has .*trainval"):
        tfssl.open_source(f"voc:{voc}", "tset")
    with pytest.raises(UserError, match="voc:PATH"):
        tfssl.open_source("voc")
    lists = voc / "ImageSets" / "Main"
    (lists / "dog_test.txt").write_text("000009 yes\n")
    with pytest.raises(UserError, match="dog_test.txt' holds '000009 yes'") as error:
        tfssl.open_source(f"voc:{voc}", "test")
    assert "\n" not in str(error.value)
    for file in lists.glob("*_*.txt"):
        file.unlink()
    with pytest.raises(UserError, match="no lists of images"):
        tfssl.open_source(f"voc:{voc}")


def test_supervised_training_refuses_it(voc):
    source = tfssl.open_source(f"voc:{voc}", "trainval")
    backbone = tfssl.backbones.build("resnet18_v2", width_multiplier=0.0625, stem="small")
    with pytest.raises(UserError, match="the data set has no classes"):
        tfssl.pretext.build(
            "supervised", backbone, image_size=16, num_classes=source.num_classes or 0
        )


def test_features_keep_their_targets_where_images_are_lost(voc):
    (voc / "JPEGImages" / "000002.jpg").write_bytes(b"damaged")

    class Brightness(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
        def __call__(self, images):
            return tf.reduce_mean(images, [1, 2])

    tf.saved_model.save(Brightness(), str(voc / "module"))
    source = tfssl.open_source(f"voc:{voc}", "trainval")
    for endpoints in (["output"], []):
        features = downstream.extract(str(voc / "module"), source, endpoints, image_size=4)
        if endpoints:
            assert features.index.tolist() == [0, 2, 3, 4]
        np.testing.assert_array_equal(features.targets, source.targets()[features.index])
    assert features.num_classes is None and features.class_names == ["boat", "cat", "dog"]


def _box(i, of_class):
    return i / 10, 0.1, 0.9, 0.2 + len(of_class) / 10


class TfsslVoc(tfds.core.GeneratorBasedBuilder):
    """Five images as TFDS's "voc" describes them, or with plain lists of labels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("voc", "plain")]

    def _features(self):
        label = tfds.features.ClassLabel(names=["boat", "cat", "dog"])
        found = {
            "image": tfds.features.Image(),
            "objects": tfds.features.Sequence(
                {
                    "label": label,
                    "is_difficult": np.bool_,
                    "is_crowd": np.bool_,
                    "bbox": tfds.features.BBoxFeature(),
                    "pose": tfds.features.Text(),
                }
            ),
            "labels": tfds.features.Sequence(label),
            "labels_no_difficult": tfds.features.Sequence(label),
        }
        return (
            found
            if self.builder_config.name == "voc"
            else {key: found[key] for key in ("image", "labels")}
        )

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._features())
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, name in enumerate(SPLITS["trainval"]):
            marks = {of_class: MARKS[of_class][name] for of_class in MARKS}
            boxes = {c: [_box(i, c)] for c, mark in marks.items() if mark != -1}
            if i == 1:
                boxes["cat"] = [*boxes.get("cat", []), (0.25, 0.5, 0.25, 1.0)]  # without area
            example = {
                "image": np.full((4, 5, 3), i, np.uint8),
                "objects": [
                    {
                        "label": c,
                        "is_difficult": marks[c] == 0,
                        "is_crowd": c == "boat",
                        "bbox": tfds.features.BBox(*box),
                        "pose": "Left",
                    }
                    for c, found in boxes.items()
                    for box in found
                ],
                "labels": [c for c, mark in marks.items() if mark != -1],
                "labels_no_difficult": [c for c, mark in marks.items() if mark == 1],
            }
            yield name, {key: example[key] for key in self._features()}


@pytest.mark.parametrize("config", ["voc", "plain"])
def test_tfds(tmp_path, config):
    tfds.disable_progress_bar()
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    TfsslVoc(data_dir=str(tmp_path), config=config).download_and_prepare(download_config=offline)
    source = tfssl.open_source(f"tfds:tfssl_voc/{config}", data_dir=str(tmp_path))
    assert (source.num_examples, source.num_classes, source.class_names) == (
        5,
        None,
        ["boat", "cat", "dog"],
    )
    for record in source.records().map(source.fetch).as_numpy_iterator():
        name = SPLITS["trainval"][tf.io.decode_image(record["image"]).numpy()[0, 0, 0]]
        marks = [MARKS[c][name] for c in source.class_names]
        if config == "plain":
            marks = [1 if mark == 0 else mark for mark in marks]
        shown = [
            (source.class_names.index(c), its[name]) for c, its in MARKS.items() if its[name] != -1
        ]
        assert ("boxes" in record) == (config == "voc") == ("boxes" in source.provides)
        if config == "voc":
            number = SPLITS["trainval"].index(name)
            assert record["classes"].tolist() == [c for c, _ in shown]
            assert record["difficult"].tolist() == [mark == 0 for _, mark in shown]
            assert record["crowd"].tolist() == [source.class_names[c] == "boat" for c, _ in shown]
            boxes = np.array([_box(number, source.class_names[c]) for c, _ in shown]).reshape(-1, 4)
            np.testing.assert_allclose(record["boxes"], boxes, atol=1e-6)
        assert record["label"] == -1 and source.targets()[record["index"]].tolist() == marks
    part = tfssl.open_source(f"tfds:tfssl_voc/{config}", "train[40%:]", data_dir=str(tmp_path))
    np.testing.assert_array_equal(part.targets(), source.targets()[2:])

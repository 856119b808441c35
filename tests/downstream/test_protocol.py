"""What the images permit, and what a protocol says of itself."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.config import signatures
from tfssl.config.generated import Generated
from tfssl.data.sources.base import IndexedSource
from tfssl.downstream import NAMES, PROTOCOLS, runner
from tfssl.downstream.protocol import lacks
from tfssl.downstream.protocols.knn import KNN
from tfssl.downstream.protocols.segmentation import Segmentation
from tfssl.downstream.protocols.svm import SVM
from tfssl.errors import UserError


class Images(IndexedSource):
    """Two images of which only the annotations are looked at."""

    def __init__(self, label=-1, provides=(), targets=None):
        super().__init__("images", "train", 2)
        self.label, self.provides, self._targets = label, provides, targets

    def fetch(self, record):
        return {"label": tf.constant(self.label, tf.int64), "index": record["index"]}

    def targets(self):
        return self._targets


@pytest.mark.parametrize(
    "source, refused",
    [
        (Images(), {"knn": "no labels", "svm": "no labels", "segmentation": "has no masks"}),
        (Images(label=3), {"segmentation": "has no masks"}),
        (Images(label=3, provides=("mask",)), {}),
        (Images(provides=("boxes", "mask")), {"knn": "no labels", "svm": "no labels"}),
        (
            Images(targets=np.ones([2, 1], np.int8)),
            {"knn": "several classes", "segmentation": "has no masks"},
        ),
    ],
)
def test_what_the_images_lack(source, refused):
    reasons = {p.name: lacks(p.needs[0], source) for p in (KNN, SVM, Segmentation)}
    assert {name for name, reason in reasons.items() if reason} == refused.keys()
    assert all(text in reasons[protocol] for protocol, text in refused.items())


def test_each_split_must_have_what_is_needed():
    masks, asked = Images(provides=("mask",)), [Segmentation()]
    assert runner.permitted(asked, [masks, masks]) == asked
    with pytest.raises(UserError, match="--protocol=segmentation: --dataset=images has no masks"):
        runner.permitted(asked, [masks, Images()])


def test_what_was_not_asked_for_by_name_is_left_out():
    masks, said = Images(provides=("mask",)), []
    knn, svm, segmentation = asked = [KNN(k=1), SVM(), Segmentation(epochs=2)]
    assert runner.permitted(asked, [masks], optional=["knn", "svm"], left_out=said.append) == [
        segmentation
    ]
    (line,) = said
    assert line.startswith("left out: knn, svm: --dataset=images (train) has no labels")
    with pytest.raises(UserError, match="--protocol=svm: --dataset=images .train. has no labels"):
        runner.permitted(asked, [masks], optional=["knn"], left_out=said.append)
    with pytest.raises(
        UserError, match="--protocol=all: .*no labels.*; --dataset=images has no masks"
    ):
        runner.permitted(
            asked, [Images()], optional=["knn", "svm", "segmentation"], left_out=said.append
        )
    assert runner.permitted([], [Images()]) == []


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_constructors_arguments(name):
    protocol = PROTOCOLS.find(name)()
    assert protocol.name == name and tuple(protocol.settings) == protocol.setting_names()
    again = protocol.replace()
    assert again.settings == protocol.settings and type(again) is type(protocol)
    assert set(protocol.quick) - {"train_labels"} <= set(protocol.settings)
    for trial in protocol.trials:
        protocol.replace(**trial)


def test_further_arguments_go_on_to_the_base():
    protocol = Segmentation(ignore=0, epochs=3, size=(8, 16))
    assert (
        protocol.settings["ignore"],
        protocol.settings["epochs"],
        protocol.settings["size"],
    ) == (0, 3, (8, 16))
    assert protocol.replace(epochs=4).settings == {**protocol.settings, "epochs": 4}
    with pytest.raises(UserError, match="size=12: give HEIGHT,WIDTH in pixels"):
        Segmentation(size=(12,))


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_read_from_the_class(name):
    """Without importing it: every argument is described, has its default and, unless it is hidden,
    a flag."""
    found = PROTOCOLS.find(name)
    settings = signatures.read(*PROTOCOLS.source(name))
    jittered = {"jittered_views"}
    hidden = {"linear_sgd": {"lr_scaling"}, "detection": jittered, "fcos": jittered}
    hidden = hidden.get(name, set())
    assert {*settings, *hidden} == set(found.setting_names()) and not hidden & set(settings)
    assert all(setting.text for setting in settings.values())
    assert (
        found(**{argument: setting.default for argument, setting in settings.items()}).settings
        == found().settings
    )
    assert signatures.summary(*PROTOCOLS.source(name)) == found.__doc__.splitlines()[0].rstrip(".")


def test_flags_of_all_protocols():
    """Those that recipes and scripts know: none is renamed."""
    flags = Generated("protocol", {name: PROTOCOLS.source(name) for name in NAMES}, unset=False)
    assert set(flags.flags) == {
        "l2", "max_iterations", "standardize", "precondition", "knn_k", "knn_temperature", "augment", "sgd_crops", "sgd_epochs",
        "sgd_decay_epochs", "sgd_batch_size", "sgd_learning_rate", "sgd_weight_decay", "sgd_nesterov", "sgd_batch_norm", "sgd_init_std",
        "epoch", "mlp_hidden", "mlp_dropout", "mlp_l2", "mlp_epochs", "mlp_decay_epochs", "mlp_batch_size", "mlp_learning_rate",
        "svm_costs", "svm_folds", "svm_shuffle_folds", "svm_ap", "svm_positive_weight", "svm_intercept_scaling", "low_shot_k",
        "low_shot_samples", "low_shot_choose", "few_shot_k", "few_shot_ways", "few_shot_queries", "few_shot_episodes", "few_shot_ridges",
        "dense_size", "dense_trunk", "dense_trunk_rate", "dense_epochs", "dense_learning_rate", "dense_batch_size", "dense_mirrored",
        "unsupervised_images", "unsupervised_crops", "dense_head", "ignore_class", "detection_layers", "detection_units", "detection_jitter", "normals_clusters",
        "fcos_neck_width",
    }  # fmt: skip
    assert (
        flags.default("dense_epochs") is None and flags.default("knn_k") == 20
    )  # where classes differ, it is unset
    assert (
        flags.defaults("detection")["dense_epochs"],
        flags.defaults("segmentation")["dense_epochs"],
    ) == (40, 60)

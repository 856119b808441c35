"""What the images permit, and what a protocol says of itself."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.data.sources.base import IndexedSource
from tfssl.downstream import NAMES, PROTOCOLS, runner
from tfssl.downstream.protocol import lacks
from tfssl.downstream.protocols.knn import KNN
from tfssl.downstream.protocols.segmentation import Segmentation
from tfssl.downstream.protocols.svm import SVM
from tfssl.errors import UserError


class Images(IndexedSource):
    """Two images of which only the annotations are looked at."""

    def __init__(self, label=-1, annotations=(), targets=None):
        super().__init__("images", "train", 2)
        self.label, self.annotations, self._targets = label, annotations, targets

    def fetch(self, record):
        return {"label": tf.constant(self.label, tf.int64), "index": record["index"]}

    def targets(self):
        return self._targets


@pytest.mark.parametrize(
    "source, refused",
    [
        (Images(), {"knn": "no labels", "svm": "no labels", "segmentation": "has no masks"}),
        (Images(label=3), {"segmentation": "has no masks"}),
        (Images(label=3, annotations=("mask",)), {}),
        (Images(annotations=("boxes", "mask")), {"knn": "no labels", "svm": "no labels"}),
        (Images(targets=np.ones([2, 1], np.int8)), {"knn": "several classes", "segmentation": "has no masks"}),
    ],
)
def test_what_the_images_lack(source, refused):
    reasons = {p.name: lacks(p.needs[0], source) for p in (KNN, SVM, Segmentation)}
    assert {name for name, reason in reasons.items() if reason} == refused.keys()
    assert all(text in reasons[protocol] for protocol, text in refused.items())


def test_each_split_must_have_what_is_needed():
    masks, asked = Images(annotations=("mask",)), [Segmentation()]
    assert runner.permitted(asked, [masks, masks]) == asked
    with pytest.raises(UserError, match="--protocol=segmentation: --dataset=images has no masks"):
        runner.permitted(asked, [masks, Images()])


def test_what_was_not_asked_for_by_name_is_left_out():
    masks, said = Images(annotations=("mask",)), []
    knn, svm, segmentation = asked = [KNN(k=1), SVM(), Segmentation(epochs=2)]
    assert runner.permitted(asked, [masks], optional=["knn", "svm"], left_out=said.append) == [segmentation]
    (line,) = said
    assert line.startswith("left out: knn, svm: --dataset=images (train) has no labels")
    with pytest.raises(UserError, match="--protocol=svm: --dataset=images .train. has no labels"):
        runner.permitted(asked, [masks], optional=["knn"], left_out=said.append)
    with pytest.raises(UserError, match="--protocol=all: .*no labels.*; --dataset=images has no masks"):
        runner.permitted(asked, [Images()], optional=["knn", "svm", "segmentation"], left_out=said.append)
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
    assert (protocol.settings["ignore"], protocol.settings["epochs"], protocol.settings["size"]) == (0, 3, (8, 16))
    assert protocol.replace(epochs=4).settings == {**protocol.settings, "epochs": 4}
    with pytest.raises(UserError, match="size=12: give HEIGHT,WIDTH in pixels"):
        Segmentation(size=(12,))

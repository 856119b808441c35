"""What the images permit."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.data.sources.base import IndexedSource
from tfssl.downstream import needs
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
def test_obstacles(source, refused):
    found = needs.obstacles(["knn", "svm", "segmentation"], [source])
    assert found.keys() == refused.keys()
    assert all(refused[protocol] in reason for protocol, reason in found.items())


def test_each_split_must_have_what_is_needed():
    masks = Images(annotations=("mask",))
    assert not needs.obstacles(["segmentation"], [masks, masks])
    assert "segmentation" in needs.obstacles(["segmentation"], [masks, Images()])


def test_what_was_not_asked_for_by_name_is_left_out():
    masks, said = Images(annotations=("mask",)), []
    asked = {"knn": {"k": 1}, "svm": {}, "segmentation": {"epochs": 2}}
    assert needs.permitted(asked, [masks], optional=["knn", "svm"], left_out=said.append) == {
        "segmentation": {"epochs": 2}
    }
    (line,) = said
    assert line.startswith("left out: knn, svm: --dataset=images (train) has no labels")
    with pytest.raises(UserError, match="--protocol=svm: --dataset=images .train. has no labels"):
        needs.permitted(asked, [masks], optional=["knn"], left_out=said.append)
    with pytest.raises(UserError, match="--protocol=all: .*no labels.*; --dataset=images has no masks"):
        needs.permitted(asked, [Images()], optional=list(asked), left_out=said.append)
    assert needs.permitted({}, [Images()]) == {}

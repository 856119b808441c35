"""The nearest-neighbor probe of training is the evaluation of the exported encoder."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, downstream, pretext
from tfssl.export import save
from tfssl.training.knn_probe import KnnProbe


def model(strategy=None):
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(0)
    with strategy.scope():
        made = pretext.build(
            "rotation", backbones.build("resnet18_v2", 1 / 16, "small"), image_size=16, resize=18
        )
        made.prepare()
    return made


def test_it_is_what_the_evaluation_says(photos, tmp_path):
    sources = [
        tfssl.open_source(f"folder:{photos}", split) for split in ("train[:50%]", "train[50%:]")
    ]
    untrained = model()
    module = save(untrained, tmp_path / "module")
    train, test = (downstream.extract(module, source, ["pre_logits"], 16, 18) for source in sources)
    (result,) = downstream.run("knn", train, test, k=min(20, len(train.labels)), val_fraction=0)
    probe = KnnProbe(untrained, *sources, images=1000, batch_size=7)
    measured = probe()
    assert measured.keys() == probe.chance.keys() and probe.chance["knn_accuracy"] == 0.5
    assert measured["knn_accuracy"] == result["value"]
    (unsupervised,) = downstream.run("unsupervised", train, test)
    assert measured["rank"] == pytest.approx(unsupervised["rankme"], rel=1e-4)
    few = KnnProbe(untrained, *sources, images=4)
    labels = [few._extract(part)[1] for part in few._parts]
    assert [len(part) for part in labels] == [4, 4] and len(np.unique(labels[0])) == 2


def test_on_replicas(photos, replicas):
    sources = [
        tfssl.open_source(f"folder:{photos}", split) for split in ("train[:50%]", "train[50%:]")
    ]
    one, two = (KnnProbe(made, *sources, images=16)() for made in (model(), model(replicas)))
    assert one == pytest.approx(two, rel=1e-6)


def test_without_labels(photos, tmp_path):
    (tmp_path / "one.jpg").write_bytes(next(photos.rglob("*.jpg")).read_bytes())
    source = tfssl.open_source(f"folder:{tmp_path}", "all")
    measured = KnnProbe(model(), source, source, images=5)()
    assert measured == {"rank": pytest.approx(1, abs=1e-3)}  # of one image

"""Pseudo-labels: their health against scikit-learn and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

from tfssl.errors import UserError
from tfssl.pretext.parts.clusterings import Clusterings, alarm
from tfssl.step.phases import Context


def test_health_is_that_of_the_definitions():
    found = Clusterings(12, 4, count=2)
    first = np.stack([np.arange(12) % 4, np.repeat(0, 12)])
    second = np.random.default_rng(0).integers(0, 4, [2, 12])
    report = found.write(first, 0)
    # Four even clusters are as uncertain as four; one cluster, of four, as one.
    assert report["perplexity"] == pytest.approx((4 + 1) / 2) and report["empty"] == 3 / 8
    assert report["nmi"] == 0 and "nmi_labels" not in report
    found.see(
        {"index": tf.range(5, dtype=tf.int64), "label": tf.constant([0, 1, 0, 1, -1], tf.int64)}
    )
    report = found.write(second, 3)
    for name, known, others in (
        ("nmi", slice(None), first),
        ("nmi_labels", slice(4), [[0, 1, 0, 1]] * 2),
    ):
        scores = [normalized_mutual_info_score(x, y[known]) for x, y in zip(others, second)]
        assert report[name] == pytest.approx(np.mean(scores), abs=1e-6), name
    # Done again, it compares with the same ones; and labels of other names are the same clusters.
    assert found.write(second, 3)["nmi"] == report["nmi"]
    assert found.write(3 - second, 6)["nmi"] == pytest.approx(1)
    # Images that cannot be read have no label, and count nowhere.
    holes = np.where(np.arange(12) % 3 == 0, -1, first)
    assert found.write(holes, 9)["perplexity"] == pytest.approx((4 + 1) / 2)
    np.testing.assert_array_equal(
        found.of(tf.constant([3, 4, 13], tf.int64)), [[-1, 0, 1], [-1, 0, 0]]
    )


def test_a_collapse_and_phases_that_nobody_ran_are_told():
    assert "have not been run" in alarm({"perplexity": 0.0}, 50)
    assert "2 of 50 clusters" in alarm({"perplexity": 2.0}, 50)
    assert alarm({"perplexity": 20.0}, 50) is None and alarm({"perplexity": 1.9}, 2) is None


def test_too_few_images_are_refused():
    for images, message in ((0, "num_images is missing"), (5, "clusters=6 need as many images")):
        with pytest.raises(UserError, match=message):
            Clusterings(images, 6)
    known = np.arange(8) < 5
    context = Context(tf.distribute.get_strategy(), tuple, 8)
    with pytest.raises(UserError, match="and 5 can be read: take fewer"):
        Clusterings(8, 6).compute(context, [tf.zeros([8, 2])], known)

import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import plots
from tfssl.downstream.report import save as report


def result(module, endpoint, value, val_value, protocol="knn", train_labels=100, **more):
    return {
        **{"module": module, "endpoint": endpoint, "protocol": protocol, "train_labels": train_labels},
        **{"metric": "accuracy", "value": value, "val_value": val_value},
        **more,
    }


RESULTS = [
    result("rotation", "block1", 0.512, 0.50),
    result("rotation", "block2", 0.631, 0.49),  # better on test, which must not count
    result("rotation", "pixels", 0.9, 0.99),  # not the module's
    result("rotation", "block1", 0.6, 0.5, "logistic", 1000, converged=False),
    result("rotation", "block2", 0.6, 0.5, "logistic", 1000, converged=True),
    result("rotation", "pixels", 0.25, None, "logistic", 1000),
    result("x", "output", 1.0, None, "logistic", 1000),
]

TABLE = """\
module          endpoint  knn@100   logistic@1000
--------------------------------------------------
rotation        block1       51.2*           60.0
                block2       63.1            60.0*

x               output                      100.0

pixels                       90.0            25.0
chance                       10.0            10.0
majority class               12.3            12.3
--------------------------------------------------
test accuracy in %; protocol@training labels; * the endpoint that validation chose for its module
logistic stopped at --max_iterations, before its optimum: rotation/block1@1000"""


def test_validation_chooses():
    chosen = [r["chosen"] for r in report.mark_chosen([dict(r) for r in RESULTS])]
    assert chosen == [True, False, False, False, True, False, False]  # among equals the deeper


def test_table():
    results = report.mark_chosen([dict(r) for r in RESULTS])
    assert report.table(results, {"chance": 0.1, "majority class": 0.123}) == TABLE


def test_baselines():
    train = Features({}, np.array([0, 1, 1, 2]), np.arange(4), num_classes=3)
    test = Features({}, np.array([0, 1, 1, 1, 2]), np.arange(5), num_classes=3)
    assert report.baselines(train, test) == pytest.approx({"chance": 1 / 3, "majority class": 3 / 5})


def test_bars_are_a_picture():
    results = report.mark_chosen([dict(r) for r in RESULTS])
    picture = tf.io.decode_png(plots.bars(results, {"chance": 0.1}, "title"), channels=3).numpy()
    assert min(picture.shape[:2]) > 400
    for color in ([0x44, 0x77, 0xAA], [0xEE, 0x66, 0x77]):  # the bars of two modules
        assert (picture == color).all(-1).sum() > 1000


def test_table_says_what_chose_and_what_diverged():
    results = [
        {
            **result("x", "a", 0.5, 0.5, "mlp", diverged=True),
            "chosen_on": "folder:f val",
            "reported_on": "folder:f test",
        },
        {**result("x", "b", 0.5, None, "mlp", diverged=False), "chosen_on": None, "reported_on": "folder:f test"},
    ]
    notes = report.table(report.mark_chosen(results), {"chance": 0.1}).splitlines()[-2:]
    assert notes == [
        "diverged, so take --standardize or a lower learning rate: mlp x/a",
        "chosen on folder:f val; reported on folder:f test",
    ]


@pytest.mark.parametrize("on_val", [None, 0.4])
def test_curves_are_a_picture(on_val):
    curve = [[epoch, on_val and on_val + epoch / 100, 0.3 + epoch / 100] for epoch in range(1, 21)]
    results = [
        result(module, endpoint, 0.5, on_val, protocol, curve=curve)
        for module in ("rotation", "random")
        for endpoint in ("block1", "pixels")
        for protocol in ("linear_sgd", "mlp")
    ]
    png = plots.epochs([*results, result("rotation", "block1", 0.6, 0.5)], "title")
    picture = tf.io.decode_png(png, channels=3).numpy()
    assert min(picture.shape[:2]) > 400
    for color in ([0x44, 0x77, 0xAA], [0xEE, 0x66, 0x77]):  # the lines of two endpoints
        assert (abs(picture.astype(int) - color) < 4).all(-1).sum() > 100

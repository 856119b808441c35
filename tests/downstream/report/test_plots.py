"""Plots are pictures with the modules' colors in them."""

import pytest
import tensorflow as tf
from evaluations import RESULTS, result

from tfssl.downstream.report import plots
from tfssl.downstream.report.view import View
from tfssl.downstream.results import mark_chosen


def test_bars_are_a_picture():
    results = mark_chosen(RESULTS)
    picture = tf.io.decode_png(
        plots.bars(View.of(results, {"chance": 0.1}), "title"), channels=3
    ).numpy()
    assert min(picture.shape[:2]) > 400
    for color in ([0x44, 0x77, 0xAA], [0xEE, 0x66, 0x77]):  # the bars of two modules
        assert (picture == color).all(-1).sum() > 1000


@pytest.mark.parametrize("on_val", [None, 0.4])
def test_curves_are_a_picture(on_val):
    curve = [[epoch, on_val and on_val + epoch / 100, 0.3 + epoch / 100] for epoch in range(1, 21)]
    results = [
        result(module, endpoint, 0.5, on_val, protocol, curve=curve)
        for module in ("rotation", "random")
        for endpoint in ("block1", "pixels")
        for protocol in ("linear_sgd", "mlp")
    ]
    png = plots.epochs(View.of([*results, result("rotation", "block1", 0.6, 0.5)]), "title")
    picture = tf.io.decode_png(png, channels=3).numpy()
    assert min(picture.shape[:2]) > 400
    for color in ([0x44, 0x77, 0xAA], [0xEE, 0x66, 0x77]):  # the lines of two endpoints
        assert (abs(picture.astype(int) - color) < 4).all(-1).sum() > 100


def test_steps_are_a_line_of_each_run_and_the_legend_is_whole():
    """Two runs with their checkpoints; a module of its own, and a run of one checkpoint, are not
    drawn. Where the panel is narrow the legend takes more rows, not fewer letters."""
    results = [
        result(module, "block1", 0.5 + step / 5000 - len(run) / 1000, 0.5)
        for run in ("one", "another with a name that is long enough")
        for step in (100, 200, 1000)
        for module in (f"{run}/{step}",)
    ]
    view = View.of(mark_chosen([*results, result("alone", "block1", 0.4, 0.4)]), {"chance": 0.1})
    trained = {r.module: int(r.module.rpartition("/")[2]) for r in results}
    picture = tf.io.decode_png(plots.steps(view, trained), channels=3).numpy().astype(int)
    for color in ([0x44, 0x77, 0xAA], [0xEE, 0x66, 0x77]):
        assert (abs(picture - color) < 4).all(-1).sum() > 100
    assert (picture[:, -3:] == 255).all()  # no letter reaches the margin
    assert plots.steps(view, {"one/100": 100, "alone": 5}) is None

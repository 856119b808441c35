"""Plots are pictures with the modules' colors in them."""

import warnings

import pytest
import tensorflow as tf
from evaluations import RESULTS, result
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tfssl.downstream.report import names, plots
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


def test_bars_of_no_height_make_no_warning():
    view = View.of(mark_chosen([result("rotation", "block1", 0.0, 0.0)]), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.bars(view).startswith(b"\x89PNG")


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


LONG = "runs/of/an/experiment/with/many/settings/"  # and the names' first 39 letters
MODULES = (f"{LONG}seed_0/export", f"{LONG}seed_1/export")
ENDPOINTS = (
    "stage/of/a/network/with/a/path/of/its_own/a",
    "stage/of/a/network/with/a/path/of/its_own/b",
)


def legends(monkeypatch, draw):
    """[(label, color), ...] of the legends of the picture that `draw()` makes."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    assert draw().startswith(b"\x89PNG")
    (figure,) = figures
    found = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    return [
        (
            text.get_text(),
            to_hex(
                handle.get_facecolor() if hasattr(handle, "get_facecolor") else handle.get_color()
            ),
        )
        for legend in found
        if legend
        for text, handle in zip(legend.get_texts(), legend.legend_handles)
    ]


@pytest.mark.parametrize("kind", ["bars", "layers", "amounts", "steps", "epochs"])
def test_names_that_begin_alike_have_their_own_lines_in_the_legend(monkeypatch, kind):
    """Each of its color, and with both of its ends."""
    curve = [[epoch, 0.4, 0.3] for epoch in (1, 2)]
    view = View.of(
        mark_chosen(
            result(f"{module}{step}", endpoint, 0.5, 0.5, train_labels=labels, curve=curve)
            for module in MODULES
            for step in (("/1", "/2") if kind == "steps" else ("",))
            for endpoint in ENDPOINTS
            for labels in (100, 1000)
        ),
        {"chance": 0.1},
    )
    trained = {name: int(name[-1]) for name in view.modules} if kind == "steps" else None
    draw = getattr(plots, kind)
    found = legends(monkeypatch, lambda: draw(view, trained) if trained else draw(view))
    want = ENDPOINTS if kind == "epochs" else MODULES
    assert [color for _, color in found[:2]] == ["#4477aa", "#ee6677"]
    for (label, _), name in zip(found, want):
        assert len(label) <= 40 and label[:19] == name[:19] and label[-19:] == name[-19:]
    assert [label for label, _ in found[2:]] == {
        "bars": ["chance", "endpoint chosen on validation"],
        "layers": ["chance", "endpoint chosen on validation"],
        "epochs": ["validation", "test"],
    }.get(kind, ["chance"])


def test_long_names_take_no_room_from_the_bars():
    results = [result(module, "block1", 0.5, 0.5) for module in MODULES]
    png = plots.bars(View.of(mark_chosen(results), {"chance": 0.1}))
    picture = tf.io.decode_png(png, channels=3).numpy()
    bar = (picture[-150] == (0x44, 0x77, 0xAA)).all(-1).sum()  # of two in the panel
    assert bar > picture.shape[1] / 5


def test_names_are_cut_in_the_middle_and_escaped():
    assert names.plain("a\n b") == "a b" and names.plain("_a") == " _a"
    assert names.plain("from_$5_to_$10") == r"from_\$5_to_\$10"
    assert names.plain("0123456789", 10) == "0123456789"
    assert names.plain("0123456789", 9) == "0123\u20266789"
    assert names.plain("0123456789", 6) == "012\u202689"

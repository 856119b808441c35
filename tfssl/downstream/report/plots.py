"""Plots of an evaluation's results, as PNGs."""

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from tfssl.downstream.report.names import plain
from tfssl.downstream.report.view import View
from tfssl.downstream.results import PIXELS, Column

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

Style = Mapping[str, Any]  # Matplotlib's keyword arguments of a line

_COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
)  # Paul Tol's "bright", for all eyes


def bars(view: View, title: str = "") -> bytes:
    """A panel per column of the table, with a group of bars per endpoint, a bar per module; pixels
    and chance as lines: a PNG."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    modules = view.modules
    endpoints = list(dict.fromkeys(r.endpoint for r in view.results if not r.of_pixels))
    bar = 0.8 / max(len(modules), 1)
    width = min(max(5.0, 1.2 + len(endpoints) * (0.35 + 0.3 * len(modules))), 16.0)
    figure = _figure(width, 0.9 + 2.6 * len(view.columns))
    axes = figure.subplots(len(view.columns), 1, sharex=True, squeeze=False)[:, 0]
    levels_drawn: dict[str, Artist] = {}
    for axis, column in zip(axes, view.columns):
        for m, module in enumerate(modules):
            rows = view.of_column(column, module)
            positions = [
                endpoints.index(r.endpoint) + (m - (len(modules) - 1) / 2) * bar for r in rows
            ]
            axis.bar(
                positions,
                [100 * r.value for r in rows],
                0.92 * bar,
                color=_COLORS[m % len(_COLORS)],
                zorder=2,
            )
            for position, r in zip(positions, rows):
                note = f"{100 * r.value:.1f}" + ("\n\u2605" if r.chosen else "")
                style: Style = {
                    "ha": "center",
                    "va": "bottom",
                    "fontsize": 7,
                    "bbox": {"color": "white", "pad": 0.4},
                    "zorder": 3,
                }
                axis.annotate(
                    note, (position, 100 * r.value), (0, 2), textcoords="offset points", **style
                )
        levels, pixels = view.levels[column], view.pixels.get(column)
        lines = [(PIXELS, pixels.value, "--")] if pixels else []
        lines += [("chance", levels["chance"], ":")] if "chance" in levels else []
        for name, value, dashes in lines:
            levels_drawn[name] = axis.axhline(
                100 * value, color="#444444", linewidth=1, linestyle=dashes, zorder=1
            )
        axis.set_ylabel(f"{view.headings[column]}\ntest {view.metrics[column]}, %")
        axis.set_xticks(range(len(endpoints)), [plain(endpoint) for endpoint in endpoints])
        highest = max([r.value for r in view.of_column(column)] + list(levels.values()))
        axis.set_ylim(0, min(1.18 * 100 * highest, 112) or 1)  # of no height else
        axis.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    entries: list[tuple[str, Artist]] = [
        (plain(module), Patch(color=_COLORS[m % len(_COLORS)])) for m, module in enumerate(modules)
    ]
    entries += [(name, levels_drawn[name]) for name in (PIXELS, "chance") if name in levels_drawn]
    star = Line2D([], [], color="black", linestyle="", marker="*")
    entries.append(("endpoint chosen on validation", star))
    labels, handles = zip(*entries)
    legend: Style = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1.02),
        "ncols": _columns(labels, width - 0.8, 3 if len(entries) > 4 else len(entries)),
    }
    axes[0].legend(
        handles,
        labels,
        **legend,
        frameon=False,
        fontsize=8,
        title=plain(title),
        alignment="left",
    )
    return _png(figure)


def epochs(view: View, title: str = "") -> bytes:
    """Accuracy over epochs, as in figure 8 of the 2019 study: a panel per module and column of the
    table, a line per endpoint; bold on validation, thin on test. A PNG."""
    from matplotlib.lines import Line2D

    results = [r for r in view.results if "curve" in r.details]
    # pixels alone
    modules = list(dict.fromkeys(r.module for r in results if not r.of_pixels)) or [""]
    columns = list(dict.fromkeys(r.column for r in results))
    endpoints = list(dict.fromkeys(r.endpoint for r in results))
    size = 1.0 + 4.2 * len(modules), 1.2 + 2.9 * len(columns)
    figure = _figure(*size)
    grid = figure.subplots(len(columns), len(modules), sharey="row", squeeze=False)
    drawn: dict[str, Artist] = {}  # a line of each endpoint
    for axes, column in zip(grid, columns):
        for axis, module in zip(axes, modules):
            for r in results:
                if r.column != column or r.module != module and not r.of_pixels:
                    continue
                number, on_val, on_test = zip(*r.details["curve"])
                line: dict[str, Any] = {
                    "color": _COLORS[endpoints.index(r.endpoint) % len(_COLORS)]
                }
                line["linestyle"] = "--" if r.of_pixels else "-"
                curves = [] if on_val[0] is None else [(on_val, 1.8)]
                curves.append((on_test, 0.7))
                lines = [
                    axis.plot(number, [100 * v for v in curve], linewidth=width, **line)[0]
                    for curve, width in curves
                ]
                drawn[r.endpoint] = lines[0]
            axis.set_title(plain(module), fontsize=9, loc="left")
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("epoch")
        axes[0].set_ylabel(f"{view.headings[column]}\naccuracy, %")
    entries = [(plain(endpoint), drawn[endpoint]) for endpoint in endpoints if endpoint in drawn]
    for name, width in (("validation", 1.8), ("test", 0.7)):
        entries.append((name, Line2D([], [], color="#444444", linewidth=width)))
    labels, handles = zip(*entries)
    legend: Style = {
        "loc": "outside upper left",
        "ncols": 4,
        "frameon": False,
        "fontsize": 8,
        "alignment": "left",
    }
    figure.legend(handles, labels, title=plain(title), **legend)
    return _png(figure)


def layers(view: View) -> Optional[bytes]:
    """Results by layer: a panel per protocol (at the most labels, the largest k), a line per module
    over the endpoints in depth order, a star at the chosen endpoint; pixels and chance as
    horizontal lines; untrained modules dashed. A PNG; None where no module has two endpoints."""
    depth = {
        c: list(dict.fromkeys(r.endpoint for r in view.of_column(c) if not r.of_pixels))
        for c in view.largest
    }
    columns = [column for column, endpoints in depth.items() if len(endpoints) > 1]
    if not columns:
        return None
    styles = _styles(view)
    figure, axes = _panels(len(columns))
    for axis, column in zip(axes, columns):
        endpoints = depth[column]
        for module, style in styles.items():
            rows = view.of_column(column, module)
            positions, values = (
                [endpoints.index(r.endpoint) for r in rows],
                [100 * r.value for r in rows],
            )
            axis.plot(positions, values, **style, marker="o", markersize=3)
            stars = [
                (position, value) for position, value, r in zip(positions, values, rows) if r.chosen
            ]
            axis.plot(*zip(*stars), linestyle="", marker="*", markersize=11, color=style["color"])
        if column in view.pixels:
            axis.axhline(100 * view.pixels[column].value, **_PIXELS)
        if "chance" in view.levels[column]:
            axis.axhline(100 * view.levels[column]["chance"], **_CHANCE)
        axis.set_xticks(
            range(len(endpoints)),
            [plain(e, 16) for e in endpoints],
            rotation=30,
            ha="right",
            fontsize=8,
        )
        axis.set_title(view.headings[column], fontsize=10, loc="left")
        axis.set_ylabel(f"test {view.metrics[column]}, %", fontsize=9)
    _legend(figure, styles, view, star="endpoint chosen on validation")
    return _png(figure)


def amounts(view: View) -> Optional[bytes]:
    """Results by number of labels: a panel per protocol with several numbers of labels, or of
    images of each class; a line per module, of the best endpoint (see `View`). A PNG; None where
    each protocol has one number."""
    panels: dict[tuple[str, str], list[Column]] = {}  # (protocol, what is varied) -> columns
    for column in view.columns:
        protocol, labels, shots = column
        most = max(c[1] for c in view.columns if c[0] == protocol)
        if shots is None:
            panels.setdefault((protocol, "training labels"), []).append(column)
        elif labels == most:
            panels.setdefault((protocol, "images of each class"), []).append(column)
    panels = {key: columns for key, columns in panels.items() if len(columns) > 1}
    if not panels:
        return None
    styles = _styles(view)
    figure, axes = _panels(len(panels))
    for axis, ((protocol, varied), columns) in zip(axes, panels.items()):
        amount = {
            column: column[1] if varied == "training labels" else column[2] or 0
            for column in columns
        }
        columns = sorted(columns, key=lambda column: amount[column])
        for module, style in styles.items():
            points = [
                (amount[c], view.best[module, c]) for c in columns if (module, c) in view.best
            ]
            spread = [100 * r.details.get("interval", r.details.get("std", 0.0)) for _, r in points]
            x, y = [x for x, _ in points], [100 * r.value for _, r in points]
            axis.errorbar(
                x, y, spread if any(spread) else None, **style, marker="o", markersize=3, capsize=2
            )
        pixels = [c for c in columns if c in view.pixels]
        axis.plot(
            [amount[c] for c in pixels], [100 * view.pixels[c].value for c in pixels], **_PIXELS
        )
        chance = view.levels[columns[0]].get("chance")
        if chance is not None:
            axis.axhline(100 * chance, **_CHANCE)
        axis.set_xscale("log")
        ticks = sorted(set(amount.values()))
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.set_xlabel(varied, fontsize=9)
        axis.set_title(protocol, fontsize=10, loc="left")
        axis.set_ylabel(f"test {view.metrics[columns[0]]}, %", fontsize=9)
    _legend(figure, styles, view)
    return _png(figure)


def steps(view: View, trained: Mapping[str, int]) -> Optional[bytes]:
    """Results over the steps of training: a panel per protocol, a line per run, of the chosen
    endpoint of each module (see `View.best`). A PNG; None where no run has two modules.

    Args:
      trained: {module: step}; those of one run are called RUN/STEP.
    """
    runs: dict[str, list[str]] = {}
    for module in view.modules:
        if module in trained and "/" in module:
            runs.setdefault(module.rpartition("/")[0], []).append(module)
    runs = {
        run: sorted(own, key=trained.__getitem__)
        for run, own in runs.items()
        if len({trained[module] for module in own}) > 1
    }
    if not runs:
        return None
    styles: dict[str, Style] = {
        run: {"color": _COLORS[i % len(_COLORS)], "linewidth": 1.8} for i, run in enumerate(runs)
    }
    figure, axes = _panels(len(view.largest))
    for axis, column in zip(axes, view.largest):
        for run, modules in runs.items():
            known = [
                (trained[m], view.best[m, column]) for m in modules if (m, column) in view.best
            ]
            x, y = [step for step, _ in known], [100 * result.value for _, result in known]
            axis.plot(x, y, **styles[run], marker="o", markersize=3)
        if column in view.pixels:
            axis.axhline(100 * view.pixels[column].value, **_PIXELS)
        if "chance" in view.levels[column]:
            axis.axhline(100 * view.levels[column]["chance"], **_CHANCE)
        axis.set_xlabel("step of training", fontsize=9)
        axis.set_title(view.headings[column], fontsize=10, loc="left")
        axis.set_ylabel(f"test {view.metrics[column]}, %", fontsize=9)
    _legend(figure, styles, view)
    return _png(figure)


_PIXELS: Style = {"color": "#444444", "linestyle": "-.", "linewidth": 1.2}
_CHANCE: Style = {"color": "#444444", "linestyle": ":", "linewidth": 1.2}


def _styles(view: View) -> dict[str, Style]:
    """{module: style of its line}."""
    styles: dict[str, Style] = {}
    for module in view.modules:
        number = len([m for m in styles if m not in view.untrained])
        if module in view.untrained:
            gray = ("#777777", "#a0a0a0", "#555555")[(len(styles) - number) % 3]
            styles[module] = {"color": gray, "linestyle": "--", "linewidth": 1.6}
        else:
            styles[module] = {"color": _COLORS[number % len(_COLORS)], "linewidth": 1.8}
    return styles


def _panels(count: int) -> "tuple[Figure, np.ndarray]":
    """(figure, axes) of small panels side by side, three in a row."""
    wide = min(count, 3)
    tall = -(-count // wide)
    figure = _figure(max(3.9 * wide, 5.2), 0.7 + 3.0 * tall)
    axes = figure.subplots(tall, wide, squeeze=False).reshape(-1)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes[:count]


def _legend(figure: "Figure", styles: Mapping[str, Style], view: View, star: str = "") -> None:
    from matplotlib.lines import Line2D

    entries = [(plain(module), Line2D([], [], **style)) for module, style in styles.items()]
    if view.pixels:
        entries.append((PIXELS, Line2D([], [], **_PIXELS)))
    if any("chance" in of_column for of_column in view.levels.values()):
        entries.append(("chance", Line2D([], [], **_CHANCE)))
    if star:
        marker: Style = {"color": "#444444", "linestyle": "", "marker": "*", "markersize": 10}
        entries.append((star, Line2D([], [], **marker)))
    labels, lines = zip(*entries)
    # As many columns as fit: a letter takes about a fourteenth of an inch, a sample half an inch.
    widest = max(map(len, labels)) / 14 + 0.6
    columns = max(1, min(4, int(figure.get_figwidth() / widest)))
    position: Style = {"loc": "outside upper left", "frameon": False, "fontsize": 9}
    figure.legend(lines, labels, ncols=columns, **position)


def _columns(labels: Sequence[str], width: float, most: int) -> int:
    """Columns of a legend of 8 points within `width` inches, at least one: beyond it, the layout
    would narrow the panels. Matplotlib fills column after column."""
    for columns in range(most, 1, -1):
        parts = np.array_split([len(label) for label in labels], columns)
        # a letter takes a sixteenth of an inch
        if sum(part.max() / 16 + 0.6 for part in parts if part.size) <= width:
            return columns
    return 1


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs about its font cache
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()

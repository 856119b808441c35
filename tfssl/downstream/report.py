"""The results of an evaluation for people: a table, a file, a plot."""

import io
import json
import logging
import platform

import numpy as np

PIXELS = "pixels"
_METRICS = {  # what is no accuracy
    "mAP": "mean average precision",
    "mIoU": "mean intersection over union",
    "AP50": "average precision at an IoU of 0.5",
    "within 11.25\N{DEGREE SIGN}": "pixels whose angle is wrong by less than 11.25\N{DEGREE SIGN}",
}
_COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
)  # Paul Tol's "bright", for all eyes


def mark_chosen(results):
    """Set result["chosen"]: of the endpoints of one module, under one protocol and number of labels, the best on
    validation.

    Pixels are not the module's; among equals the deeper endpoint is chosen. Without validation results none is.
    """
    groups = {}
    for result in results:
        result["chosen"] = False
        if result["endpoint"] != PIXELS and result["val_value"] is not None:
            groups.setdefault((result["module"], *_column(result)), []).append(result)
    for group in groups.values():
        max(reversed(group), key=lambda r: r["val_value"])["chosen"] = True
    return results


def baselines(train, test):
    """Accuracies without looking at an image, as rows: a uniform guess, and always the most frequent class of the
    training split. None where images have several classes; a result's own "chance" goes first."""
    if train.targets is not None:
        return {}
    classes = np.unique(np.concatenate([train.labels, test.labels]))
    majority = np.bincount(train.labels).argmax()
    return {
        "chance": 1 / (train.num_classes or len(classes)),
        "majority class": float(np.mean(test.labels == majority)),
    }


def table(results, baselines):
    """The results side by side: a line per module and endpoint, a column per protocol and number of training labels; in
    per cent.

    Args:
      results: list of dicts as of a protocol, with "module" and "chosen".
      baselines: {name: accuracy}, the last lines.

    Returns:
      str.
    """
    columns = list(dict.fromkeys(_column(r) for r in results))
    lines = [["module", "endpoint", *(f"{title} " for title in _titles(columns).values())]]
    for module in dict.fromkeys(r["module"] for r in results):
        mine = [r for r in results if r["module"] == module and r["endpoint"] != PIXELS]
        lines += [[]] * (len(lines) > 1 and bool(mine))
        for i, endpoint in enumerate(dict.fromkeys(r["endpoint"] for r in mine)):
            cells = {_column(r): _cell(r) for r in mine if r["endpoint"] == endpoint}
            lines.append([module if i == 0 else "", endpoint, *(cells.get(c, "") for c in columns)])
    lines += [[]] * (len(lines) > 1)
    pixels = {_column(r): _cell(r) for r in results if r["endpoint"] == PIXELS}  # nobody's: beside the guesses
    lines += [[PIXELS, "", *(pixels.get(c, "") for c in columns)]] * bool(pixels)
    levels = [_levels([r for r in results if _column(r) == c], baselines) for c in columns]
    for name in dict.fromkeys(name for of_column in levels for name in of_column):
        cells = [f"{100 * of_column[name]:.1f} " if name in of_column else "" for of_column in levels]
        lines.append([name, "", *cells])
    widths = [max(len(line[i]) for line in lines if line) for i in range(len(lines[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text = [_aligned(line, widths) if line else "" for line in lines]
    text.insert(1, rule)
    others = {metric: dict.fromkeys(r["protocol"] for r in results if r["metric"] == metric) for metric in _METRICS}
    named = "; ".join(f"{', '.join(its)}: {_METRICS[metric]}" for metric, its in others.items() if its)
    measure = f"test accuracy ({named})" if named else "test accuracy"
    labels = "training labels, or k of each class" if any("shots" in r for r in results) else "training labels"
    notes = [f"{measure} in %; protocol@{labels}; * the endpoint that validation chose for its module"]
    slow = [r for r in results if r.get("converged") is False]
    if slow:
        names = [f"{r['module']}/{r['endpoint']}@{r['train_labels']}" for r in slow]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notes.append(f"logistic stopped at --max_iterations, before its optimum: {', '.join(names[:4])}{more}")
    unstable = [f"{r['protocol']} {r['module']}/{r['endpoint']}" for r in results if r.get("diverged")]
    if unstable:
        notes.append(f"diverged, so take --standardize or a lower learning rate: {', '.join(dict.fromkeys(unstable))}")
    chosen = list(dict.fromkeys(r.get("chosen_on") for r in results if r.get("chosen_on")))
    for where in list(dict.fromkeys(r["reported_on"] for r in results if r.get("reported_on"))):
        notes.append(f"chosen on {' and '.join(chosen) or 'nothing'}; reported on {where}")
    return "\n".join([*text, rule, *notes])


def line(result):
    """What is said of a result as soon as it is there."""
    said = [f"accuracy {100 * result['accuracy']:.1f}%"] if "accuracy" in result else []
    said += [f"AP {100 * result['coco_ap']:.1f}%"] if "coco_ap" in result else []
    said += [f"median angle {result['median_angle']:.1f}\N{DEGREE SIGN}"] if "median_angle" in result else []
    said += [f"deviation {100 * result['std']:.1f}"] if "std" in result else []
    said += [f"{key} {result[key]:.2g}" for key in ("l2", "cost", "ridge") if key in result]
    said += [f"{result['iterations']} updates"] if "iterations" in result else []
    said += [f"epoch {result['epoch']}, {result['images_per_second']:.0f} images/s"] if "epoch" in result else []
    how = ", ".join([*said, f"{result['seconds']:.1f} s"])
    metric = "" if result["metric"] == "accuracy" else f"{result['metric']} "
    return f"{result['module']} {result['endpoint']} {title(result)}: {metric}{100 * result['value']:.1f}% ({how})"


def save(stem, results, title="", **facts):
    """Write an evaluation: STEM.json, STEM.png, STEM_curve.png where results have curves, and STEM_MODULE_PROTOCOL.png where there is a
    picture of answers, of the chosen endpoint or else the best.

    Args:
      stem: path without ending.
      results: list of dicts as of a protocol, with "module" and "chosen".
      title: of the plots.
      **facts: what the file says beside results, versions and where they were chosen and reported; "baselines" among them.

    Returns:
      list of the files' names.
    """
    first = {key: results[0][key] for key in ("chosen_on", "reported_on")}
    write(f"{stem}.json", results, versions=versions(), **facts, **first)
    plot(f"{stem}.png", results, facts["baselines"], title)
    written = [f"{stem}.json", f"{stem}.png"]
    if any("curve" in result for result in results):
        plot_curves(f"{stem}_curve.png", results, title)
        written.append(f"{stem}_curve.png")
    for (module, protocol), result in pictured(results).items():
        written.append(f"{stem}_{module.replace('/', '_')}_{protocol}.png")
        _write_bytes(written[-1], result["picture"])
    return written


def pictured(results):
    """{(module, protocol): the result whose "picture" (PNG bytes) tells most: of the chosen endpoint, or else the best}."""
    found = {}
    for result in results:
        if result.get("picture"):
            found.setdefault((result["module"], result["protocol"]), []).append(result)
    return {key: max(its, key=lambda r: (bool(r["chosen"]), r["value"])) for key, its in found.items()}


def versions():
    """{library: version} of what computes results."""
    import numpy
    import scipy
    import tensorflow

    import tfssl

    libraries = {m.__name__: m.__version__ for m in (tfssl, tensorflow, numpy, scipy)}
    return {"python": platform.python_version(), **libraries}


def write(path, results, **facts):
    """Write results.json (any file system that TensorFlow knows): `facts`, then the list "results", without their pictures."""
    import tensorflow as tf

    tf.io.gfile.makedirs(path.rpartition("/")[0] or ".")
    with tf.io.gfile.GFile(path, "w") as f:
        results = [{key: value for key, value in result.items() if key != "picture"} for result in results]
        f.write(json.dumps({"format": 1, **facts, "results": results}, indent=1) + "\n")


def _write_bytes(path, content):
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "wb") as f:
        f.write(content)


def plot(path, results, baselines, title=""):
    """Write a PNG: a panel per column of the table, in it a group of bars per endpoint, a bar per module; pixels and
    chance as lines."""
    import tensorflow as tf
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    columns = list(dict.fromkeys(_column(r) for r in results))
    modules = list(dict.fromkeys(r["module"] for r in results if r["endpoint"] != PIXELS))
    endpoints = list(dict.fromkeys(r["endpoint"] for r in results if r["endpoint"] != PIXELS))
    bar = 0.8 / max(len(modules), 1)
    width = min(max(5.0, 1.2 + len(endpoints) * (0.35 + 0.3 * len(modules))), 16.0)
    figure = Figure(figsize=(width, 0.9 + 2.6 * len(columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (column, title_of_column) in zip(axes, _titles(columns).items()):  # noqa: B905 (Python 3.9)
        rows = [r for r in results if _column(r) == column]
        for m, module in enumerate(modules):
            mine = [r for r in rows if r["module"] == module and r["endpoint"] != PIXELS]
            places = [endpoints.index(r["endpoint"]) + (m - (len(modules) - 1) / 2) * bar for r in mine]
            axis.bar(
                places,
                [100 * r["value"] for r in mine],
                0.92 * bar,
                color=_COLORS[m % len(_COLORS)],
                label=module,
                zorder=2,
            )
            for place, r in zip(places, mine):  # noqa: B905
                note = f"{100 * r['value']:.1f}" + ("\n\u2605" if r["chosen"] else "")
                style = {
                    "ha": "center",
                    "va": "bottom",
                    "fontsize": 7,
                    "bbox": {"color": "white", "pad": 0.4},
                    "zorder": 3,
                }
                axis.annotate(note, (place, 100 * r["value"]), (0, 2), textcoords="offset points", **style)
        levels = _levels(rows, baselines)
        lines = [(PIXELS, r["value"], "--") for r in rows if r["endpoint"] == PIXELS]
        lines += [("chance", levels["chance"], ":")] if "chance" in levels else []
        for name, value, style in lines:
            axis.axhline(100 * value, color="#444444", linewidth=1, linestyle=style, label=name, zorder=1)
        axis.set_ylabel(f"{title_of_column}\ntest {rows[0]['metric']}, %")
        axis.set_xticks(range(len(endpoints)), endpoints)
        axis.set_ylim(0, min(1.18 * 100 * max([r["value"] for r in rows] + list(levels.values())), 112))
        axis.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].scatter([], [], marker="*", color="black", label="endpoint chosen on validation")
    drawn = dict(zip(*reversed(axes[0].get_legend_handles_labels())))  # noqa: B905
    names = [*modules, *(label for label in drawn if label not in modules)]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "ncols": 3 if len(names) > 4 else len(names)}
    axes[0].legend([drawn[n] for n in names], names, **place, frameon=False, fontsize=8, title=title, alignment="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    with tf.io.gfile.GFile(path, "wb") as f:
        f.write(buffer.getvalue())


def plot_curves(path, results, title=""):
    """Write a PNG of accuracy over epochs, as the 2019 study's figure 8: a panel per module and column of the table, a
    line per endpoint; bold on validation, thin on test."""
    import tensorflow as tf
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    results = [r for r in results if "curve" in r]
    panels = list(dict.fromkeys((r["module"] if r["endpoint"] != PIXELS else None, *_column(r)) for r in results))
    modules = [m for m in dict.fromkeys(p[0] for p in panels) if m is not None] or [None]
    columns = list(dict.fromkeys(p[1:] for p in panels))
    endpoints = list(dict.fromkeys(r["endpoint"] for r in results))
    size = 1.0 + 4.2 * len(modules), 1.2 + 2.9 * len(columns)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(columns), len(modules), sharey="row", squeeze=False)
    for axes, column in zip(grid, columns):  # noqa: B905 (Python 3.9)
        for axis, module in zip(axes, modules):  # noqa: B905
            for r in results:
                if _column(r) != column or r["module"] != module and r["endpoint"] != PIXELS:
                    continue
                epochs, on_val, on_test = zip(*r["curve"])  # noqa: B905
                line = {"color": _COLORS[endpoints.index(r["endpoint"]) % len(_COLORS)]}
                line["linestyle"] = "-" if r["endpoint"] != PIXELS else "--"
                if on_val[0] is not None:
                    axis.plot(epochs, [100 * v for v in on_val], label=r["endpoint"], linewidth=1.8, **line)
                label = r["endpoint"] if on_val[0] is None else None
                axis.plot(epochs, [100 * v for v in on_test], label=label, linewidth=0.7, **line)
            axis.set_title("" if module is None else module, fontsize=9, loc="left")
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("epoch")
        axes[0].set_ylabel(f"{_titles(columns)[column]}\naccuracy, %")
    axis = grid[0, 0]
    axis.plot([], [], color="#444444", linewidth=1.8, label="validation")
    axis.plot([], [], color="#444444", linewidth=0.7, label="test")
    drawn = {}
    for each in grid.flat:
        drawn.update(dict(zip(*reversed(each.get_legend_handles_labels()))))  # noqa: B905
    names = [n for n in [*endpoints, "validation", "test"] if n in drawn]
    place = {"loc": "outside upper left", "ncols": 4, "frameon": False, "fontsize": 8, "alignment": "left"}
    figure.legend([drawn[n] for n in names], names, title=title, **place)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    with tf.io.gfile.GFile(path, "wb") as f:
        f.write(buffer.getvalue())


def title(result):
    """What heads a result's column of the table: protocol@training labels, or protocol@k=images of each class."""
    return _titles([_column(result)])[_column(result)]


def _levels(rows, baselines):
    """{name: what is reached without looking} in one column; `baselines` are accuracies."""
    own = [r["chance"] for r in rows if "chance" in r]
    return {"chance": own[0]} if own else baselines if rows[0]["metric"] == "accuracy" else {}


def _column(result):
    return result["protocol"], result["train_labels"], result.get("shots")


def _titles(columns):
    """{column: its heading}."""
    titles = {}
    for protocol, labels, shots in columns:
        several = sum(column[0] == protocol and column[2] == shots for column in columns) > 1
        of_labels = f"k={shots}" + (f" of {labels}" if several else "") if shots else labels
        titles[protocol, labels, shots] = f"{protocol}@{of_labels}"
    return titles


def _cell(result):
    return f"{100 * result['value']:.1f}" + ("*" if result["chosen"] else " ")


def _aligned(line, widths):
    cells = [cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(line)]
    return "  ".join(cells).rstrip()

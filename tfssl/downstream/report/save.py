"""The results of an evaluation: side by side, as a table, and as files."""

import json
import os
import platform

import numpy as np

from tfssl.storage.files import write_file
from tfssl.version import __version__

PIXELS = "pixels"
_METRICS = {  # what is no accuracy
    "mAP": "mean average precision",
    "mIoU": "mean intersection over union",
    "AP50": "average precision at an IoU of 0.5",
    "within 11.25\N{DEGREE SIGN}": "pixels whose angle is wrong by less than 11.25\N{DEGREE SIGN}",
}
_WIDEST = 200  # characters of a line of the table: of more columns it makes several tables


def mark_chosen(results):
    """Set result["chosen"]: of the endpoints of one module, under one protocol and number of labels, the best on
    validation.

    Pixels are not the module's; among equals the deeper endpoint is chosen. Without validation results none is.
    """
    groups = {}
    for result in results:
        result["chosen"] = False
        if result["endpoint"] != PIXELS and result["val_value"] is not None:
            groups.setdefault((result["module"], *column(result)), []).append(result)
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


def grid(results, baselines):
    """What the results are side by side, whatever they are shown in.

    Args:
      results: list of dicts as of a protocol, with "module" and "chosen".
      baselines: {name: accuracy}.

    Returns:
      ([column, as of `column`], [group of rows]), a row being (module, endpoint, {column: result}). There is a group for each module, and
      one of what is nobody's: pixels and the baselines, whose endpoint is "", and which have but a "value".
    """
    columns = list(dict.fromkeys(column(r) for r in results))
    groups = []
    for module in dict.fromkeys(r["module"] for r in results):
        mine = [r for r in results if r["module"] == module and r["endpoint"] != PIXELS]
        endpoints = dict.fromkeys(r["endpoint"] for r in mine)
        groups.append([(module, e, {column(r): r for r in mine if r["endpoint"] == e}) for e in endpoints])
    pixels = {column(r): r for r in results if r["endpoint"] == PIXELS}
    others = [(PIXELS, "", pixels)] * bool(pixels)
    reached = {c: levels([r for r in results if column(r) == c], baselines) for c in columns}
    for name in dict.fromkeys(name for of_column in reached.values() for name in of_column):
        others.append((name, "", {c: {"value": found[name]} for c, found in reached.items() if name in found}))
    return columns, [group for group in (*groups, others) if group]


def table(results, baselines):
    """The results side by side: a line per module and endpoint, a column per protocol and number of training labels; in
    per cent. Arguments as of `grid`, whose last rows come last; returns a str.
    """
    columns, groups = grid(results, baselines)
    headings = titles(columns)
    lines = [["module", "endpoint", *(f"{headings[c]} " for c in columns)]]
    for i, group in enumerate(groups):
        lines += [[]] * (i > 0)
        for j, (module, endpoint, cells) in enumerate(group):
            name = module if j == 0 or not endpoint else ""
            lines.append([name, endpoint, *(cell(cells[c]) if c in cells else "" for c in columns)])
    widths = [max(len(line[i]) for line in lines if line) for i in range(len(lines[0]))]
    text = []
    for part in _parts(widths[2:], _WIDEST - sum(widths[:2])):
        shown = [0, 1, *(2 + i for i in part)]
        block = [
            [line[i] for i in shown] if line else [] for line in lines if not line or any(line[2 + i] for i in part)
        ]
        wide = [widths[i] for i in shown]
        rule = "-" * (sum(wide) + 2 * (len(wide) - 1))
        body = [_aligned(line, wide) if line else "" for line in block]
        text += [*[""] * bool(text), body[0], rule, *body[1:], rule]
    return "\n".join([*text, *notes(results)])


def _parts(widths, most):
    """The columns' numbers, in as many lists as it takes to keep the sum of their widths below `most`."""
    parts, used = [[]], 0
    for i, width in enumerate(widths):
        if used + width + 2 > most and parts[-1]:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += width + 2
    return parts


def notes(results):
    """What must be known to read the table: lines."""
    others = {metric: dict.fromkeys(r["protocol"] for r in results if r["metric"] == metric) for metric in _METRICS}
    named = "; ".join(f"{', '.join(its)}: {_METRICS[metric]}" for metric, its in others.items() if its)
    measure = f"test accuracy ({named})" if named else "test accuracy"
    labels = "training labels, or k of each class" if any("shots" in r for r in results) else "training labels"
    said = [
        f"{measure} in %; protocol@{labels}; * the endpoint that validation chose for its module",
        *cautions(results),
    ]
    chosen = list(dict.fromkeys(r.get("chosen_on") for r in results if r.get("chosen_on")))
    for where in list(dict.fromkeys(r["reported_on"] for r in results if r.get("reported_on"))):
        said.append(f"chosen on {' and '.join(chosen) or 'nothing'}; reported on {where}")
    return said


def cautions(results):
    """What went less than well: lines."""
    said = []
    slow = [r for r in results if r.get("converged") is False]
    if slow:
        names = [f"{r['module']}/{r['endpoint']}@{r['train_labels']}" for r in slow]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        said.append(f"logistic stopped at --max_iterations, before its optimum: {', '.join(names[:4])}{more}")
    quick = {r["protocol"]: r["quick"] for r in results if r.get("quick")}
    for protocol, settings in quick.items():
        said.append(
            f"quick settings of {protocol}, for lack of time: {', '.join(f'{k}={v}' for k, v in settings.items())}"
        )
    unstable = [f"{r['protocol']} {r['module']}/{r['endpoint']}" for r in results if r.get("diverged")]
    if unstable:
        said.append(f"diverged, so take --standardize or a lower learning rate: {', '.join(dict.fromkeys(unstable))}")
    return said


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


def save(folder, results, title="", panels=None, **facts):
    """Write an evaluation: results.json, results.png, results_curve.png where results have curves, and report.html.

    Args:
      folder: where to; any file system that TensorFlow knows.
      results: list of dicts as of a protocol, with "module" and "chosen". A "picture" of one, a PNG's bytes or its path, is shown in
        report.html alone.
      title: of the plots.
      panels: {module: (endpoint, PNG's bytes)}, of nearest images, for report.html.
      **facts: what is said beside results, versions and where they were chosen and reported; "baselines" among them.

    Returns:
      list of the files' names.
    """
    from tfssl.downstream.report import page, plots

    first = {key: results[0][key] for key in ("chosen_on", "reported_on")}
    record = {"versions": versions(), **facts, **first, "results": [without_picture(r) for r in results]}
    stem = os.path.join(folder, "results")
    files = {f"{stem}.png": plots.bars(results, facts["baselines"], title)}
    if any("curve" in result for result in results):
        files[f"{stem}_curve.png"] = plots.epochs(results, title)
    files[os.path.join(folder, "report.html")] = page.page(record, panels or {}, results).encode()
    for path, content in files.items():
        write_file(path, content)
    write(f"{stem}.json", **record)  # last: what it says is finished is so
    return [f"{stem}.json", *files]


def without_picture(result):
    return {key: value for key, value in result.items() if key != "picture"}


def versions():
    """{library: version} of what computes results."""
    import numpy
    import scipy
    import tensorflow

    libraries = {m.__name__: m.__version__ for m in (tensorflow, numpy, scipy)}
    return {"python": platform.python_version(), "tfssl": __version__, **libraries}


def write(path, results, **facts):
    """Write results.json (any file system that TensorFlow knows): `facts`, then the list "results"."""
    write_file(path, json.dumps({"format": 1, **facts, "results": results}, indent=1) + "\n")


def title(result):
    """What heads a result's column of the table: protocol@training labels, or protocol@k=images of each class."""
    return titles([column(result)])[column(result)]


def levels(rows, baselines):
    """{name: what is reached without looking} in one column; `baselines` are accuracies."""
    own = [r["chance"] for r in rows if "chance" in r]
    return {"chance": own[0]} if own else baselines if rows[0]["metric"] == "accuracy" else {}


def column(result):
    """What tells the columns apart: (protocol, training labels, k or None)."""
    return result["protocol"], result["train_labels"], result.get("shots")


def spelled(metric):
    """A metric's name in words."""
    return _METRICS.get(metric, metric)


def largest(results):
    """Of each protocol the column with most labels, and largest k: a list."""
    found = {}
    for one in (column(r) for r in results):
        found[one[0]] = max(found.get(one[0], one), one, key=lambda c: (c[1], c[2] or 0))
    return list(found.values())


def best(results, of_column, module):
    """The result of a module's chosen endpoint in one column; of its deepest where nothing was chosen; None where there is none."""
    mine = [r for r in results if column(r) == of_column and r["module"] == module and r["endpoint"] != PIXELS]
    return next((r for r in mine if r.get("chosen")), mine[-1] if mine else None)


def titles(columns):
    """{column: its heading}."""
    headings = {}
    for protocol, labels, shots in columns:
        several = sum(other[0] == protocol and other[2] == shots for other in columns) > 1
        of_labels = f"k={shots}" + (f" of {labels}" if several else "") if shots else labels
        headings[protocol, labels, shots] = f"{protocol}@{of_labels}"
    return headings


def cell(result):
    return f"{100 * result['value']:.1f}" + ("*" if result.get("chosen") else " ")


def _aligned(line, widths):
    cells = [cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(line)]
    return "  ".join(cells).rstrip()
